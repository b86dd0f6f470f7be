package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"fermata/experiments/guests"
	"fermata/experiments/labrun"
	"fermata/experiments/result"
	"fermata/imageio/vfs/faultfs"
	"fermata/protocol/failpoint"
)

const (
	clusterName = "trial"
	guestCount  = 2
	memoryMiB   = guests.MinMemoryMiB

	// faultyNode is the node that faults meet, and faultyCable the lab's end of its cable.
	faultyNode  = "n2"
	faultyCable = "node2"

	reachBudget   = 30 * time.Second  // until a command reaches its step
	commandBudget = 100 * time.Second // until a command ends
	restBudget    = 2 * time.Minute   // until the cluster is at rest behind it
	nextBudget    = time.Minute       // until the next command works
	tickBudget    = time.Minute       // until guests show that they run
)

// bench is a lab with one cluster and one checkpoint of it, on a file system that fails
// on demand.
type bench struct {
	lab    *labrun.Scratch
	dir    string
	points string // directory where running processes look for failpoints
	disk   *faultfs.FS
	base   string // the checkpoint
	note   func(string, ...any)
}

func newBench(ctx context.Context, o options, note func(string, ...any)) (_ *bench, err error) {
	if err := os.MkdirAll(o.scratch, 0o700); err != nil {
		return nil, fmt.Errorf("make scratch directory: %w", err)
	}
	dir, err := os.MkdirTemp(o.scratch, "matrix")
	if err != nil {
		return nil, fmt.Errorf("make scratch directory: %w", err)
	}
	b := &bench{dir: dir, points: filepath.Join(dir, "points"), note: note}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.close())
		}
	}()
	backing, point := filepath.Join(dir, "backing"), filepath.Join(dir, "mount")
	for _, d := range []string{b.points, backing, point} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return nil, fmt.Errorf("make directory: %w", err)
		}
	}
	if b.disk, err = faultfs.Mount(backing, point); err != nil {
		return nil, err
	}
	b.lab, err = labrun.NewScratchOf(ctx, o.scratch, "mx", 2, func(l *labrun.Lab) {
		l.Prefix = append(l.Prefix, "env", failpoint.DirEnv+"="+b.points)
		l.Args = []string{"--repository", filepath.Join(point, "r")}
		if o.fermata != "" {
			l.Fermata = o.fermata
		}
	}, "failpoints")
	if err != nil {
		return nil, err
	}
	app := guests.Cluster{Count: guestCount, Work: guests.Idle, Tick: 100 * time.Millisecond}
	err = b.lab.BringGuests(ctx, clusterName, o.guestDir, memoryMiB, app, func(console []byte) bool { return lastTick(console) > 0 })
	if err != nil {
		return nil, err
	}
	var cp struct {
		ID string `json:"id"`
	}
	if err := b.lab.Command(ctx, io.Discard, &cp, "checkpoint", clusterName, "-o", "json"); err != nil {
		return nil, err
	}
	b.base = cp.ID
	return b, nil
}

func (b *bench) close() error {
	var errs []error
	if b.lab != nil {
		errs = append(errs, b.lab.End())
	}
	if b.disk != nil {
		errs = append(errs, b.disk.Unmount())
	}
	return errors.Join(append(errs, os.RemoveAll(b.dir))...)
}

// shown is what is shown of the cluster.
type shown struct {
	State  string `json:"state"`
	Reason string `json:"reason"`
	Guests []struct {
		Name  string `json:"name"`
		State string `json:"state"`
		PID   int    `json:"pid"`
	} `json:"guests"`
	Leftovers []struct {
		Name string `json:"name"`
		Node string `json:"node"`
	} `json:"leftovers"` // of an earlier life
}

func (b *bench) show(ctx context.Context) (s shown, err error) {
	err = b.lab.Command(ctx, io.Discard, &s, "cluster", "show", clusterName, "-o", "json")
	return s, err
}

func (s shown) running() (n int) {
	for _, g := range s.Guests {
		if g.State == "running" {
			n++
		}
	}
	return n
}

// machines counts the QEMUs of the lab.
func (b *bench) machines() (n int, err error) {
	processes, err := labrun.Using(b.lab.Dir)
	for _, p := range processes {
		if p.Name() == result.QEMU {
			n++
		}
	}
	return n, err
}

func lastTick(console []byte) (last uint64) {
	labrun.Each(console, func(l guests.Line) {
		if tick, ok := l.Body.(guests.Tick); ok {
			last = tick.N
		}
	})
	return last
}

// ticking waits until every guest has shown that it runs.
func (b *bench) ticking(ctx context.Context) error {
	first := map[string]uint64{}
	consoles := &labrun.Consoles{Lab: b.lab.Lab, Cluster: clusterName, Count: guestCount}
	return consoles.Await(ctx, tickBudget, "heartbeats of all guests", func(all map[string][]byte) (bool, error) {
		for name, console := range all {
			now := lastTick(console)
			if _, seen := first[name]; !seen || now < first[name] {
				first[name] = now
			}
			if now < first[name]+2 {
				return false, nil
			}
		}
		return true, nil
	})
}

// prepare brings the cluster to where a command finds it.
func (b *bench) prepare(ctx context.Context, running bool) error {
	s, err := b.show(ctx)
	if err != nil {
		return err
	}
	if is := s.State == "running" && s.running() == guestCount; is == running && (running || s.State == "stopped") {
		return nil
	}
	if !running {
		return b.lab.Command(ctx, io.Discard, nil, "cluster", "stop", clusterName)
	}
	return b.lab.Command(ctx, io.Discard, nil, "rollback", clusterName, "--from", b.base)
}

