package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"fermata/experiments/labrun"
)

const (
	// spareMemory is what a node has beside its guest's memory, and for copies
	// beside the guest's data.
	spareMemory = 256 * mib

	// cleanUpBudget bounds a second try to end a lab.
	cleanUpBudget = 2 * time.Minute
)

// checkpoint is what of `fermata checkpoint -o json` the experiment reads.
type checkpoint struct {
	DurableMS    float64 `json:"durable_ms"`
	NonZeroBytes uint64  `json:"non_zero_bytes"`
	StoredBytes  uint64  `json:"stored_bytes"`
	Guests       []struct {
		PauseMS    float64 `json:"pause_ms"`
		StopMS     float64 `json:"stop_ms"`
		DevicesMS  float64 `json:"devices_ms"`
		MemoryMS   float64 `json:"memory_ms"`
		ChannelsMS float64 `json:"channels_ms"`
		ResumeMS   float64 `json:"resume_ms"`
	} `json:"guests"`
}

// fermataTrial starts a lab of one node with an empty repository and takes two
// checkpoints of a guest.
func (x *experiment) fermataTrial(ctx context.Context, g guest) (_ []taken, err error) {
	dir, err := os.MkdirTemp(x.dir, "lab-")
	if err != nil {
		return nil, fmt.Errorf("make directory of a trial: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	l := x.lab(g, dir)
	defer func() { err = errors.Join(err, x.endLab(ctx, l, g)) }()
	if err := l.Start(ctx); err != nil {
		return nil, err
	}
	spec := filepath.Join(dir, "cluster.yaml")
	if err := os.WriteFile(spec, g.specification(), 0o600); err != nil {
		return nil, fmt.Errorf("write specification: %w", err)
	}
	for _, args := range [][]string{{"cluster", "create", "-f", spec}, {"cluster", "start", clusterName}} {
		if err := l.Command(ctx, io.Discard, nil, args...); err != nil {
			return nil, err
		}
	}
	c, err := labConsole(dir)
	if err != nil {
		return nil, err
	}
	var all []taken
	for _, method := range []string{fermataFirst, fermataNext} {
		rate, err := c.awaitLoad(ctx, warmIterations)
		if err != nil {
			return nil, err
		}
		t, err := observe(ctx, c, func() (taken, error) { return takeByFermata(ctx, l, method) })
		if err != nil {
			return nil, err
		}
		t.loadRate = rate
		all = append(all, t)
	}
	if _, err := c.awaitLoad(ctx, every); err != nil {
		return nil, fmt.Errorf("guest after its checkpoints: %w", err)
	}
	return all, nil
}

// lab ends when this process does, however that ends: setpriv(1) asks for it.
func (x *experiment) lab(g guest, dir string) *labrun.Lab {
	amount := strconv.FormatUint(uint64((g.memory+spareMemory)/mib), 10)
	return &labrun.Lab{
		Fermata: x.fermata, Dir: dir, Nodes: 1,
		Args:   []string{"--node-memory", amount, "--node-capture", amount, "--log-level", "warn"},
		Prefix: []string{setpriv, "--pdeathsig", "INT", "--"},
	}
}

// endLab ends a lab. A lab that does not end well is started once more: it ends
// what an earlier one left in its directory.
func (x *experiment) endLab(ctx context.Context, l *labrun.Lab, g guest) error {
	err := l.End()
	if err == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUpBudget)
	defer cancel()
	again := x.lab(g, l.Dir)
	return errors.Join(err, again.Start(ctx), again.End())
}

// labConsole finds the console of the lab's only guest.
func labConsole(dir string) (console, error) {
	files, err := filepath.Glob(filepath.Join(dir, "nodes", "*", "state", "guests", "*", "console.log"))
	if err != nil {
		return console{}, err
	}
	if len(files) != 1 {
		return console{}, fmt.Errorf("find console: %d files, want one", len(files))
	}
	return console{files[0]}, nil
}

func takeByFermata(ctx context.Context, l *labrun.Lab, method string) (taken, error) {
	var cp checkpoint
	begun := time.Now()
	err := l.Command(ctx, io.Discard, &cp, "checkpoint", clusterName, "-o", "json")
	elapsed := time.Since(begun)
	if err != nil {
		return taken{}, err
	}
	if len(cp.Guests) != 1 || cp.Guests[0].PauseMS <= 0 || cp.DurableMS <= 0 {
		return taken{}, fmt.Errorf("checkpoint tells no pause: %+v", cp)
	}
	p := cp.Guests[0]
	return taken{
		method: method, pause: fromMS(p.PauseMS), pauseFrom: "the agent's clock, around stop and cont",
		parts: map[string]time.Duration{
			"stop": fromMS(p.StopMS), "devices": fromMS(p.DevicesMS), "memory": fromMS(p.MemoryMS),
			"channels": fromMS(p.ChannelsMS), "resume": fromMS(p.ResumeMS),
		},
		durable: fromMS(cp.DurableMS), command: elapsed,
		nonZeroBytes: cp.NonZeroBytes, storedBytes: cp.StoredBytes,
	}, nil
}

func fromMS(ms float64) time.Duration { return time.Duration(ms * float64(time.Millisecond)) }
