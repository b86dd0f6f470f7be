package dataplane

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"

	"fermata/nodeagent/fabric"
)

const (
	// needlessFor is how long the process goes on without an agent and without a guest
	// that runs, while it still has a cluster: long enough for an agent to start again.
	needlessFor = 10 * time.Second
	// lookEvery spaces the looks whether somebody needs it.
	lookEvery = time.Second
	// listenBudget bounds the wait for the address of links: a process whose place this
	// one takes may still hold it.
	listenBudget = 5 * time.Second
	// helloBudget bounds the first request of a connection.
	helloBudget = 10 * time.Second
)

// Server is the data plane: a fabric and whoever asks things of it.
//
// Concurrency: safe for use by several goroutines.
type Server struct {
	listener    *net.UnixListener // immutable
	inode       os.FileInfo       // immutable; of the socket's path
	log         hclog.Logger      // immutable
	incarnation string            // immutable
	needlessFor time.Duration     // immutable; needlessFor outside tests
	lookEvery   time.Duration     // immutable; lookEvery outside tests
	end         context.CancelFunc

	work sync.WaitGroup // connections, and the fabric

	mu       sync.Mutex
	settings Settings       // guarded by mu; of the fabric
	fabric   *fabric.Fabric // guarded by mu; nil before the first agent
	session  *session       // guarded by mu; nil: no agent
	guests   map[guestKey]*process
	needed   time.Time // guarded by mu; when somebody was last seen that needs the process
}

type guestKey struct{ cluster, guest string }

// session is one agent.
type session struct {
	token string
	conns map[*conn]bool // guarded by Server.mu
}

// NewServer answers on a listener. Whoever uses it must be of this process's user.
func NewServer(l *net.UnixListener, log hclog.Logger) (*Server, error) {
	info, err := os.Stat(l.Addr().String())
	if err != nil {
		return nil, fmt.Errorf("socket of the data plane: %w", err)
	}
	token, err := newToken()
	if err != nil {
		return nil, err
	}
	return &Server{
		listener: l, inode: info, log: log, incarnation: token, needlessFor: needlessFor, lookEvery: lookEvery,
		guests: map[guestKey]*process{}, needed: time.Now(),
	}, nil
}

func newToken() (string, error) {
	b := make([]byte, 8)
	if _, err := rand.Read(b); err != nil {
		return "", fmt.Errorf("draw name: %w", err)
	}
	return hex.EncodeToString(b), nil
}

// Serve answers until an agent ends it, ctx ends, or nobody needs it any more. It
// returns when no goroutine of it is left.
func (s *Server) Serve(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	s.end = func() { cancel(nil) }
	defer s.end()
	release := context.AfterFunc(ctx, func() { _ = s.listener.Close() })
	defer release()
	s.work.Go(func() { s.lookRound(ctx) })
	for {
		u, aerr := s.listener.AcceptUnix()
		if ctx.Err() != nil || errors.Is(aerr, net.ErrClosed) {
			closeAccepted(u)
			break
		}
		if aerr != nil { // out of descriptors, or a connection gone before it was taken
			s.log.Warn("connection not accepted", "error", aerr)
			select {
			case <-time.After(lookEvery / 20):
			case <-ctx.Done():
			}
			continue
		}
		s.work.Go(func() { s.serve(ctx, newConn(u), cancel) })
	}
	s.end()
	s.work.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.guests {
		p.close()
	}
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
		return cause
	}
	return nil
}

func closeAccepted(u *net.UnixConn) {
	if u != nil {
		_ = u.Close() // nobody has used it
	}
}

// lookRound ends the process once nobody needs it.
func (s *Server) lookRound(ctx context.Context) {
	ticker := time.NewTicker(s.lookEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if why := s.needless(); why != "" {
			s.log.Info("data plane ends", "reason", why)
			s.end()
			return
		}
	}
}

// needless says why nobody needs the process; empty: somebody does.
func (s *Server) needless() string {
	// Without its path no agent finds it again: the next one starts another.
	info, err := os.Stat(s.listener.Addr().String())
	orphaned := err != nil || !os.SameFile(info, s.inode)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.session != nil {
		s.needed = time.Now()
		return ""
	}
	if orphaned {
		return "its socket has gone, and its agent"
	}
	for _, p := range s.guests {
		if p.runs() {
			s.needed = time.Now()
			return ""
		}
	}
	if s.fabric != nil {
		if lives, err := s.fabric.Lives(); err == nil && len(lives) == 0 {
			return "no agent and no cluster"
		}
	}
	if time.Since(s.needed) < s.needlessFor {
		return ""
	}
	return "no agent and no guest that runs"
}

// serve answers one connection.
func (s *Server) serve(ctx context.Context, c *conn, fail context.CancelCauseFunc) {
	defer c.close()
	release := context.AfterFunc(ctx, c.close)
	defer release()
	if err := c.checkPeer(); err != nil {
		s.log.Warn("connection refused", "error", err)
		return
	}
	if err := c.unix.SetReadDeadline(time.Now().Add(helloBudget)); err != nil {
		return
	}
	var hello request
	if _, err := c.read(&hello); err != nil {
		return
	}
	if err := c.unix.SetReadDeadline(time.Time{}); err != nil {
		return
	}
	if hello.Op == opEnd {
		s.log.Info("data plane ends", "reason", "its agent asks for it")
		_ = c.write(reply{PID: os.Getpid()}, nil) // it ends either way
		s.end()
		return
	}
	ses, err := s.admit(ctx, hello, c, fail)
	answer := reply{Error: wireErrorOf(err), Version: protocolVersion, Incarnation: s.incarnation, PID: os.Getpid()}
	if ses != nil {
		answer.Session = ses.token
	}
	if werr := c.write(answer, nil); err != nil || werr != nil {
		return
	}
	s.answer(ctx, c)
	s.leave(ses, c, hello.Session == "")
}

