package dataplane

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"
)

const (
	// socketName is the name of the process's socket in the agent's state directory.
	socketName = "data-plane.sock"
	// listenerFD is the descriptor on which the process finds its listener: the first
	// of exec.Cmd's ExtraFiles.
	listenerFD = 3
	// connectBudget bounds Connect: a process that was asked to end, and the start of
	// another.
	connectBudget = 30 * time.Second
	// endBudget bounds the end of a process: that of all its connections.
	endBudget = 10 * time.Second
)

// Config says how an agent comes by its data plane.
type Config struct {
	Dir      string   // required: the agent's state directory; nobody else may use it
	Command  []string // required: runs Main with the socket's path as its last argument
	Settings Settings
	Log      *os.File     // where the process says what it has to say
	Logger   hclog.Logger // the agent's own
}

// Command returns how the running binary is called as a data plane.
func Command() ([]string, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find own binary: %w", err)
	}
	return []string{exe, "data-plane"}, nil
}

// NewClient returns a client that is not connected.
func NewClient(cfg Config) *Client { return &Client{cfg: cfg} }

// Connect takes over the data plane that runs, with all that is in it, or starts one.
// One that cannot be used, since it was started with other settings or by another
// version, is replaced: what it held is lost.
//
// Preconditions: no other agent uses the directory.
func (c *Client) Connect(ctx context.Context) error {
	c.Close()
	ctx, cancel := context.WithTimeoutCause(ctx, connectBudget, fmt.Errorf("no data plane within %s", connectBudget))
	defer cancel()
	socket := filepath.Join(c.cfg.Dir, socketName)
	a, err := begin(ctx, socket, c.cfg.Settings)
	switch {
	case err == nil:
		c.cfg.Logger.Info("data plane found", "pid", a.pid, "incarnation", a.incarnation)
	case errors.Is(err, errOtherSettings), errors.Is(err, errOtherVersion):
		c.cfg.Logger.Warn("data plane is replaced: frames in it are lost", "reason", err)
		if err := endProcess(ctx, socket); err != nil {
			return err
		}
		fallthrough
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE),
		errors.Is(err, io.EOF): // none, or one that is about to end
		if a, err = c.start(ctx, socket); err != nil {
			return fmt.Errorf("start data plane: %w", err)
		}
		c.cfg.Logger.Info("data plane started", "pid", a.pid, "incarnation", a.incarnation)
	default:
		return fmt.Errorf("connect to data plane at %s: %w", socket, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.present = a
	return nil
}

// start starts the process with a listener of ours, so that it can be reached at once.
func (c *Client) start(ctx context.Context, socket string) (*agency, error) {
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // it is the process's from now on
	defer l.Close()
	if err := os.Chmod(socket, 0o600); err != nil {
		return nil, err
	}
	f, err := l.File()
	if err != nil {
		return nil, err
	}
	defer f.Close()
	cmd := exec.Command(c.cfg.Command[0], append(c.cfg.Command[1:], socket)...)
	// A session of its own, so that a signal to the agent's group spares it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.ExtraFiles = []*os.File{f}
	cmd.Stdout, cmd.Stderr = c.cfg.Log, c.cfg.Log
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	// Of the listener that we hold, too, no connection would be refused after its end.
	_ = l.Close()
	_ = f.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	answered := make(chan struct{})
	defer close(answered)
	go func() {
		select {
		case err := <-ended:
			cancel(fmt.Errorf("process ended at once: %w", errors.Join(err, errors.New("see its output in the agent's log"))))
		case <-answered:
		}
	}()
	return begin(ctx, socket, c.cfg.Settings)
}

// End ends the process, with all that is in it, and waits for that.
func (c *Client) End(ctx context.Context) error {
	defer c.Close()
	return endProcess(ctx, filepath.Join(c.cfg.Dir, socketName))
}

// endProcess has the process at a socket end. None is no error.
func endProcess(ctx context.Context, socket string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, endBudget, fmt.Errorf("it does not end within %s", endBudget))
	defer cancel()
	var d net.Dialer
	u, err := d.DialContext(ctx, "unix", socket)
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("end data plane at %s: %w", socket, err)
	}
	con := newConn(u.(*net.UnixConn))
	defer con.close()
	answer, _, err := exchange(ctx, con, request{Op: opEnd}, nil)
	if err != nil {
		return fmt.Errorf("end data plane at %s: %w", socket, err)
	}
	pidfd, err := unix.PidfdOpen(answer.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("end data plane, process %d: %w", answer.PID, err)
	}
	defer unix.Close(pidfd)
	for p := (process{pidfd}); p.runs(); {
		select {
		case <-time.After(lookEvery / 100):
		case <-ctx.Done():
			return fmt.Errorf("end data plane, process %d: %w", answer.PID, context.Cause(ctx))
		}
	}
	return nil
}
