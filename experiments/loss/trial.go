package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"fermata/experiments/guests"
	"fermata/experiments/labrun"
	"fermata/experiments/result"
)

const (
	memoryMiB   = guests.MinMemoryMiB
	clusterName = "loss"

	sizeBytes = 200
	// aloneFor is how long guests send with nothing done to them.
	aloneFor = 15 * time.Second
	// perCheckpoint is what a checkpoint, and the wait before it, may take of the
	// guests' time.
	perCheckpoint = 2500 * time.Millisecond
	// longestWait is the longest time between two checkpoints.
	longestWait = time.Second

	endBudget = 20 * time.Minute
)

// work is what was done to a cluster.
type work struct {
	checkpoints, restarts int
	recorded, left        uint64        // frames
	longestMS             float64       // pause
	warmMS                result.Sample // see row
}

// measure runs one arm.
func measure(ctx context.Context, o options, a arm, note func(string, ...any)) (_ []row, err error) {
	note("%s: booting %d guests on %d nodes", a, o.guests, o.nodes)
	lab, err := labrun.NewScratch(ctx, o.scratch, name, o.nodes)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil && ctx.Err() == nil {
			note("%s", lab.Logs())
		}
		err = errors.Join(err, lab.End())
	}()
	app := guests.Cluster{Count: o.guests, Work: guests.RunCanary, Tick: time.Second,
		Canary: guests.Canary{Rate: o.rate, SizeBytes: sizeBytes, Length: o.budget(a), Wires: guests.AllWires}}
	if err := lab.BringGuests(ctx, clusterName, o.guestDir, memoryMiB, app, sends); err != nil {
		return nil, err
	}
	begun := time.Now()
	done, err := trouble(ctx, lab, o, a)
	if err != nil {
		return nil, err
	}
	note("  %d checkpoints with %d frames recorded and %d left out, %d restarts; waiting for the guests to end", done.checkpoints, done.recorded, done.left, done.restarts)
	// Each look at the consoles starts programs, for which streams stand still here.
	if err := labrun.Sleep(ctx, o.budget(a)-time.Since(begun)); err != nil {
		return nil, err
	}
	var s guests.Summary
	consoles := labrun.Consoles{Lab: lab.Lab, Cluster: clusterName, Count: o.guests}
	err = consoles.Await(ctx, endBudget, "the guests to have counted", func(all map[string][]byte) (ok bool, err error) {
		s, err = labrun.Summarise(all)
		return s.CanaryComplete, err
	})
	if err != nil {
		return nil, err
	}
	note("  %+v", s.Totals)
	return rowsOf(o, a, done, s), nil
}

// sends tells whether a guest sends and receives.
func sends(console []byte) bool {
	last := labrun.LastCanary(console)
	return last.Phase == "send" && last.Received > 0
}

// trouble takes the checkpoints of an arm at random times, and puts the cluster back at
// random to the newest one.
func trouble(ctx context.Context, lab *labrun.Scratch, o options, a arm) (done work, err error) {
	if a == alone {
		return done, nil
	}
	command := []string{"checkpoint", clusterName, "--mode", "live", "-o", "json"}
	if a == holes {
		command = append(command, "--discard-channels")
	}
	for done.checkpoints < o.n {
		if err := labrun.Sleep(ctx, rand.N(longestWait)); err != nil {
			return done, err
		}
		var rep struct {
			ID         string  `json:"id"`
			MaxPauseMS float64 `json:"max_pause_ms"`
			Recorded   uint64  `json:"frames_recorded"`
			Discarded  uint64  `json:"frames_discarded"`
		}
		if err := lab.Command(ctx, io.Discard, &rep, command...); err != nil {
			return done, err
		}
		done.checkpoints++
		done.recorded += rep.Recorded
		done.left += rep.Discarded
		done.longestMS = max(done.longestMS, rep.MaxPauseMS)
		if a != running && rand.N(4) == 0 {
			if err := restart(ctx, lab, o, rep.ID); err != nil {
				return done, err
			}
			done.restarts++
		}
	}
	if a != running { // at least once
		if err := restart(ctx, lab, o, "latest"); err != nil {
			return done, err
		}
		done.restarts++
		if done.warmMS, err = warmUp(ctx, lab); err != nil {
			return done, err
		}
	}
	consoles := labrun.Consoles{Lab: lab.Lab, Cluster: clusterName, Count: o.guests}
	all, err := consoles.Read(ctx)
	if err != nil {
		return done, err
	}
	for guest, console := range all {
		if p := labrun.LastCanary(console).Phase; p != "" && p != "send" {
			return done, fmt.Errorf("guest %s has ended before the last checkpoint: they took longer than %s each", guest, perCheckpoint)
		}
	}
	return done, nil
}

// restart puts the cluster back after a random time, each guest on another node, and
// waits for afterRestart.
func restart(ctx context.Context, lab *labrun.Scratch, o options, from string) error {
	if err := labrun.Sleep(ctx, rand.N(longestWait)); err != nil {
		return err
	}
	args := []string{"rollback", clusterName, "--from", from}
	shift := rand.N(o.nodes)
	for i := range o.guests {
		args = append(args, "--on", fmt.Sprintf("%s=n%d", guests.Name(i+1), (i+shift)%o.nodes+1))
	}
	if err := lab.Command(ctx, io.Discard, nil, args...); err != nil {
		return err
	}
	return labrun.Sleep(ctx, afterRestart)
}

// afterRestart is how long a restarted cluster is left alone, so that what it stands
// still for is not a checkpoint's, too.
const afterRestart = 300 * time.Millisecond

// settled is how long after a restart guests run as they always do again.
const settled = time.Second

// warmUp returns what each guest's virtual processors have taken of the machine's since a
// restart beyond what they usually take, milliseconds. Call it right behind restart.
func warmUp(ctx context.Context, lab *labrun.Scratch) (result.Sample, error) {
	begun := time.Now().Add(-afterRestart)
	if err := labrun.Sleep(ctx, settled); err != nil {
		return nil, err
	}
	pids, err := lab.Processes(ctx, clusterName)
	if err != nil {
		return nil, err
	}
	first, at := virtualProcessors(pids), time.Now()
	if err := labrun.Sleep(ctx, settled); err != nil {
		return nil, err
	}
	second, later := virtualProcessors(pids), time.Since(at)
	var warm result.Sample
	for pid, took := range first {
		usual := float64(second[pid]-took) / float64(later)
		warm = append(warm, result.Milliseconds(took)-usual*result.Milliseconds(at.Sub(begun)))
	}
	slices.Sort(warm)
	return warm, nil
}

// virtualProcessors returns how long the virtual processors of guests among pids have
// run: QEMU calls their threads "CPU 0/TCG", and the first number of schedstat is
// nanoseconds (Documentation/scheduler/sched-stats.rst).
func virtualProcessors(pids []int) map[int]time.Duration {
	all := map[int]time.Duration{}
	for _, pid := range pids {
		threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
		for _, thread := range threads {
			name, _ := os.ReadFile(filepath.Join(thread, "comm"))
			stat, _ := os.ReadFile(filepath.Join(thread, "schedstat"))
			var ran int64
			if _, err := fmt.Sscan(string(stat), &ran); err == nil && strings.HasPrefix(string(name), "CPU ") {
				all[pid] += time.Duration(ran)
			}
		}
	}
	return all
}