// admit checks a hello and counts the connection to its session, which it may begin.
func (s *Server) admit(ctx context.Context, hello request, c *conn, fail context.CancelCauseFunc) (*session, error) {
	switch {
	case hello.Op != opHello:
		return nil, fmt.Errorf("%s before hello: %w", hello.Op, fabric.ErrMalformed)
	case hello.Version != protocolVersion:
		return nil, fmt.Errorf("version %d, not %d: %w", protocolVersion, hello.Version, errOtherVersion)
	case hello.Session == "":
		return s.begin(ctx, hello.Settings, c, fail)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.session == nil || s.session.token != hello.Session {
		return nil, fmt.Errorf("another agent has the data plane: %w", fabric.ErrClosed)
	}
	s.session.conns[c] = true
	return s.session, nil
}

// begin begins a session, in place of the one before.
func (s *Server) begin(ctx context.Context, settings Settings, c *conn, fail context.CancelCauseFunc) (*session, error) {
	token, err := newToken()
	if err != nil {
		return nil, err
	}
	if err := s.start(ctx, settings, fail); err != nil {
		return nil, err
	}
	s.mu.Lock()
	old := s.session
	s.mu.Unlock()
	if old != nil {
		s.endSession(old)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.session = &session{token: token, conns: map[*conn]bool{c: true}}
	return s.session, nil
}

// start makes the fabric, for the first agent, and takes over what may change of the
// settings from every other.
func (s *Server) start(ctx context.Context, settings Settings, fail context.CancelCauseFunc) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fabric != nil && s.settings.fixed() != settings.fixed() {
		return errOtherSettings
	}
	s.log.SetLevel(hclog.LevelFromString(settings.LogLevel))
	if s.fabric != nil {
		s.fabric.SetTotalBytes(settings.FrameBytes)
		return nil
	}
	l, err := listen(ctx, settings.Listen)
	if err != nil {
		return err
	}
	cfg, err := settings.fabricConfig(s.incarnation, l, s.log.Named("fabric"))
	var f *fabric.Fabric
	if err == nil {
		f, err = fabric.New(cfg)
	}
	if err != nil {
		return errors.Join(err, l.Close())
	}
	s.settings, s.fabric = settings, f
	s.work.Go(func() {
		if err := f.Run(ctx); err != nil {
			fail(err)
		}
	})
	return nil
}

func listen(ctx context.Context, address string) (net.Listener, error) {
	begun := time.Now()
	for {
		l, err := net.Listen("tcp", address)
		if err == nil {
			return l, nil
		}
		if !errors.Is(err, syscall.EADDRINUSE) || time.Since(begun) > listenBudget {
			return nil, fmt.Errorf("listen for links: %w", err)
		}
		select {
		case <-time.After(lookEvery / 20):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// leave takes a connection out of its session; without its first one the agent is gone.
func (s *Server) leave(ses *session, c *conn, first bool) {
	s.mu.Lock()
	delete(ses.conns, c)
	s.mu.Unlock()
	if first {
		s.endSession(ses)
	}
}

// endSession ends what an agent has begun. It does nothing when it was done.
func (s *Server) endSession(ses *session) {
	s.mu.Lock()
	if s.session != ses {
		s.mu.Unlock()
		return
	}
	s.session, s.needed = nil, time.Now()
	f := s.fabric
	for c := range ses.conns {
		c.close() // ends its call
	}
	s.mu.Unlock()
	f.Abandon()
}

// incoming is one request as it was read.
type incoming struct {
	request request
	frames  []byte
	files   []*os.File
}

// watchAfter is how long a request takes before its connection is watched for its end:
// the guest that most wait for stands still, and a goroutine more is a wake-up more.
const watchAfter = 5 * time.Millisecond

// answer answers requests until the connection ends, which also ends the one in
// progress.
func (s *Server) answer(ctx context.Context, c *conn) {
	for {
		in, err := readRequest(c)
		if err != nil {
			return
		}
		asked, cancel := context.WithCancel(ctx)
		watched := make(chan struct{})
		watch := time.AfterFunc(watchAfter, func() {
			defer close(watched)
			if _, err := c.in.Peek(1); err != nil { // returns with the next request, else
				cancel()
			}
		})
		err = s.do(asked, c, in)
		if !watch.Stop() {
			<-watched
		}
		cancel()
		if err != nil {
			return
		}
	}
}

func readRequest(c *conn) (in incoming, err error) {
	in.frames, err = c.read(&in.request)
	in.files = c.takeFiles()
	if err == nil && len(in.files) != in.request.Files {
		err = fmt.Errorf("%s with %d descriptors, not %d", in.request.Op, len(in.files), in.request.Files)
	}
	if err != nil {
		closeFiles(in.files)
	}
	return in, err
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		_ = f.Close() // nothing was written through it
	}
}

// do answers one request. Its error is one of the connection.
func (s *Server) do(ctx context.Context, c *conn, in incoming) error {
	s.mu.Lock()
	f := s.fabric
	s.mu.Unlock()
	if in.request.Op == opTrace {
		return c.write(reply{Error: wireErrorOf(trace(ctx, f, c, in.request))}, nil)
	}
	answer, frames, err := s.call(ctx, f, in)
	answer.Error = wireErrorOf(err)
	return c.write(answer, frames)
}
