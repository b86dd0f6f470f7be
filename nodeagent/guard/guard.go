// Package guard keeps the first promise when the agent itself dies or hangs: a
// guest that stands still for a checkpoint runs again.
//
// A small process of its own (Serve) reads from a pipe which guests the agent
// is about to stop, and until when. When the pipe closes, because the agent
// died, or when a deadline passes, because the agent hangs, it lets those
// guests run. It knows nothing of guests that stand still for other reasons,
// such as one that was restored and waits for its release.
//
// An agent that hangs may go on at any moment and stop a guest that the guard
// has let run, so the guard goes on resuming until the agent says Release. The
// agent must therefore check, after it has saved a guest and before it counts on
// what it saved, that the guest still stands still.
package guard

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxLine bounds one request: a file name is at most 4,096 bytes (PATH_MAX).
	maxLine = 4096 + 64

	// sayBudget bounds the writing of one request. The pipe holds hundreds of
	// them, so a guard that does not take one in this time hangs, and is replaced.
	sayBudget = time.Second

	// againEvery spaces the attempts to let one guest run.
	againEvery = time.Second

	// lastBudget bounds the attempts once the agent is gone. A guest that cannot
	// be resumed in this time has ended, or its monitor is broken for good.
	lastBudget = time.Minute

	// closeBudget bounds the wait for the guard's end. It is longer than
	// lastBudget: a guard that is at work is not killed.
	closeBudget = lastBudget + 15*time.Second
)

// Guard is the agent's end. A guard process that died or hangs is replaced, and
// the new one told what is held.
//
// Concurrency: safe for use by several goroutines.
type Guard struct {
	command []string // immutable
	log     *os.File // immutable

	mu     sync.Mutex
	proc   *exec.Cmd       // guarded by mu; nil between a failed start and the next request
	pipe   *os.File        // guarded by mu; its standard input
	held   map[string]held // guarded by mu; by socket
	closed bool            // guarded by mu
}

// held is one guest that the guard was told of.
type held struct {
	deadline time.Time
	conn     *os.File // the agent's connection to the guest's monitor; nil: the guard makes its own
}

func (h held) line(socket string, budget time.Duration) string {
	return fmt.Sprintf("hold %d %d %s\n", max(budget.Milliseconds(), 0), number(h.conn), socket)
}

// number returns a file's descriptor, -1 for none. File.Fd would make the open
// file, which is the connection's too, a blocking one.
func number(f *os.File) int {
	fd := -1
	if f == nil {
		return fd
	}
	if raw, err := f.SyscallConn(); err == nil {
		_ = raw.Control(func(n uintptr) { fd = int(n) }) // fails once f is closed
	}
	return fd
}

// Start runs command, which must call Serve on its standard input. The process
// has a session of its own, so that a signal to the agent's group spares it.
func Start(command []string, log *os.File) (*Guard, error) {
	g := &Guard{command: command, log: log, held: map[string]held{}}
	if err := g.start(); err != nil {
		return nil, err
	}
	return g, nil
}

// start makes the process and tells it what is held.
//
// Preconditions: mu is held, or nobody else has g yet; proc is nil.
func (g *Guard) start() error {
	r, w, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("pipe to guard: %w", err)
	}
	defer r.Close()
	cmd := exec.Command(g.command[0], g.command[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Stdin, cmd.Stderr = r, g.log
	if err := cmd.Start(); err != nil {
		return errors.Join(fmt.Errorf("start guard: %w", err), w.Close())
	}
	g.proc, g.pipe = cmd, w
	for socket, h := range g.held {
		if err := g.write(h.line(socket, time.Until(h.deadline))); err != nil {
			return err
		}
	}
	return nil
}

// Hold says that the guest behind the QMP socket is about to stop, and must
// run again after budget if Release does not come first. It returns once the
// request cannot be lost with the agent.
//
// conn is for a monitor that serves nobody else while the agent is connected: a
// descriptor of that connection, which is the Guard's from now on; else nil.
func (g *Guard) Hold(socket string, conn *os.File, budget time.Duration) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.forget(socket)
	h := held{deadline: time.Now().Add(budget), conn: conn}
	g.held[socket] = h
	line := h.line(socket, budget)
	err := checkLine(line)
	if err == nil {
		err = g.say(line)
	}
	if err != nil {
		g.forget(socket)
	}
	return err
}

