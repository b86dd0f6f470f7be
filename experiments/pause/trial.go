package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"fermata/experiments/labrun"
)

// The methods that are compared, as they stand in the document.
const (
	stopAndCopy     = "stop-and-copy"             // QEMU: stop, migrate to a file, cont
	background      = "background-snapshot"       // QEMU: migrate with that capability
	backgroundNewer = "background-snapshot-newer" // the same by a newer QEMU
	fermataStop     = "fermata-stop"              // memory is copied inside the pause; into an empty repository
	fermataFirst    = "fermata-live-first"        // nothing known of the guest, an empty repository
	fermataNext     = "fermata-live-next"         // after an earlier one
	fermataIdle     = "fermata-live-idle"         // the same of a guest that writes next to nothing
)

// taken is one checkpoint of one guest.
type taken struct {
	method string
	qemu   string // version

	pause     time.Duration
	pauseFrom string // how it was measured
	parts     map[string]time.Duration
	details   map[string]float64 // what else the agent tells, by its name in `checkpoint -o json`

	silence       time.Duration // of the console, from the command until durable
	silenceBefore time.Duration // while nothing happened: how far silence can be trusted; both 0 when the console is no measure
	durable       time.Duration // from the command on
	command       time.Duration // of the command line tool, seen from outside; 0 when there is none

	nonZeroBytes uint64
	storedBytes  uint64

	cpu     time.Duration // used from the command until durable, the guest's own work included
	loadCPU float64       // processors used before

	before, during, after float64 // bytes the load wrote, a second of the host's clock
}

// subject is a way to take checkpoints of a guest.
type subject struct {
	name string

	// trial boots a guest, takes n checkpoints of it by each of the subject's
	// methods and leaves nothing behind.
	trial func(ctx context.Context, g guest, n int) ([]taken, error)

	idle bool // wants the idle guest
}

// site is where a running guest can be watched.
type site struct {
	guest   guest
	console console
	pids    []int // of all processes that work for a checkpoint, the guest's too
}

// Rests between two checkpoints are random, so that none falls into step with
// anything in the guest.
const (
	restLeast = 700 * time.Millisecond
	restMost  = 2 * time.Second
)

// afterLength is how long the load is watched after a checkpoint.
const afterLength = 500 * time.Millisecond

// measure takes n checkpoints of one guest. Each is preceded by prepare, which is
// not measured, and a rest, which says how the guest does by itself.
func (s site) measure(ctx context.Context, n int, prepare func(context.Context) error, take func(context.Context) (taken, error)) ([]taken, error) {
	var all []taken
	for range n {
		if err := prepare(ctx); err != nil {
			return nil, err
		}
		t, err := s.one(ctx, take)
		if err != nil {
			return nil, err
		}
		all = append(all, t)
	}
	return all, nil
}

// moment is what is known of a guest at one time.
type moment struct {
	at      time.Time
	written uint64 // bytes
	cpu     time.Duration
}

func (s site) now() (moment, error) {
	account, err := s.console.account()
	if err != nil {
		return moment{}, err
	}
	if account == nil {
		return moment{}, errors.New("the guest says nothing")
	}
	cpu, err := cpuTime(s.pids)
	const pageBytes = 4 << 10
	return moment{at: time.Now(), written: account.Written * pageBytes, cpu: cpu}, err
}

// rate is bytes a second from m until later.
func (m moment) rate(later moment) float64 {
	return float64(later.written-m.written) / later.at.Sub(m.at).Seconds()
}

func (s site) one(ctx context.Context, take func(context.Context) (taken, error)) (taken, error) {
	idle, err := s.now()
	if err != nil {
		return taken{}, err
	}
	ear := s.console.listen(ctx)
	slept := labrun.Sleep(ctx, restLeast+rand.N(restMost-restLeast))
	silenceBefore, err := ear.end()
	if err := errors.Join(slept, err); err != nil {
		return taken{}, err
	}
	begun, err := s.now()
	if err != nil {
		return taken{}, err
	}
	ear = s.console.listen(ctx)
	t, failed := take(ctx)
	silence, err := ear.end()
	if err := errors.Join(failed, err); err != nil {
		return taken{}, err
	}
	ended, err := s.now()
	if err != nil {
		return taken{}, err
	}
	if err := labrun.Sleep(ctx, afterLength); err != nil {
		return taken{}, err
	}
	after, err := s.now()
	if err != nil {
		return taken{}, err
	}
	if !s.guest.idle {
		t.silence, t.silenceBefore = silence, silenceBefore
		t.before, t.during, t.after = idle.rate(begun), begun.rate(ended), ended.rate(after)
	}
	t.cpu = ended.cpu - begun.cpu
	t.loadCPU = (begun.cpu - idle.cpu).Seconds() / begun.at.Sub(idle.at).Seconds()
	return t, nil
}

// shares splits n checkpoints over boots, as evenly as can be.
func shares(n, boots int) []int {
	boots = min(n, boots)
	all := make([]int, boots)
	for i := range all {
		all[i] = n*(i+1)/boots - n*i/boots
	}
	return all
}

// pair is a guest of one size, as all methods boot it, busy and idle.
type pair struct{ busy, idle guest }

// repeat runs every subject at every size until each method has taken n
// checkpoints. Subjects take turns within a round, in which each boots one guest
// a size, and each round begins with another one: what drifts or disturbs hits
// all.
func repeat(ctx context.Context, n, boots int, all []pair, subjects []subject, note func(format string, args ...any)) (map[size][]taken, error) {
	out := map[size][]taken{}
	for round, share := range shares(n, boots) {
		for _, p := range all {
			for i := range subjects {
				s := subjects[(round+i)%len(subjects)]
				g := p.busy
				if s.idle {
					g = p.idle
				}
				note("round %d of %d, %s: booting for %s", round+1, min(n, boots), g.memory, s.name)
				results, err := s.trial(ctx, g, share)
				if err != nil {
					return nil, fmt.Errorf("%s at %s, round %d: %w", s.name, g.memory, round+1, err)
				}
				for _, t := range results {
					note("  %s paused %.1f ms, silent %.0f ms (%.0f before), durable after %.0f ms", t.method,
						t.pause.Seconds()*1e3, t.silence.Seconds()*1e3, t.silenceBefore.Seconds()*1e3, t.durable.Seconds()*1e3)
				}
				out[g.memory] = append(out[g.memory], results...)
			}
		}
	}
	return out, nil
}
