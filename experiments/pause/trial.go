package main

import (
	"context"
	"fmt"
	"time"
)

// The methods that are compared, as they stand in the document.
const (
	stopAndCopy  = "stop-and-copy"       // QEMU: stop, migrate to a file, cont
	background   = "background-snapshot" // QEMU: migrate with that capability
	fermataFirst = "fermata-first"       // into an empty repository
	fermataNext  = "fermata-next"        // the same guest again, two seconds of load later
)

// taken is one checkpoint of one guest.
type taken struct {
	method string

	pause     time.Duration
	pauseFrom string // how it was measured
	parts     map[string]time.Duration

	silence time.Duration // of the console, from the command until durable
	durable time.Duration // from the command on
	command time.Duration // of the command line tool, seen from outside; 0 when there is none

	nonZeroBytes uint64
	storedBytes  uint64
	loadRate     float64 // bytes the load wrote, a second, before the checkpoint
}

// subject is a way to take checkpoints. Each trial boots a guest of its own and
// leaves nothing behind, so that no trial profits from an earlier one.
type subject struct {
	name  string
	trial func(ctx context.Context, g guest) ([]taken, error)
}

// observe takes a checkpoint with an ear at the guest's console.
func observe(ctx context.Context, c console, take func() (taken, error)) (taken, error) {
	l := c.listen(ctx)
	t, err := take()
	silence, failed := l.end()
	if err != nil {
		return taken{}, err
	}
	t.silence = silence
	return t, failed
}

// repeat runs every subject at every size n times. Subjects take turns within a
// round, each round begins with another one: what drifts or disturbs hits all.
func repeat(ctx context.Context, n int, all []guest, subjects []subject, note func(format string, args ...any)) (map[size][]taken, error) {
	out := map[size][]taken{}
	for round := range n {
		for _, g := range all {
			for i := range subjects {
				s := subjects[(round+i)%len(subjects)]
				results, err := s.trial(ctx, g)
				if err != nil {
					return nil, fmt.Errorf("%s at %s, round %d: %w", s.name, g.memory, round+1, err)
				}
				for _, t := range results {
					note("round %d of %d, %s: %s paused %.1f ms, silent %.0f ms, durable after %.0f ms", round+1, n, g.memory, t.method,
						t.pause.Seconds()*1e3, t.silence.Seconds()*1e3, t.durable.Seconds()*1e3)
				}
				out[g.memory] = append(out[g.memory], results...)
			}
		}
	}
	return out, nil
}