// Release says that the guest behind the socket runs again.
func (g *Guard) Release(socket string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.forget(socket)
	line := "release " + socket + "\n"
	if err := checkLine(line); err != nil {
		return err
	}
	return g.say(line)
}

// forget drops what is held of a socket.
//
// Preconditions: mu is held.
func (g *Guard) forget(socket string) {
	if conn := g.held[socket].conn; conn != nil {
		_ = conn.Close() // nothing was written through it
	}
	delete(g.held, socket)
}

func checkLine(line string) error {
	if len(line) > maxLine || strings.Count(line, "\n") != 1 {
		return fmt.Errorf("guard request %q: too long or broken", line)
	}
	return nil
}

// say writes a request; a guard that does not take it is replaced by one that
// is told all that is held.
//
// Preconditions: mu is held; held says what line says.
func (g *Guard) say(line string) error {
	if g.closed {
		return errors.New("guard is closed")
	}
	if g.proc != nil {
		err := g.write(line)
		if err == nil {
			return nil
		}
		g.drop()
	}
	return g.start()
}

func (g *Guard) write(line string) error {
	if err := g.pipe.SetWriteDeadline(time.Now().Add(sayBudget)); err != nil {
		return fmt.Errorf("tell guard: %w", err)
	}
	if _, err := io.WriteString(g.pipe, line); err != nil {
		return fmt.Errorf("tell guard: %w", err)
	}
	return nil
}

// drop ends a guard that is of no use any more.
//
// Preconditions: mu is held.
func (g *Guard) drop() {
	_ = g.proc.Process.Kill() // it may have ended
	_ = g.pipe.Close()
	_ = g.proc.Wait() // says that it was killed
	g.proc, g.pipe = nil, nil
}

// Close ends the guard; guests still held run again first.
func (g *Guard) Close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil
	}
	g.closed = true
	defer func() {
		for socket := range g.held {
			g.forget(socket)
		}
	}()
	if g.proc == nil {
		return nil
	}
	err := g.pipe.Close()
	hung := time.AfterFunc(closeBudget, func() { _ = g.proc.Process.Kill() })
	defer hung.Stop()
	if waitErr := g.proc.Wait(); waitErr != nil {
		err = errors.Join(err, fmt.Errorf("end of guard: %w", waitErr))
	}
	return err
}

// request is one line of the pipe.
type request struct {
	hold   bool
	budget time.Duration
	conn   *os.File // a copy of the agent's; nil: none
	socket string
}

func parseRequest(agent int, line string) (request, error) {
	verb, rest, _ := strings.Cut(line, " ")
	switch verb {
	case "hold":
		ms, rest, _ := strings.Cut(rest, " ")
		fd, socket, _ := strings.Cut(rest, " ")
		n, err := strconv.ParseInt(ms, 10, 64)
		conn, fdErr := strconv.Atoi(fd)
		if err != nil || fdErr != nil || socket == "" {
			return request{}, fmt.Errorf("guard request %q: broken", line)
		}
		return request{hold: true, budget: time.Duration(n) * time.Millisecond, conn: copyOf(agent, conn), socket: socket}, nil
	case "release":
		return request{socket: rest}, nil
	default:
		return request{}, fmt.Errorf("guard request %q: unknown", line)
	}
}

// copyOf copies a descriptor out of the agent. It returns nil when there is none
// or the agent has died: then the monitor is free for a connection of our own.
func copyOf(agent, fd int) *os.File {
	if fd < 0 {
		return nil
	}
	pidfd, err := unix.PidfdOpen(agent, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(pidfd)
	own, err := unix.PidfdGetfd(pidfd, fd, 0)
	if err != nil {
		return nil
	}
	return os.NewFile(uintptr(own), "monitor connection of the agent")
}

// readRequests hands over what it reads until r ends, then closes requests.
func readRequests(agent int, r io.Reader, requests chan<- request) error {
	defer close(requests)
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, maxLine), maxLine)
	for s.Scan() {
		req, err := parseRequest(agent, s.Text())
		if err != nil {
			return err
		}
		requests <- req
	}
	return s.Err()
}

