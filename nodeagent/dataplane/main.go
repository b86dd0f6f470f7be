package dataplane

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"

	"github.com/hashicorp/go-hclog"
)

// Main is the process: it serves the listener that it was started with, at socket, until
// nobody needs it. Signals that end an agent do not end it. It is for processes that do
// nothing else.
func Main(ctx context.Context, socket string) error {
	// SIGPIPE: the agent whose log it writes to may be gone.
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	f := os.NewFile(listenerFD, socket)
	if f == nil {
		return errors.New("data plane: no listener was handed over: agents start this process, it is of no use by hand")
	}
	l, err := net.FileListener(f)
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("data plane: no listener was handed over: agents start this process, it is of no use by hand: %w", err)
	}
	u, ok := l.(*net.UnixListener)
	if !ok || u.Addr().String() != socket {
		return fmt.Errorf("data plane: the listener is at %s, not at %s", l.Addr(), socket)
	}
	s, err := NewServer(u, hclog.New(&hclog.LoggerOptions{Name: "data-plane", Output: os.Stderr}))
	if err != nil {
		return err
	}
	return s.Serve(ctx)
}
