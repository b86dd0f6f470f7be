package main

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"fermata/experiments/labrun"
	"fermata/imageio/vfs/faultfs"
)

// standsStill is how long an agent that is stopped stays so.
const standsStill = 5 * time.Second

// fault is what goes wrong. begin makes it so; heal, which may be nil, ends it, when the
// command has ended or the fault has lasted for lasts, whichever comes first.
type fault struct {
	name  string
	lasts time.Duration
	begin func(ctx context.Context, b *bench) (heal func() error, err error)
}

var faults = []fault{
	{"kill agent", 0, func(_ context.Context, b *bench) (func() error, error) {
		return nil, b.signalAgent(syscall.SIGKILL)
	}},
	{"kill leader", 0, func(_ context.Context, b *bench) (func() error, error) {
		pid, err := b.lab.CoordinatorPID()
		if err != nil {
			return nil, err
		}
		return nil, syscall.Kill(pid, syscall.SIGKILL)
	}},
	{"stop agent 5 s", standsStill, func(_ context.Context, b *bench) (func() error, error) {
		pid, err := b.lab.AgentPID(faultyNode)
		if err != nil {
			return nil, err
		}
		begun := time.Now()
		return func() error {
			time.Sleep(time.Until(begun.Add(standsStill))) // the fault is this long
			return ignoreGone(syscall.Kill(pid, syscall.SIGCONT))
		}, syscall.Kill(pid, syscall.SIGSTOP)
	}},
	{"repository hangs", 20 * time.Second, func(_ context.Context, b *bench) (func() error, error) {
		gone := make(chan struct{})
		b.disk.Rule(func(faultfs.Op, string) faultfs.Fault { return faultfs.Fault{Wait: gone} })
		return sync.OnceValue(func() error {
			b.disk.Rule(nil)
			close(gone)
			return nil
		}), nil
	}},
	{"repository read-only", 20 * time.Second, func(_ context.Context, b *bench) (func() error, error) { return b.refuseWrites(syscall.EROFS) }},
	{"repository full", 20 * time.Second, func(_ context.Context, b *bench) (func() error, error) { return b.refuseWrites(syscall.ENOSPC) }},
	{"node cut off", 20 * time.Second, func(ctx context.Context, b *bench) (func() error, error) {
		return func() error { return b.link(context.WithoutCancel(ctx), "up") }, b.link(ctx, "down")
	}},
}

func ignoreGone(err error) error {
	if err == syscall.ESRCH {
		return nil
	}
	return err
}

func (b *bench) signalAgent(sig syscall.Signal) error {
	pid, err := b.lab.AgentPID(faultyNode)
	if err != nil {
		return err
	}
	return syscall.Kill(pid, sig)
}

// refuseWrites has the repository's file system refuse every change.
func (b *bench) refuseWrites(errno syscall.Errno) (heal func() error, err error) {
	b.disk.Rule(func(op faultfs.Op, _ string) faultfs.Fault {
		if op == faultfs.Read || op == faultfs.Fsync {
			return faultfs.Fault{}
		}
		return faultfs.Fault{Errno: errno}
	})
	return func() error {
		b.disk.Rule(nil)
		return nil
	}, nil
}

// link takes the node's cable out, or puts it in. The lab's own namespace has the other
// end of it.
func (b *bench) link(ctx context.Context, state string) error {
	pid, err := b.lab.CoordinatorPID()
	if err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, "nsenter", "-t", fmt.Sprint(pid), "-n", "ip", "link", "set", faultyCable, state).CombinedOutput()
	if err != nil {
		return fmt.Errorf("set %s %s: %w: %s", faultyCable, state, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// awaitStopped waits until a process stands still by a signal, or ended tells that
// waiting is of no use.
func awaitStopped(ctx context.Context, pid int, ended <-chan struct{}) (stopped bool, err error) {
	err = labrun.Poll(ctx, reachBudget, fmt.Sprintf("process %d to stand still", pid), func() (bool, error) {
		if stopped = labrun.ProcessState(pid) == 'T'; stopped {
			return true, nil
		}
		select {
		case <-ended:
			return true, nil
		default:
			return false, nil
		}
	})
	return stopped, err
}
