// Package app is the edge between a command line and the process: it owns the
// signals, the one line an error becomes, and the exit status.
//
// A command gets its world as an Env and returns an error. It never prints an
// error and never ends the process; Main does both, once.
package app

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/term"

	"fermata/protocol/text"
)

// Name is how the program calls itself in messages.
const Name = "fermata"

// ErrInterrupted is the cause of a context that a signal cancelled.
var ErrInterrupted = errors.New("interrupted")

// Env is what a command may touch of its process.
type Env struct {
	Args     []string // without the program's name
	Stdin    io.Reader
	Stdout   io.Writer // the result, nothing else
	Stderr   io.Writer // progress, warnings, the error; any goroutine may write
	Terminal bool      // Stderr is a terminal: progress may draw on it
	Asks     bool      // Stdin is a terminal, too: somebody may be asked
	Getenv   func(string) string

	ownProcess bool // the process belongs to this program

	mu          sync.Mutex
	onInterrupt string    // guarded by mu
	notices     io.Writer // guarded by mu; nil: Stderr
}

// Func is a program: it gets its world and returns its error. ctx ends at the
// first interrupt, with ErrInterrupted as the cause.
type Func func(ctx context.Context, env *Env) error

// Main runs run until it returns or the process is interrupted twice, prints
// its error as one line, and returns the exit status.
func Main(run Func, args []string, stdout, stderr io.Writer) int {
	env := &Env{
		Args: args, Stdin: os.Stdin, Stdout: stdout, Stderr: serial(stderr),
		Terminal: isTerminal(stderr), Asks: isTerminal(stderr) && term.IsTerminal(int(os.Stdin.Fd())), Getenv: os.Getenv, ownProcess: true,
	}
	// Two, because a second interrupt must not be lost while the first is told.
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	return supervise(run, env, signals)
}

// supervise is Main without the process. See TestSupervise.
func supervise(run Func, env *Env, signals <-chan os.Signal) int {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	done := make(chan error, 1)
	go func() { done <- run(ctx, env) }()

	interrupted := false
	for {
		select {
		case err := <-done:
			if err == nil {
				return 0
			}
			writeError(env, err)
			return ExitCode(err)
		case <-signals:
			if interrupted {
				env.Notice("interrupted twice: leaving at once")
				return ExitInterrupted
			}
			interrupted = true
			env.Notice("%s; interrupt again to leave at once", env.interruptNote())
			cancel(ErrInterrupted)
		}
	}
}

// OnInterrupt says what the first interrupt means to the running command, such
// as "the round is aborted, the guests keep running".
func (e *Env) OnInterrupt(note string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.onInterrupt = note
}

func (e *Env) interruptNote() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.onInterrupt == "" {
		return "interrupted"
	}
	return "interrupted: " + e.onInterrupt
}

// Notice prints one line for the operator beside the result.
//
// Concurrency: any goroutine.
func (e *Env) Notice(format string, args ...any) {
	line := fmt.Sprintf(Name+": "+format+"\n", args...)
	e.mu.Lock()
	w := e.notices
	e.mu.Unlock()
	if w == nil {
		w = e.Stderr
	}
	io.WriteString(w, line) // a notice that cannot be shown changes nothing
}

// RedirectNotices sends notices to w, which knows how to keep them apart from
// what is drawn on the terminal, until restore is called.
func (e *Env) RedirectNotices(w io.Writer) (restore func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.notices = w
	return func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.notices = nil
	}
}

// serial makes w fit for several goroutines: the command and the signals both
// write. A file is so already, and stays what it is for terminals.
func serial(w io.Writer) io.Writer {
	if _, isFile := w.(*os.File); isFile {
		return w
	}
	return &serialWriter{w: w}
}

type serialWriter struct {
	mu sync.Mutex
	w  io.Writer // guarded by mu
}

func (s *serialWriter) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.w.Write(p)
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// oneLine keeps an error that joins several causes on one line.
func oneLine(err error) string {
	var parts []string
	for line := range strings.Lines(err.Error()) {
		if line = strings.TrimSpace(line); line != "" {
			parts = append(parts, text.Shown(line))
		}
	}
	return strings.Join(parts, "; ")
}