// try is one cell. An error means that the trial itself failed.
func (b *bench) try(ctx context.Context, c cell) (r row, err error) {
	r = row{Command: c.command.name, Step: c.step.name, Fault: c.fault.name}
	if err := b.prepare(ctx, c.command.running); err != nil {
		return r, fmt.Errorf("prepare: %w", err)
	}
	pid, err := b.lab.CoordinatorPID()
	if c.step.node {
		pid, err = b.lab.AgentPID(faultyNode)
	}
	if err != nil {
		return r, err
	}
	if err := os.WriteFile(filepath.Join(b.points, strconv.Itoa(pid)), []byte(string(c.step.point)+"=stop@1"), 0o600); err != nil {
		return r, fmt.Errorf("arm: %w", err)
	}
	begun := time.Now()
	calling, interrupt := context.WithTimeout(ctx, commandBudget)
	defer interrupt()
	ended := make(chan struct{})
	var commandErr error
	go func() {
		defer close(ended)
		args := append(append([]string(nil), c.command.args...), clusterName)
		if c.command.name == "restart" || c.command.name == "rollback" {
			args = append(args, "--from", b.base)
		}
		commandErr = b.lab.Command(calling, io.Discard, nil, args...)
	}()
	stopped, err := awaitStopped(ctx, pid, ended)
	if err == nil && !stopped {
		err = fmt.Errorf("the command ended before it reached the step: %v", commandErr)
	}
	if err != nil {
		interrupt()
		<-ended
		return r, errors.Join(err, ignoreGone(syscall.Kill(pid, syscall.SIGCONT)))
	}
	if err := b.meet(ctx, c, pid, ended); err != nil {
		interrupt()
		<-ended
		return r, err
	}
	r.TookS, r.Said = seconds(begun), said(commandErr)
	if calling.Err() != nil {
		r.Note = fmt.Sprintf("the command did not end within %s; ", commandBudget)
	}
	return b.judge(ctx, c, r)
}

// meet has the fault come while the process pid stands still at the step, and ends it.
func (b *bench) meet(ctx context.Context, c cell, pid int, ended <-chan struct{}) error {
	heal, err := c.fault.begin(ctx, b)
	if err == nil && !(c.step.node && c.fault.name == "stop agent 5 s") {
		err = ignoreGone(syscall.Kill(pid, syscall.SIGCONT))
	}
	if heal == nil {
		heal = func() error { return nil }
	}
	if err != nil {
		return errors.Join(err, heal())
	}
	lasts := time.NewTimer(c.fault.lasts)
	defer lasts.Stop()
	select {
	case <-ended:
	case <-lasts.C:
	case <-ctx.Done():
	}
	err = heal()
	<-ended
	return err
}

// said is how a command ended.
func said(err error) string {
	var failed *labrun.Failed
	switch {
	case err == nil:
		return "done"
	case errors.As(err, &failed):
		return fmt.Sprintf("status %d: %s", failed.Status, clip(oneLine(failed.Line), 160))
	default:
		return clip(oneLine(err.Error()), 160)
	}
}

func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return s[:n] + "…"
}

// judge waits until the cluster is at rest and looks at it.
func (b *bench) judge(ctx context.Context, c cell, r row) (row, error) {
	var s shown
	var machines int
	restErr := labrun.Poll(ctx, restBudget, "the cluster to be at rest", func() (bool, error) {
		var err error
		if s, err = b.show(ctx); err != nil {
			return false, nil // the coordinator is away
		}
		if machines, err = b.machines(); err != nil {
			return false, err
		}
		switch s.State {
		case "running":
			return s.running() == guestCount && machines == guestCount && len(s.Leftovers) == 0, nil
		case "stopped":
			return machines == 0 && len(s.Leftovers) == 0, nil
		default:
			return false, nil
		}
	})
	if ctx.Err() != nil {
		return r, context.Cause(ctx)
	}
	r.Shown, r.Running, r.True = s.State, machines, restErr == nil
	if s.Reason != "" {
		r.Note += clip(oneLine(s.Reason), 200) + "; "
	}
	if restErr != nil {
		r.Note += fmt.Sprintf("%s, but %d machines exist, and %d guests of an earlier life are shown; ", s.State, machines, len(s.Leftovers))
	}
	r.NotWorse = true
	if s.State == "running" && c.command.name != "start" { // guests that boot take their time
		if err := b.ticking(ctx); err != nil {
			r.NotWorse = false
			r.Note += oneLine(err.Error()) + "; "
		}
	}
	if c.command.name == "rollback" && machines != guestCount {
		r.NotWorse = false
		r.Note += "the guests were ended; "
	}
	begun := time.Now()
	var last error
	err := labrun.Poll(ctx, nextBudget, "the next command", func() (bool, error) {
		last = b.lab.Command(ctx, io.Discard, nil, "rollback", clusterName, "--from", b.base)
		return last == nil, nil
	})
	r.NextS = seconds(begun)
	if err == nil {
		err = b.ticking(ctx)
	}
	r.Next = err == nil
	if err != nil {
		r.Note += "next: " + clip(oneLine(errors.Join(last, err).Error()), 200)
	}
	return r, ctx.Err()
}
