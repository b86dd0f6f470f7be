// Package guard keeps the first promise when the agent itself dies or hangs: a
// guest that stands still for a checkpoint runs again.
//
// A small process of its own (Serve) reads from a pipe which guests the agent
// is about to stop, and until when. When the pipe closes, because the agent
// died, or when a deadline passes, because the agent hangs, it lets those
// guests run. It knows nothing of guests that stand still for other reasons,
// such as one that was restored and waits for its release.
//
// The agent must therefore check, after it has saved a guest and before it
// counts on what it saved, that the guest still stands still.
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

// maxLine bounds one request; a socket path is at most 108 bytes (unix(7)).
const maxLine = 512

// Guard is the agent's end.
//
// Concurrency: safe for use by several goroutines.
type Guard struct {
	cmd *exec.Cmd

	mu   sync.Mutex
	pipe io.WriteCloser // guarded by mu
}

// Start runs command, which must call Serve on its standard input. The process
// has a session of its own, so that a signal to the agent's group spares it.
func Start(command []string, log io.Writer) (*Guard, error) {
	cmd := exec.Command(command[0], command[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Stderr = log
	pipe, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("pipe to guard: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start guard: %w", err)
	}
	return &Guard{cmd: cmd, pipe: pipe}, nil
}

// Hold says that the guest behind the QMP socket is about to stop, and must
// run again after budget if Release does not come first. It returns once the
// request cannot be lost with the agent.
func (g *Guard) Hold(socket string, budget time.Duration) error {
	return g.say(fmt.Sprintf("hold %d %s\n", budget.Milliseconds(), socket))
}

// Release says that the guest behind the socket runs again.
func (g *Guard) Release(socket string) error { return g.say("release " + socket + "\n") }

func (g *Guard) say(line string) error {
	if len(line) > maxLine || strings.Count(line, "\n") != 1 {
		return fmt.Errorf("guard request %q: too long or broken", line)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, err := io.WriteString(g.pipe, line); err != nil {
		return fmt.Errorf("tell guard: %w", err)
	}
	return nil
}

// Close ends the guard; guests still held run again first.
func (g *Guard) Close() error {
	g.mu.Lock()
	err := g.pipe.Close()
	g.mu.Unlock()
	return errors.Join(err, g.cmd.Wait())
}

// Serve obeys the requests on r until it ends, then resumes what is still held
// and returns. resume must be idempotent and bounded in time.
func Serve(ctx context.Context, r io.Reader, resume func(ctx context.Context, socket string) error) error {
	type request struct {
		hold   bool
		budget time.Duration
		socket string
	}
	requests := make(chan request)
	scanErr := make(chan error, 1)
	go func() {
		defer close(requests)
		s := bufio.NewScanner(r)
		s.Buffer(make([]byte, maxLine), maxLine)
		for s.Scan() {
			verb, rest, _ := strings.Cut(s.Text(), " ")
			switch verb {
			case "hold":
				ms, socket, _ := strings.Cut(rest, " ")
				n, err := strconv.ParseInt(ms, 10, 64)
				if err != nil || socket == "" {
					scanErr <- fmt.Errorf("guard request %q: broken", s.Text())
					return
				}
				requests <- request{hold: true, budget: time.Duration(n) * time.Millisecond, socket: socket}
			case "release":
				requests <- request{socket: rest}
			default:
				scanErr <- fmt.Errorf("guard request %q: unknown", s.Text())
				return
			}
		}
		scanErr <- s.Err()
	}()

	held := map[string]time.Time{} // socket -> deadline
	var errs []error
	wake := time.NewTimer(time.Hour)
	defer wake.Stop()
	for {
		next := time.Hour
		for socket, deadline := range held {
			if left := time.Until(deadline); left <= 0 {
				delete(held, socket)
				errs = append(errs, resume(ctx, socket))
			} else {
				next = min(next, left)
			}
		}
		wake.Reset(next)
		select {
		case req, ok := <-requests:
			if !ok {
				for socket := range held {
					errs = append(errs, resume(ctx, socket))
				}
				return errors.Join(append(errs, <-scanErr)...)
			}
			if req.hold {
				held[req.socket] = time.Now().Add(req.budget)
			} else {
				delete(held, req.socket)
			}
		case <-wake.C:
		}
	}
}

// Command returns how the running binary is called as a guard.
func Command() ([]string, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find own binary: %w", err)
	}
	return []string{exe, "guard"}, nil
}
