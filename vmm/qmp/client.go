// Package qmp speaks the QEMU Machine Protocol with one monitor: the greeting,
// commands whose replies are matched by id, events, and descriptors that
// travel beside a command.
//
// It owns one connection and no policy. A connection that broke stays broken:
// Execute then reports ErrClosed with the cause, and whether to dial again is
// the caller's business. Messages are JSON objects, one a line, of bounded
// length; anything else ends the connection with ErrProtocol.
package qmp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

var (
	// ErrClosed: the connection has ended.
	ErrClosed = errors.New("monitor connection is closed")

	// ErrUnanswered: the command may have been sent, its reply was not seen.
	// Whether the monitor did it is unknown.
	ErrUnanswered = errors.New("no answer from the monitor")
)

// eventQueue bounds the events that wait for the subscriber. A checkpoint
// causes about five; a subscriber that lags by this many must look at the
// state itself anyway (see Client.Missed).
const eventQueue = 64

// Client is one connection to a monitor.
//
// Concurrency: all methods may be called from any goroutine. The monitor
// carries out commands in the order in which they were sent.
type Client struct {
	conn     *net.UnixConn // immutable
	greeting Greeting      // immutable after New

	events chan Event    // sent and closed by the reader alone
	missed atomic.Uint64 // events dropped because the queue was full
	done   chan struct{} // closed by the reader when it has ended
	reader sync.WaitGroup

	sending chan struct{} // a lock that a context can give up waiting for: held to write to conn

	mu      sync.Mutex
	lastID  uint64                   // guarded by mu
	waiting map[uint64]chan<- answer // guarded by mu; each channel has room for its one answer
	cause   error                    // guarded by mu; why the connection ended, nil while it lives
}

type answer struct {
	result json.RawMessage
	err    error
}

// Dial connects to the monitor that listens at path and completes the
// greeting. A path too long for a socket address is fine.
//
// A QEMU monitor serves one connection at a time; a second waits in Dial until
// the first has closed or ctx ends.
func Dial(ctx context.Context, path string) (*Client, error) {
	conn, err := Connect(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("dial monitor %s: %w", path, err)
	}
	c, err := New(ctx, conn)
	if err != nil {
		return nil, fmt.Errorf("greet monitor %s: %w", path, err)
	}
	return c, nil
}

