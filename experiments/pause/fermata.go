package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
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

// abilities are what a fermata can do that matters here.
type abilities struct {
	modes bool // --mode stop|live; without it memory is always copied in the pause
	full  bool // --full: reads all memory again
}

// ask finds the abilities in the help of the command.
func ask(ctx context.Context, fermata string) (abilities, error) {
	help, err := exec.CommandContext(ctx, fermata, "checkpoint", "--help").Output()
	if err != nil {
		return abilities{}, fmt.Errorf("ask %s for its flags: %w", fermata, err)
	}
	return parseAbilities(string(help)), nil
}

func parseAbilities(help string) abilities {
	var a abilities
	for _, word := range strings.Fields(help) {
		a.modes = a.modes || word == "--mode"
		a.full = a.full || word == "--full"
	}
	return a
}

// way is how a method takes checkpoints.
type way struct {
	method string
	mode   string // "" = whatever this fermata has
	full   bool
	empty  bool // each into an empty repository
	once   bool // the guest can be taken in this way but once
}

// flags are those of `fermata checkpoint`.
func (w way) flags() []string {
	var flags []string
	if w.mode != "" {
		flags = append(flags, "--mode", w.mode)
	}
	if w.full {
		flags = append(flags, "--full")
	}
	return flags
}

// busyWays are measured on one guest, one after the other. Without --full only
// the very first checkpoint of a guest is one that knows nothing of it.
func (a abilities) busyWays() []way {
	if !a.modes {
		return []way{{method: fermataStop, empty: true}}
	}
	return []way{
		{method: fermataFirst, mode: "live", full: a.full, empty: true, once: !a.full},
		{method: fermataNext, mode: "live"},
		{method: fermataStop, mode: "stop", empty: true},
	}
}

func idleWays() []way { return []way{{method: fermataIdle, mode: "live"}} }

// checkpoint is what of `fermata checkpoint -o json` the experiment reads.
type checkpoint struct {
	DurableMS    float64           `json:"durable_ms"`
	NonZeroBytes uint64            `json:"non_zero_bytes"`
	StoredBytes  uint64            `json:"stored_bytes"`
	Guests       []guestCheckpoint `json:"guests"`
}

type guestCheckpoint struct {
	Mode    string  `json:"mode"` // "" from a fermata that has but one
	PauseMS float64 `json:"pause_ms"`

	PhasesUS map[string]float64 `json:"phases_us"` // preferred to those below

	StopMS     float64 `json:"stop_ms"`
	DevicesMS  float64 `json:"devices_ms"`
	MemoryMS   float64 `json:"memory_ms"`
	ChannelsMS float64 `json:"channels_ms"`
	ResumeMS   float64 `json:"resume_ms"`

	ArmUS              *float64 `json:"arm_us"`
	WriteFaults        *float64 `json:"write_faults"`
	LongestWaitUS      *float64 `json:"longest_wait_us"`
	CopiedInPauseBytes *float64 `json:"copied_in_pause_bytes"`
	PeakBufferBytes    *float64 `json:"peak_buffer_bytes"`
	ChangedBytes       *float64 `json:"changed_bytes"`
}

// parts are what the pause was spent on.
func (g guestCheckpoint) parts() map[string]time.Duration {
	parts := map[string]time.Duration{}
	for name, us := range g.PhasesUS {
		parts[name] = time.Duration(us * float64(time.Microsecond))
	}
	if len(parts) > 0 {
		return parts
	}
	return map[string]time.Duration{
		"stop": fromMS(g.StopMS), "devices": fromMS(g.DevicesMS), "memory": fromMS(g.MemoryMS),
		"channels": fromMS(g.ChannelsMS), "resume": fromMS(g.ResumeMS),
	}
}

// details are what else is told, by name.
func (g guestCheckpoint) details() map[string]float64 {
	details := map[string]float64{}
	for name, v := range map[string]*float64{
		"arm_us": g.ArmUS, "write_faults": g.WriteFaults, "longest_wait_us": g.LongestWaitUS,
		"copied_in_pause_bytes": g.CopiedInPauseBytes, "peak_buffer_bytes": g.PeakBufferBytes, "changed_bytes": g.ChangedBytes,
	} {
		if v != nil {
			details[name] = *v
		}
	}
	return details
}