// hold is one guest that the guard watches.
type hold struct {
	socket string
	conn   *os.File  // the agent's, as long as it lives; nil: none
	due    time.Time // of the next attempt to let it run
	busy   bool      // an attempt is in progress
	err    error     // of the last attempt
}

// run lets the guest run: through the agent's connection while the agent, which
// hangs, keeps the monitor to itself. Nobody reads the answer, so whether it was
// obeyed is not known, and it is said again until the agent has something to say.
func (h *hold) run(ctx context.Context, resume func(context.Context, string) error) error {
	if h.conn == nil {
		return resume(ctx, h.socket)
	}
	// Id 0 is of no command of ours, and its reply of no interest (package qmp).
	_, err := h.conn.WriteString(`{"execute":"cont","id":0}` + "\n")
	return err
}

// disconnect gives the copy of the agent's connection up.
//
// Preconditions: no attempt is in progress.
func (h *hold) disconnect() {
	if h.conn != nil {
		_ = h.conn.Close()
		h.conn = nil
	}
}

type attempt struct {
	hold *hold
	err  error
}

// Serve obeys the requests on r until it ends, then resumes what is still held
// and returns. resume must be idempotent and bounded in time, and is called by
// several goroutines. What it could not do is tried again, after the end of r
// for lastBudget; then the error says what could not be done.
func Serve(ctx context.Context, r io.Reader, resume func(ctx context.Context, socket string) error) error {
	requests := make(chan request)
	readErr := make(chan error, 1)
	agent := os.Getppid()
	go func() { readErr <- readRequests(agent, r, requests) }()

	held := map[string]*hold{}
	attempts := make(chan attempt)
	var end time.Time // zero while the agent lives
	var lost []error
	wake := time.NewTimer(0)
	defer wake.Stop()
	for busy := 0; requests != nil || len(held) > 0 || busy > 0; {
		now := time.Now()
		next := time.Hour
		for _, h := range held {
			switch left := h.due.Sub(now); {
			case h.busy:
			case left > 0:
				next = min(next, left)
			default:
				h.busy = true
				busy++
				if requests == nil {
					h.disconnect() // the agent is dead, and the monitor free once we are off, too
				}
				go func() { attempts <- attempt{h, h.run(ctx, resume)} }()
			}
		}
		wake.Reset(next)
		select {
		case req, ok := <-requests:
			switch {
			case !ok:
				requests, end = nil, time.Now().Add(lastBudget)
				for _, h := range held {
					h.due = time.Time{}
				}
			case req.hold:
				drop(held, req.socket)
				held[req.socket] = &hold{socket: req.socket, conn: req.conn, due: time.Now().Add(req.budget)}
			default:
				drop(held, req.socket)
			}
		case a := <-attempts:
			busy--
			h := a.hold
			h.busy, h.err, h.due = false, a.err, time.Now().Add(againEvery)
			switch {
			case held[h.socket] != h: // released, or held anew
				h.disconnect()
			case requests != nil: // the agent may stop it yet
			case h.err == nil:
				delete(held, h.socket)
			case time.Now().After(end):
				delete(held, h.socket)
				lost = append(lost, h.err)
			}
		case <-wake.C:
		}
	}
	return errors.Join(append(lost, <-readErr)...)
}

// drop forgets a guest; an attempt in progress keeps its connection to its end.
func drop(held map[string]*hold, socket string) {
	if h := held[socket]; h != nil && !h.busy {
		h.disconnect()
	}
	delete(held, socket)
}

// Command returns how the running binary is called as a guard.
func Command() ([]string, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find own binary: %w", err)
	}
	return []string{exe, "guard"}, nil
}
