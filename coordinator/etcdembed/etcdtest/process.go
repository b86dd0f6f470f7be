package etcdtest

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"fermata/protocol/mustrun"
)

// Process is an etcd of one member as a process of its own.
type Process struct {
	Endpoint string // immutable
	dir      string // immutable
	peer     string // immutable

	cmd *exec.Cmd // owned by the test's goroutine; nil while killed
	log *bytes.Buffer
}

// StartProcess starts the machine's etcd; the test is skipped where there is
// none. It is killed at the end of the test.
func StartProcess(t testing.TB) *Process {
	t.Helper()
	mustrun.Need(t, mustrun.Etcd)
	p := &Process{
		Endpoint: "http://" + freeAddress(t),
		peer:     "http://" + freeAddress(t),
		dir:      filepath.Join(t.TempDir(), "etcd"),
	}
	p.Restart(t)
	t.Cleanup(func() {
		if p.cmd != nil {
			p.Kill(t)
		}
		if t.Failed() {
			t.Logf("etcd: %s", p.log)
		}
	})
	return p
}

// freeAddress returns a loopback address that nobody uses now.
func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

// Restart starts the process, also after a Kill, on the same data, and waits
// until it answers.
//
// Preconditions: it does not run.
func (p *Process) Restart(t testing.TB) {
	t.Helper()
	p.log = &bytes.Buffer{}
	p.cmd = exec.Command("etcd", "--name", "one", "--data-dir", p.dir, "--logger", "zap", "--log-level", "error",
		"--listen-client-urls", p.Endpoint, "--advertise-client-urls", p.Endpoint,
		"--listen-peer-urls", p.peer, "--initial-advertise-peer-urls", p.peer,
		"--initial-cluster", "one="+p.peer,
		"--heartbeat-interval", "20", "--election-timeout", "200")
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c := Dial(t, p.Endpoint)
	ctx, cancel := context.WithTimeout(t.Context(), startBudget)
	defer cancel()
	if err := untilAnswer(ctx, c); err != nil {
		t.Fatalf("etcd does not answer: %v", err)
	}
}

func untilAnswer(ctx context.Context, c *clientv3.Client) error {
	for {
		asked, cancel := context.WithTimeout(ctx, time.Second)
		_, err := c.Get(asked, "ready")
		cancel()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		}
	}
}

// Kill ends the process without warning.
//
// Preconditions: it runs.
func (p *Process) Kill(t testing.TB) {
	t.Helper()
	if err := p.cmd.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = p.cmd.Wait() // killed, and says so
	p.cmd = nil
}
