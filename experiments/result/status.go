package result

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

// Exit statuses of an experiment.
const (
	Measured    = 0   // whether its goals are met or not
	NotMeasured = 1   // standard error says why
	Misused     = 2   // the command line is wrong
	Interrupted = 130 // by Ctrl-C or SIGTERM; what it started is gone
)

// UsageError is a command line that says nothing sensible.
type UsageError struct{ Err error }

// Error implements error.
func (e *UsageError) Error() string { return e.Err.Error() }

// Unwrap gives what is wrong.
func (e *UsageError) Unwrap() error { return e.Err }

// Missing is what the machine lacks for an experiment.
type Missing []string

// Error names all of it in one line.
func (m Missing) Error() string { return "missing: " + strings.Join(m, "; ") }

// Body is an experiment. It returns when everything it started is gone, and does
// so soon after ctx ends.
type Body func(ctx context.Context, args []string, stdout, stderr io.Writer) error

// Main runs an experiment as a command and returns its exit status. The first
// Ctrl-C or SIGTERM ends ctx, the second the process.
func Main(name string, body Body) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)
	return status(ctx, name, body, os.Args[1:], os.Stdout, os.Stderr)
}

func status(ctx context.Context, name string, body Body, args []string, stdout, stderr io.Writer) int {
	err := body(ctx, args, stdout, stderr)
	var usage *UsageError
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		return Measured
	case errors.As(err, &usage):
		fmt.Fprintf(stderr, "%s: %v\n", name, err)
		return Misused
	case ctx.Err() != nil:
		// Most of what failed did so because of the interrupt. What remains may
		// not be hidden: clean-up that went wrong, too.
		fmt.Fprintf(stderr, "%s: interrupted: %v\n", name, err)
		return Interrupted
	default:
		fmt.Fprintf(stderr, "%s: %v\n", name, err)
		return NotMeasured
	}
}
