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
	proc   *exec.Cmd            // guarded by mu; nil between a failed start and the next request
	pipe   *os.File             // guarded by mu; its standard input
	held   map[string]time.Time // guarded by mu; deadline by socket
	closed bool                 // guarded by mu
}

// Start runs command, which must call Serve on its standard input. The process
// has a session of its own, so that a signal to the agent's group spares it.
func Start(command []string, log *os.File) (*Guard, error) {
	g := &Guard{command: command, log: log, held: map[string]time.Time{}}
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
	for socket, deadline := range g.held {
		if err := g.write(holdLine(socket, time.Until(deadline))); err != nil {
			return err
		}
	}
	return nil
}

// Hold says that the guest behind the QMP socket is about to stop, and must
// run again after budget if Release does not come first. It returns once the
// request cannot be lost with the agent.
func (g *Guard) Hold(socket string, budget time.Duration) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	line := holdLine(socket, budget)
	if err := checkLine(line); err != nil {
		return err
	}
	g.held[socket] = time.Now().Add(budget)
	if err := g.say(line); err != nil {
		delete(g.held, socket)
		return err
	}
	return nil
}

// Release says that the guest behind the socket runs again.
func (g *Guard) Release(socket string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.held, socket)
	line := "release " + socket + "\n"
	if err := checkLine(line); err != nil {
		return err
	}
	return g.say(line)
}

func holdLine(socket string, budget time.Duration) string {
	return fmt.Sprintf("hold %d %s\n", max(budget.Milliseconds(), 0), socket)
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
	socket string
}

func parseRequest(line string) (request, error) {
	verb, rest, _ := strings.Cut(line, " ")
	switch verb {
	case "hold":
		ms, socket, _ := strings.Cut(rest, " ")
		n, err := strconv.ParseInt(ms, 10, 64)
		if err != nil || socket == "" {
			return request{}, fmt.Errorf("guard request %q: broken", line)
		}
		return request{hold: true, budget: time.Duration(n) * time.Millisecond, socket: socket}, nil
	case "release":
		return request{socket: rest}, nil
	default:
		return request{}, fmt.Errorf("guard request %q: unknown", line)
	}
}

// readRequests hands over what it reads until r ends, then closes requests.
func readRequests(r io.Reader, requests chan<- request) error {
	defer close(requests)
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, maxLine), maxLine)
	for s.Scan() {
		req, err := parseRequest(s.Text())
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
	due    time.Time // of the next attempt to let it run
	busy   bool      // an attempt is in progress
	err    error     // of the last attempt
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
	go func() { readErr <- readRequests(r, requests) }()

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
				go func() { attempts <- attempt{h, resume(ctx, h.socket)} }()
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
				held[req.socket] = &hold{socket: req.socket, due: time.Now().Add(req.budget)}
			default:
				delete(held, req.socket)
			}
		case a := <-attempts:
			busy--
			h := a.hold
			h.busy, h.err, h.due = false, a.err, time.Now().Add(againEvery)
			switch {
			case held[h.socket] != h: // released, or held anew
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

// Command returns how the running binary is called as a guard.
func Command() ([]string, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find own binary: %w", err)
	}
	return []string{exe, "guard"}, nil
}