// New completes the greeting on conn and returns the client, which owns conn
// from here on, also when New reports an error.
func New(ctx context.Context, conn *net.UnixConn) (*Client, error) {
	c := &Client{
		conn:    conn,
		events:  make(chan Event, eventQueue),
		done:    make(chan struct{}),
		sending: make(chan struct{}, 1),
		waiting: make(map[uint64]chan<- answer),
	}
	in := newLines(conn, maxLine)
	if err := c.readGreeting(ctx, in); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	c.reader.Go(func() { c.read(in) })
	if err := c.Execute(ctx, "qmp_capabilities", nil, nil); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// readGreeting runs before the reader starts, so it may read conn itself.
func (c *Client) readGreeting(ctx context.Context, in *lines) error {
	stop := context.AfterFunc(ctx, func() { c.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	line, err := in.next()
	if err != nil {
		if ctx.Err() != nil {
			return fmt.Errorf("greeting: %w: %w", ErrUnanswered, context.Cause(ctx))
		}
		return fmt.Errorf("greeting: %w", err)
	}
	m, err := decode(line)
	if err != nil {
		return fmt.Errorf("greeting: %w", err)
	}
	if m.kind != kindGreeting {
		return fmt.Errorf("%w: no greeting", ErrProtocol)
	}
	if !stop() { // the deadline may be set already and would fell the reader
		return fmt.Errorf("greeting: %w: %w", ErrUnanswered, context.Cause(ctx))
	}
	c.greeting = m.greeting
	return nil
}

// Greeting returns what the monitor said first.
func (c *Client) Greeting() Greeting { return c.greeting }

// Peer returns who made the socket that the monitor listens on (SO_PEERCRED,
// unix(7)).
func (c *Client) Peer() (*unix.Ucred, error) {
	raw, err := c.conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	var peer *unix.Ucred
	var inner error
	if err := raw.Control(func(fd uintptr) {
		peer, inner = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return nil, err
	}
	return peer, os.NewSyscallError("SO_PEERCRED", inner)
}

// Dup returns another descriptor of the connection, for whoever must be able to
// speak when we cannot.
func (c *Client) Dup() (*os.File, error) {
	raw, err := c.conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	var dup int
	var inner error
	if err := raw.Control(func(fd uintptr) {
		dup, inner = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
	}); err != nil {
		return nil, err
	}
	if inner != nil {
		return nil, os.NewSyscallError("fcntl", inner)
	}
	return os.NewFile(uintptr(dup), "monitor connection"), nil
}

// Events returns the one queue of events, closed when the connection has
// ended. It never makes the monitor wait: while the queue is full, events are
// dropped and counted by Missed.
func (c *Client) Events() <-chan Event { return c.events }

// Missed counts the events that were dropped. After it grew, only a query
// tells what state things are in.
func (c *Client) Missed() uint64 { return c.missed.Load() }

// Done is closed when the connection has ended.
func (c *Client) Done() <-chan struct{} { return c.done }

// Close ends the connection and returns when nothing of it runs any more.
// Commands still waiting report ErrUnanswered. It is idempotent.
func (c *Client) Close() error {
	c.end(ErrClosed)
	c.reader.Wait()
	return nil
}

// Execute runs a command and decodes its reply into result, unless that is
// nil. arguments is nil or anything that marshals to a JSON object.
//
// A refusal is an *Error. When ctx ends first, or the connection does, the
// error wraps ErrUnanswered and the cause.
func (c *Client) Execute(ctx context.Context, name string, arguments, result any) error {
	return c.execute(ctx, name, arguments, result, nil)
}

// ExecuteWithFile is Execute with one descriptor sent along, as getfd and
// add-fd want it. The file stays the caller's.
func (c *Client) ExecuteWithFile(ctx context.Context, name string, arguments, result any, file *os.File) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	// Fd would switch the file to blocking mode for every process that shares it.
	var inner error
	if err := raw.Control(func(fd uintptr) {
		inner = c.execute(ctx, name, arguments, result, unix.UnixRights(int(fd)))
	}); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return inner
}

// Call is one command of a batch.
type Call struct {
	Name      string
	Arguments any // nil, or anything that marshals to a JSON object
	Result    any // what the reply is decoded into; nil: not wanted

	Err error // how it went, as Execute would report it
}

// Batch runs commands that are sent together: the monitor goes on with the next
// one before we have heard of the last. A refused one does not keep the next from
// being carried out. It returns when all are answered, with all errors joined.
func (c *Client) Batch(ctx context.Context, calls ...*Call) error {
	c.batch(ctx, nil, calls...)
	var errs []error
	for _, call := range calls {
		errs = append(errs, call.Err)
	}
	return errors.Join(errs...)
}

func (c *Client) execute(ctx context.Context, name string, arguments, result any, rights []byte) error {
	call := &Call{Name: name, Arguments: arguments, Result: result}
	c.batch(ctx, rights, call)
	return call.Err
}

// batch sends calls, the first with rights, and fills in how they went.
func (c *Client) batch(ctx context.Context, rights []byte, calls ...*Call) {
	replies := make([]<-chan answer, len(calls))
	var lines []byte
	err := func() error {
		for i, call := range calls {
			id, reply, err := c.register()
			if err != nil {
				return err
			}
			defer c.forget(id)
			replies[i] = reply
			line, err := json.Marshal(command{Execute: call.Name, Arguments: call.Arguments, ID: id})
			if err != nil {
				return fmt.Errorf("encode arguments: %w", err)
			}
			lines = append(append(lines, line...), '\n')
		}
		if err := c.send(ctx, lines, rights); err != nil {
			return err
		}
		for i, call := range calls {
			select {
			case a := <-replies[i]:
				call.Err = finish(call.Name, a, call.Result)
			case <-ctx.Done():
				call.Err = fmt.Errorf("%s: %w: %w", call.Name, ErrUnanswered, context.Cause(ctx))
			}
		}
		return nil
	}()
	if err != nil {
		for _, call := range calls {
			call.Err = fmt.Errorf("%s: %w", call.Name, err)
		}
	}
}

func finish(name string, a answer, result any) error {
	var refusal *Error
	if errors.As(a.err, &refusal) {
		refusal.Command = name
		return refusal
	}
	if a.err != nil {
		return fmt.Errorf("%s: %w", name, a.err)
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(a.result, result); err != nil {
		return fmt.Errorf("%s: %w: reply: %w", name, ErrProtocol, err)
	}
	return nil
}

// register makes a place for the reply before the command is sent.
func (c *Client) register() (uint64, <-chan answer, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cause != nil {
		return 0, nil, c.cause
	}
	c.lastID++
	reply := make(chan answer, 1)
	c.waiting[c.lastID] = reply
	return c.lastID, reply, nil
}

func (c *Client) forget(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.waiting, id)
}

// send writes one command whole. A context that ends in the middle of a line
// leaves the monitor with half of it, so it takes the connection along.
func (c *Client) send(ctx context.Context, line, rights []byte) error {
	select {
	case c.sending <- struct{}{}:
		defer func() { <-c.sending }()
	case <-ctx.Done():
		return fmt.Errorf("not sent: %w", context.Cause(ctx))
	case <-c.done:
		return c.why()
	}
	if ctx.Err() != nil {
		return fmt.Errorf("not sent: %w", context.Cause(ctx))
	}
	fired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		c.conn.SetWriteDeadline(time.Unix(1, 0))
		close(fired)
	})
	n, _, err := c.conn.WriteMsgUnix(line, rights, nil)
	if err == nil && n < len(line) {
		_, err = c.conn.Write(line[n:])
	}
	if !stop() {
		<-fired
		if err == nil { // the line was whole already: the deadline must not fell the next one
			err = c.conn.SetWriteDeadline(time.Time{})
		}
	}
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx) // says more than the deadline that it became
		}
		c.end(fmt.Errorf("%w: write: %w", ErrClosed, err))
		return fmt.Errorf("%w: write: %w", ErrUnanswered, err)
	}
	return nil
}

