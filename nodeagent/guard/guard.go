// Package guard keeps the first promise when the agent itself dies or hangs: a
// guest that stands still for a checkpoint runs again.
//
// A small process of its own (Serve) reads from a pipe which guests the agent
// is about to stop, and until when. When the pipe closes, because the agent
// died, or when a deadline passes, because the agent hangs, it lets those
// guests run. It knows nothing of guests that stand still for other reasons,
// such as one that was restored and waits for its release.
//
// A guest whose writes are tracked waits at its next first write to a page for as
// long as the agent hangs. So the agent says that it lives once a second, and when
// nothing was heard of it for some seconds the guard drops all tracking. The agent
// finds that out by itself (package uffd, ErrRevoked).
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

	"fermata/vmm/uffd"
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

	// beatEvery is how often the agent says that it lives, and misses after how many
	// of the guard's own looks without a word it counts as hanging. They are looks
	// and not a time: what makes the whole host stand still does so to both.
	beatEvery = time.Second
	misses    = 5

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
	watch  map[int]string  // guarded by mu; "FD RANGES" by the number that Watch returned
	last   int             // guarded by mu; the newest of these numbers
	closed bool            // guarded by mu

	stop  chan struct{} // closed by Close
	beats sync.WaitGroup
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
	g := &Guard{command: command, log: log, held: map[string]held{}, watch: map[int]string{}, stop: make(chan struct{})}
	if err := g.start(); err != nil {
		return nil, err
	}
	g.beats.Go(g.beat)
	return g, nil
}

// beat says that we live, as long as somebody wants to know.
func (g *Guard) beat() {
	tick := time.NewTicker(beatEvery)
	defer tick.Stop()
	for {
		select {
		case <-g.stop:
			return
		case <-tick.C:
		}
		g.mu.Lock()
		if len(g.watch) > 0 && !g.closed {
			_ = g.say("beat\n") // a guard that does not take it is replaced, again in a second
		}
		g.mu.Unlock()
	}
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
	for id, what := range g.watch {
		if err := g.write(watchLine(id, what)); err != nil {
			return err
		}
	}
	return nil
}

func watchLine(id int, what string) string { return fmt.Sprintf("watch %d %s\n", id, what) }

// Watch says that writes to the ranges are tracked by the userfaultfd of number fd
// in this process. id is for Unwatch: the descriptor's number may be another's by
// then.
func (g *Guard) Watch(fd int, ranges []uffd.Range) (id int, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	var list []string
	for _, r := range ranges {
		list = append(list, fmt.Sprintf("%x+%x", r.Addr, r.Len))
	}
	g.last++
	what := fmt.Sprintf("%d %s", fd, strings.Join(list, ","))
	line := watchLine(g.last, what)
	if err := checkLine(line); err != nil {
		return 0, err
	}
	g.watch[g.last] = what
	if err := g.say(line); err != nil {
		delete(g.watch, g.last)
		return 0, err
	}
	return g.last, nil
}

// Unwatch says that they are not any more.
func (g *Guard) Unwatch(id int) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, known := g.watch[id]; !known {
		return nil
	}
	delete(g.watch, id)
	return g.say(fmt.Sprintf("unwatch %d\n", id))
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
	defer g.beats.Wait()
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil
	}
	g.closed = true
	close(g.stop)
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
	verb   string // hold, release, watch, unwatch or beat
	budget time.Duration
	id     int // of a watch
	fd     int // in the agent; -1: none
	socket string
	ranges []uffd.Range
}

func parseRequest(line string) (r request, err error) {
	broken := fmt.Errorf("guard request %q: broken", line)
	var rest string
	r.verb, rest, _ = strings.Cut(line, " ")
	switch r.verb {
	case "hold":
		ms, rest, _ := strings.Cut(rest, " ")
		fd, socket, _ := strings.Cut(rest, " ")
		n, err := strconv.ParseInt(ms, 10, 64)
		if err != nil || socket == "" {
			return r, broken
		}
		if r.fd, err = strconv.Atoi(fd); err != nil {
			return r, broken
		}
		r.budget, r.socket = time.Duration(n)*time.Millisecond, socket
	case "release":
		r.socket = rest
	case "watch":
		id, rest, _ := strings.Cut(rest, " ")
		fd, ranges, _ := strings.Cut(rest, " ")
		var idErr error
		r.id, idErr = strconv.Atoi(id)
		if r.fd, err = strconv.Atoi(fd); err != nil || idErr != nil {
			return r, broken
		}
		for text := range strings.SplitSeq(ranges, ",") {
			var one uffd.Range
			if _, err := fmt.Sscanf(text, "%x+%x", &one.Addr, &one.Len); err != nil {
				return r, broken
			}
			r.ranges = append(r.ranges, one)
		}
	case "unwatch":
		if r.id, err = strconv.Atoi(rest); err != nil {
			return r, broken
		}
	case "beat":
	default:
		return r, fmt.Errorf("guard request %q: unknown", line)
	}
	return r, nil
}