// fermataTrial starts a lab of one node and takes n checkpoints of a guest in
// each of the ways.
func (x *experiment) fermataTrial(ctx context.Context, g guest, n int, ways []way) (_ []taken, err error) {
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
	s := site{guest: g}
	if s.console, err = labConsole(dir); err != nil {
		return nil, err
	}
	if s.pids, err = l.Processes(ctx, clusterName); err != nil {
		return nil, err
	}
	if err := s.console.awaitLoad(ctx, warmUp); err != nil {
		return nil, err
	}
	var all []taken
	for _, w := range ways {
		results, err := x.takeByFermata(ctx, l, s, w, n)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", w.method, err)
		}
		all = append(all, results...)
	}
	if err := s.console.awaitLoad(ctx, time.Second); err != nil {
		return nil, fmt.Errorf("guest after its checkpoints: %w", err)
	}
	return all, nil
}

// takeByFermata takes n checkpoints in one way.
func (x *experiment) takeByFermata(ctx context.Context, l *labrun.Lab, s site, w way, n int) ([]taken, error) {
	prepare := func(ctx context.Context) error { return nil }
	if w.empty {
		prepare = func(ctx context.Context) error { return emptyRepository(ctx, l) }
	} else if _, err := checkpointBy(ctx, l, w); err != nil { // the one that the next one follows
		return nil, err
	}
	if w.once {
		n = 1
	}
	all, err := s.measure(ctx, n, prepare, func(ctx context.Context) (taken, error) { return checkpointBy(ctx, l, w) })
	for i := range all {
		all[i].qemu = x.qemu.version
	}
	return all, err
}

// emptyRepository deletes all checkpoints, and with them what they had stored.
func emptyRepository(ctx context.Context, l *labrun.Lab) error {
	var list struct {
		Checkpoints []struct {
			ID string `json:"id"`
		} `json:"checkpoints"`
	}
	if err := l.Command(ctx, io.Discard, &list, "checkpoints", "list", clusterName, "-o", "json"); err != nil {
		return err
	}
	for _, c := range list.Checkpoints {
		if err := l.Command(ctx, io.Discard, nil, "checkpoints", "delete", c.ID); err != nil {
			return err
		}
	}
	return nil
}

// lab is one for a guest, with room for copies.
func (x *experiment) lab(g guest, dir string) *labrun.Lab {
	amount := strconv.FormatUint(uint64((g.memory+spareMemory)/mib), 10)
	return &labrun.Lab{
		Fermata: x.fermata, Dir: dir, Nodes: 1,
		Args:   []string{"--node-memory", amount, "--node-capture", amount, "--log-level", "warn"},
		Prefix: labrun.Tied(),
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

func checkpointBy(ctx context.Context, l *labrun.Lab, w way) (taken, error) {
	var cp checkpoint
	begun := time.Now()
	err := l.Command(ctx, io.Discard, &cp, append([]string{"checkpoint", clusterName, "-o", "json"}, w.flags()...)...)
	elapsed := time.Since(begun)
	if err != nil {
		return taken{}, err
	}
	if len(cp.Guests) != 1 || cp.Guests[0].PauseMS <= 0 || cp.DurableMS <= 0 {
		return taken{}, fmt.Errorf("checkpoint tells no pause: %+v", cp)
	}
	p := cp.Guests[0]
	if w.mode != "" && p.Mode != w.mode {
		return taken{}, fmt.Errorf("checkpoint was taken in mode %q, want %q", p.Mode, w.mode)
	}
	return taken{
		method: w.method, pause: fromMS(p.PauseMS), pauseFrom: "the agent's clock, around stop and cont",
		parts: p.parts(), details: p.details(),
		durable: fromMS(cp.DurableMS), command: elapsed,
		nonZeroBytes: cp.NonZeroBytes, storedBytes: cp.StoredBytes,
	}, nil
}

func fromMS(ms float64) time.Duration { return time.Duration(ms * float64(time.Millisecond)) }