// read is the reader's goroutine: the only place that reads conn.
func (c *Client) read(in *lines) {
	defer close(c.done)
	defer close(c.events)
	for {
		line, err := in.next()
		if err != nil {
			c.end(fmt.Errorf("%w: read: %w", ErrClosed, err))
			return
		}
		m, err := decode(line)
		if err == nil {
			err = c.take(m)
		}
		if err != nil {
			c.end(fmt.Errorf("%w: %w", ErrClosed, err))
			return
		}
	}
}

// take hands one message to whom it belongs.
func (c *Client) take(m message) error {
	switch m.kind {
	case kindEvent:
		select {
		case c.events <- m.event:
		default:
			c.missed.Add(1)
		}
		return nil
	case kindReturn, kindError:
		return c.answer(m)
	default:
		return fmt.Errorf("%w: a second greeting", ErrProtocol)
	}
}

func (c *Client) answer(m message) error {
	if !m.hasID {
		return fmt.Errorf("%w: a reply without id: %s", ErrProtocol, bytes.TrimSpace([]byte(m.failure.Desc)))
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if m.id > c.lastID {
		return fmt.Errorf("%w: reply to command %d, which was never sent", ErrProtocol, m.id)
	}
	reply, ok := c.waiting[m.id]
	if !ok {
		return nil // its caller has given up
	}
	delete(c.waiting, m.id)
	a := answer{result: m.result}
	if m.kind == kindError {
		refusal := m.failure
		a.err = &refusal
	}
	reply <- a
	return nil
}

// end marks the connection as ended, once, and answers everybody who waits.
func (c *Client) end(cause error) {
	c.mu.Lock()
	first := c.cause == nil
	if first {
		c.cause = cause
	}
	waiting := c.waiting
	c.waiting = make(map[uint64]chan<- answer)
	c.mu.Unlock()
	for _, reply := range waiting {
		reply <- answer{err: fmt.Errorf("%w: %w", ErrUnanswered, cause)}
	}
	if first {
		c.conn.Close()
	}
}

func (c *Client) why() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cause == nil {
		return ErrClosed
	}
	return c.cause
}