// copyOf copies a descriptor out of the agent.
func copyOf(agent, fd int) (*os.File, error) {
	pidfd, err := unix.PidfdOpen(agent, 0)
	if err != nil {
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	defer unix.Close(pidfd)
	own, err := unix.PidfdGetfd(pidfd, fd, 0)
	if err != nil {
		return nil, os.NewSyscallError("pidfd_getfd", err)
	}
	return os.NewFile(uintptr(own), "monitor connection of the agent"), nil
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

// hold is one guest that the guard lets run, or one whose tracking it drops.
type hold struct {
	key   string
	due   time.Time // of the next attempt
	busy  bool      // an attempt is in progress
	err   error     // of the last attempt
	do    func(ctx context.Context, agentLives bool) error
	watch bool // due when the agent hangs, and once
}

type attempt struct {
	hold *hold
	err  error
}

// Rescue is what a guard does. The functions must be idempotent and bounded in
// time, and are called by several goroutines.
type Rescue struct {
	// Resume lets the guest behind a QMP socket run.
	Resume func(ctx context.Context, socket string) error
	// Revoke is uffd.Revoke.
	Revoke func(holder, fd int, ranges []uffd.Range) error
}

// resumeThrough lets a guest run. While the agent, which hangs, keeps the monitor
// to itself, it says so through a copy of the agent's connection. Nobody reads the
// answer then, so whether it was obeyed is not known, and it is said again until
// the agent has something to say.
func (r Rescue) resumeThrough(ctx context.Context, agent, fd int, socket string, agentLives bool) error {
	if fd < 0 || !agentLives {
		return r.Resume(ctx, socket)
	}
	conn, err := copyOf(agent, fd)
	if err != nil {
		return err
	}
	// Id 0 is of no command of ours, and its reply of no interest (package qmp).
	_, err = conn.WriteString(`{"execute":"cont","id":0}` + "\n")
	return errors.Join(err, conn.Close())
}

// Serve obeys the requests on r until it ends, then resumes what is still held
// and returns. What it could not do is tried again, after the end of r for
// lastBudget; then the error says what could not be done.
func Serve(ctx context.Context, r io.Reader, rescue Rescue) error {
	requests := make(chan request)
	readErr := make(chan error, 1)
	agent := os.Getppid()
	go func() { readErr <- readRequests(r, requests) }()

	holds := map[string]*hold{}
	attempts := make(chan attempt)
	missed, looked := 0, time.Now() // looks since the agent's last word; the newest of them
	var end time.Time               // zero while the agent lives
	var lost []error
	wake := time.NewTimer(0)
	defer wake.Stop()
	for busy := 0; requests != nil || len(holds) > 0 || busy > 0; {
		now := time.Now()
		next := time.Hour
		for _, h := range holds {
			if h.watch {
				next = min(next, beatEvery)
			}
			switch left := h.due.Sub(now); {
			case h.busy, h.watch && missed < misses:
			case left > 0:
				next = min(next, left)
			default:
				h.busy = true
				busy++
				lives := requests != nil
				go func() { attempts <- attempt{h, h.do(ctx, lives)} }()
			}
		}
		wake.Reset(next)
		select {
		case req, ok := <-requests:
			if !ok {
				requests, end = nil, time.Now().Add(lastBudget)
				for key, h := range holds {
					h.due = time.Time{}
					if h.watch { // its userfaultfd died with the agent
						delete(holds, key)
					}
				}
				break
			}
			missed, looked = 0, time.Now()
			switch req.verb {
			case "hold":
				holds[req.socket] = &hold{
					key: req.socket, due: looked.Add(req.budget),
					do: func(ctx context.Context, lives bool) error {
						return rescue.resumeThrough(ctx, agent, req.fd, req.socket, lives)
					},
				}
			case "release":
				delete(holds, req.socket)
			case "watch":
				key := watchKey(req.id)
				holds[key] = &hold{key: key, watch: true, do: func(context.Context, bool) error {
					return rescue.Revoke(agent, req.fd, req.ranges)
				}}
			case "unwatch":
				delete(holds, watchKey(req.id))
			}
		case a := <-attempts:
			busy--
			h := a.hold
			h.busy, h.err, h.due = false, a.err, time.Now().Add(againEvery)
			switch {
			case holds[h.key] != h: // released, or held anew
			case h.watch:
				if h.err == nil {
					delete(holds, h.key)
				}
			case requests != nil: // the agent may stop it yet
			case h.err == nil:
				delete(holds, h.key)
			case time.Now().After(end):
				delete(holds, h.key)
				lost = append(lost, h.err)
			}
		case <-wake.C:
			if now := time.Now(); now.Sub(looked) >= beatEvery {
				missed, looked = missed+1, now
			}
		}
	}
	return errors.Join(append(lost, <-readErr)...)
}

// watchKey is no path of a socket.
func watchKey(id int) string { return fmt.Sprintf("watch %d", id) }

// Command returns how the running binary is called as a guard.
func Command() ([]string, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find own binary: %w", err)
	}
	return []string{exe, "guard"}, nil
}
