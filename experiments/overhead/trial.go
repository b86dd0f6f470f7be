package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"fermata/experiments/guests"
	"fermata/experiments/labrun"
)

const (
	mib       = 1 << 20
	pageBytes = 4 << 10

	// The guest: what it rewrites, what else it has filled, and what its system
	// needs beside that (see experiments/pause).
	memoryMiB  = 512
	loadMiB    = 64
	ballastMiB = 224

	reportEvery = 50 * time.Millisecond
	bootBudget  = 10 * time.Minute

	// settle is how long the guest is left alone before a run.
	settle = 2 * time.Second

	clusterName = "overhead"
)

// trial is a lab with one guest at work.
type trial struct {
	*labrun.Scratch
	console string
}

func start(ctx context.Context, o options, note func(string, ...any)) (_ *trial, err error) {
	note("building fermata")
	lab, err := labrun.NewScratch(ctx, o.scratch, name, 1)
	if err != nil {
		return nil, err
	}
	t := &trial{Scratch: lab}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.End())
		}
	}()
	guestDir, err := filepath.Abs(o.guestDir)
	if err != nil {
		return nil, err
	}
	kernel, initrd := guests.ImageFiles(guestDir)
	app := guests.Cluster{Count: 1, Work: guests.RunDirty, Tick: time.Second,
		Writer: guests.Writer{MiB: loadMiB, BallastMiB: ballastMiB, Every: reportEvery}}
	if err := app.Validate(); err != nil {
		return nil, fmt.Errorf("describe guest: %w", err)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "name: %s\nguests:\n  - name: %s\n    accel: tcg\n    memory: %dMiB\n", clusterName, guests.Name(1), memoryMiB)
	fmt.Fprintf(&b, "    kernel: %s\n    initrd: %s\n    cmdline: %q\n", kernel, initrd, app.Cmdline(1))
	note("booting")
	if err := t.Bring(ctx, clusterName, b.String()); err != nil {
		return nil, err
	}
	t.console = filepath.Join(t.Dir, "nodes", "n1", "state", "guests", clusterName+"."+guests.Name(1), "console.log")
	return t, labrun.Poll(ctx, bootBudget, "the guest to work", func() (bool, error) {
		written, err := t.written()
		return written > loadMiB*mib, err
	})
}

// written is how many bytes the guest has rewritten, as it said last.
func (t *trial) written() (bytes uint64, err error) {
	f, err := os.Open(t.console)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return 0, err
	}
	const recent = 16 << 10
	b, err := io.ReadAll(io.NewSectionReader(f, max(0, fi.Size()-recent), recent))
	if err != nil {
		return 0, err
	}
	labrun.Each(b, func(l guests.Line) {
		switch body := l.Body.(type) {
		case guests.Dirty:
			bytes = body.Written * pageBytes
			if body.Bad > 0 {
				err = fmt.Errorf("the guest found %d pages that are not what it wrote", body.Bad)
			}
		case guests.DirtyExit:
			err = fmt.Errorf("the guest's load ended with status %d", body.Status)
		}
	})
	return bytes, err
}

// mark is an account of the guest and when it came.
type mark struct {
	at    time.Time
	bytes uint64
}

// next waits for an account beyond bytes. When it came is known to a millisecond
// or two.
func (t *trial) next(ctx context.Context, beyond uint64) (last, m mark, err error) {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		bytes, err := t.written()
		if err != nil {
			return last, m, err
		}
		now := mark{time.Now(), bytes}
		if bytes > beyond {
			return last, now, nil
		}
		if last.bytes != bytes {
			last = now
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return last, m, context.Cause(ctx)
		}
	}
}

// rate is how many bytes the guest rewrites in a second, looked at for some time.
func (t *trial) rate(ctx context.Context, length time.Duration) (float64, error) {
	if err := labrun.Sleep(ctx, settle); err != nil {
		return 0, err
	}
	from, err := t.written()
	if err != nil {
		return 0, err
	}
	begun := time.Now()
	if err := labrun.Sleep(ctx, length); err != nil {
		return 0, err
	}
	to, err := t.written()
	if err != nil {
		return 0, err
	}
	if to <= from {
		return 0, errors.New("the guest does not work")
	}
	return float64(to-from) / time.Since(begun).Seconds(), nil
}

// run times the work under an arm. It returns the pauses of its checkpoints in
// milliseconds.
func (t *trial) run(ctx context.Context, a arm, work uint64, length time.Duration) (took time.Duration, pauses []float64, err error) {
	if err := t.prepare(ctx, a); err != nil {
		return 0, nil, err
	}
	before, err := t.written()
	if err != nil {
		return 0, nil, err
	}
	_, first, err := t.next(ctx, before) // an account that has just come
	if err != nil {
		return 0, nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type outcome struct {
		pauses []float64
		err    error
	}
	done := make(chan outcome, 1)
	go func() {
		var o outcome
		for i := range a.checkpoints {
			// In the middle of its share of the run.
			due := first.at.Add(length * time.Duration(2*i+1) / time.Duration(2*a.checkpoints))
			if labrun.Sleep(ctx, time.Until(due)) != nil {
				break
			}
			pause, err := t.checkpoint(ctx)
			if err != nil {
				o.err = err
				cancel()
				break
			}
			o.pauses = append(o.pauses, pause)
		}
		done <- o
	}()
	target := first.bytes + work
	last, end, err := t.next(ctx, target-1)
	o := <-done
	if err := errors.Join(o.err, err); err != nil {
		return 0, nil, err
	}
	if len(o.pauses) != a.checkpoints {
		return 0, nil, fmt.Errorf("%d checkpoints within the run, want %d", len(o.pauses), a.checkpoints)
	}
	// The target lies between two accounts.
	share := float64(target-last.bytes) / float64(end.bytes-last.bytes)
	at := last.at.Add(time.Duration(share * float64(end.at.Sub(last.at))))
	return at.Sub(first.at), o.pauses, nil
}

// prepare brings about what an arm begins with. An agent that is renewed tracks
// nothing; a live checkpoint leaves writes tracked.
func (t *trial) prepare(ctx context.Context, a arm) error {
	if err := t.RenewAgent(ctx, "n1", "", clusterName, 1); err != nil {
		return err
	}
	if a.tracked {
		if _, err := t.checkpoint(ctx); err != nil {
			return err
		}
	}
	return labrun.Sleep(ctx, settle)
}

// checkpoint takes one live and returns its pause in milliseconds.
func (t *trial) checkpoint(ctx context.Context) (pauseMS float64, err error) {
	var cp struct {
		ID     string `json:"id"`
		Guests []struct {
			PauseMS float64 `json:"pause_ms"`
		} `json:"guests"`
	}
	if err := t.Command(ctx, io.Discard, &cp, "checkpoint", clusterName, "--mode", "live", "-o", "json"); err != nil {
		return 0, err
	}
	if len(cp.Guests) != 1 {
		return 0, fmt.Errorf("checkpoint of %d guests", len(cp.Guests))
	}
	return cp.Guests[0].PauseMS, nil
}
