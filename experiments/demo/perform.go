package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"fermata/experiments/guests"
	"fermata/experiments/labrun"
)

const (
	clusterName = "demo"
	nodeCount   = 2

	bootBudget = 3 * time.Minute  // until all guests say READY, on a busy machine
	workBudget = 10 * time.Minute // until MPI and canary end
)

// options are the flags.
type options struct {
	Fermata, GuestDir, Dir, Out string
	Guests                      int
	Quick, Control, Keep        bool
}

const (
	// enoughInFlight is how many frames a cut of the control must have left out:
	// most frames are canaries, so that with so many some are.
	enoughInFlight = 20

	// maxCheckpoints bounds how often the last checkpoint is taken again because
	// too little was in flight: pauses are short, and a cut may meet nothing.
	maxCheckpoints = 25
)

// tells whether a checkpoint can show something: frames were in flight, and the
// run saved them or, as the control, left them out.
func (o options) tells(cp checkpoint) bool {
	if o.Control {
		return cp.FramesDiscarded >= enoughInFlight
	}
	return cp.FramesRecorded > 0
}

// perform is the demo as a list of acts. It ends what it began, also when it fails.
func perform(ctx context.Context, o options, progress io.Writer) (_ *report, err error) {
	for _, p := range []*string{&o.Fermata, &o.GuestDir, &o.Dir} {
		if *p, err = filepath.Abs(*p); err != nil {
			return nil, fmt.Errorf("find %s: %w", *p, err)
		}
	}
	if err := os.RemoveAll(o.Dir); err != nil {
		return nil, fmt.Errorf("empty lab directory: %w", err)
	}
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("make lab directory: %w", err)
	}
	say := newNarrator(progress)
	app := guests.Cluster{
		Count: o.Guests, Work: guests.RunMPI | guests.RunCanary, Tick: 250 * time.Millisecond,
		MPI: guests.MPI{Side: 1024, Iterations: 240, Every: 10},
		// Three times the default rate, so that frames are in flight at every cut.
		Canary: guests.Canary{Rate: 300, SizeBytes: 200},
	}
	if o.Quick {
		app.MPI.Iterations = 160
	}
	if err := app.Validate(); err != nil {
		return nil, err
	}
	r := newReport(o)

	say.act("running the MPI program natively, for the result to reach")
	if r.MPI.NativeChecksum, err = guests.Native(ctx, o.GuestDir, app.MPI); err != nil {
		return nil, err
	}

	l := &labrun.Lab{Fermata: o.Fermata, Dir: o.Dir, Nodes: nodeCount}
	defer func() {
		err = errors.Join(err, l.End())
		if err == nil && !o.Keep {
			err = os.RemoveAll(o.Dir)
		}
	}()
	say.act("starting a lab: etcd, coordinator, %d nodes in network namespaces", nodeCount)
	if err := l.Start(ctx); err != nil {
		return nil, err
	}
	say.act("creating and starting a cluster of %d guests", o.Guests)
	spec := filepath.Join(o.Dir, "cluster.yaml")
	if err := os.WriteFile(spec, clusterSpec(app, o.GuestDir), 0o644); err != nil {
		return nil, fmt.Errorf("write specification: %w", err)
	}
	if err := l.Command(ctx, progress, nil, "cluster", "create", "-f", spec); err != nil {
		return nil, err
	}
	if err := l.Command(ctx, progress, nil, "cluster", "start", clusterName); err != nil {
		return nil, err
	}
	watch := &watcher{labrun.Consoles{Lab: l, Cluster: clusterName, Count: o.Guests}}
	say.act("waiting for the guests to boot and the MPI program to start")
	if err := watch.Await(ctx, bootBudget, "the MPI program's first iterations", watch.mpiHasBegun); err != nil {
		return nil, err
	}

	for i := 1; ; i++ {
		say.act("taking checkpoint %d while both programs run", i)
		var cp checkpoint
		args := []string{"checkpoint", clusterName, "-o", "json", "--label", fmt.Sprintf("demo %d", i)}
		if o.Control {
			args = append(args, "--discard-channels")
		}
		if err := l.Command(ctx, progress, &cp, args...); err != nil {
			return nil, err
		}
		r.addCheckpoint(cp)
		if i >= 2 && (o.tells(cp) || i == maxCheckpoints) {
			break
		}
		if i == 1 {
			if err := watch.Await(ctx, bootBudget, "further iterations", watch.mpiHasGoneOn()); err != nil {
				return nil, err
			}
		}
	}
	if err := watch.Await(ctx, bootBudget, "further iterations", watch.mpiHasGoneOn()); err != nil {
		return nil, err
	}
	if done, err := watch.mpiDone(ctx); err != nil || done {
		return nil, errors.Join(err, fmt.Errorf("the MPI program ended before the kill: the run proves nothing (done=%t)", done))
	}

	say.act("killing every process with SIGKILL: guests, agents, coordinator, etcd")
	killed, err := l.KillAll(ctx, clusterName)
	if err != nil {
		return nil, err
	}
	say.note("%d processes killed; deleting etcd's data", killed)
	if err := os.RemoveAll(filepath.Join(o.Dir, "etcd")); err != nil {
		return nil, fmt.Errorf("delete etcd's data: %w", err)
	}

	say.act("starting a new lab and restarting the cluster from the repository, guests on swapped nodes")
	if err := l.Start(ctx); err != nil {
		return nil, err
	}
	watch = &watcher{labrun.Consoles{Lab: l, Cluster: clusterName, Count: o.Guests}}
	begun := time.Now()
	var restarted restart
	if err := l.Command(ctx, progress, &restarted, "restart", clusterName, "--from", "latest", "--on", swapped(r.Guests), "-o", "json"); err != nil {
		return nil, err
	}
	if err := watch.Await(ctx, bootBudget, "the first heartbeat after the restart", watch.allTick); err != nil {
		return nil, err
	}
	r.setRestart(restarted, time.Since(begun))

	say.act("waiting for the MPI program and the canary to end")
	if err := watch.Await(ctx, workBudget, "the results of MPI and canary", watch.complete); err != nil {
		return nil, err
	}
	summary, err := watch.summary(ctx)
	if err != nil {
		return nil, err
	}
	r.setSummary(summary)
	if err := l.Command(ctx, progress, nil, "cluster", "stop", clusterName); err != nil {
		return nil, err
	}
	return r, l.CheckNothingLeft()
}

// narrator tells a person what happens.
type narrator struct {
	w     io.Writer
	begun time.Time
}

func newNarrator(w io.Writer) *narrator { return &narrator{w: w, begun: time.Now()} }

func (n *narrator) act(format string, args ...any) {
	fmt.Fprintf(n.w, "[%6.1fs] %s\n", time.Since(n.begun).Seconds(), fmt.Sprintf(format, args...))
}

func (n *narrator) note(format string, args ...any) {
	fmt.Fprintf(n.w, "          %s\n", fmt.Sprintf(format, args...))
}
