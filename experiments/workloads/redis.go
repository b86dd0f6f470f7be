package main

import (
	"context"
	"fmt"

	"fermata/experiments/guests"
	"fermata/experiments/labrun"
)

// redis is a Redis on guest 1, its replica on guest 2, and there the writer that knows
// what both must hold.
type redis struct{}

func (*redis) title() string { return "redis" }

func (*redis) app() guests.Cluster { return guests.Cluster{Count: 2, Work: guests.RunRedis} }

func (*redis) working(consoles map[string][]byte) bool {
	last := lastTally(consoles[guests.Name(2)])
	return last.N > 0 && last.Replicas == 1
}

// steps is how many more the writer must have done for a result to count.
const steps = 60

func (w *redis) finish(ctx context.Context, t *trial, r *row) error {
	last, err := w.further(ctx, t, func(guests.Tally) bool { return true })
	if err != nil {
		return err
	}
	r.Syncs, r.Reconnects = last.Syncs, last.Reconnects
	r.Checked, r.Wrong = last.N, last.Bad

	// The replica comes back empty, and its writer with it, which takes the count
	// from the master.
	if err := t.reset(ctx, 2); err != nil {
		return err
	}
	r.Reboots++
	after, err := w.further(ctx, t, func(now guests.Tally) bool { return now.N > last.N && now.Master == guests.Name(1) })
	if err != nil {
		return err
	}
	r.Wrong += after.Bad

	// The master goes, its replica takes over and fills it when it is back.
	if err := t.reset(ctx, 1); err != nil {
		return err
	}
	r.Reboots++
	end, err := w.further(ctx, t, func(now guests.Tally) bool { return now.Failovers == 1 && now.Master == guests.Name(2) })
	if err != nil {
		return err
	}
	if end.N <= after.N {
		r.Wrong++
		t.note("redis: %d steps after the last reset, %d before", end.N, after.N)
	}
	r.Checked, r.Wrong = end.N, r.Wrong+end.Bad-after.Bad
	return nil
}

// further waits until the writer has done more steps and compared all keys once more,
// with a replica that follows, in a state that is wanted.
func (w *redis) further(ctx context.Context, t *trial, wanted func(guests.Tally) bool) (last guests.Tally, err error) {
	var first *guests.Tally
	what := fmt.Sprintf("%d further steps and a comparison of all keys", steps)
	err = t.await(ctx, what, func(all map[string][]byte) (bool, error) {
		last = lastTally(all[guests.Name(2)])
		if last.Replicas != 1 || !wanted(last) {
			return false, nil
		}
		if first == nil || last.N < first.N || last.Scans < first.Scans {
			now := last
			first = &now
		}
		return last.N >= first.N+steps && last.Scans > first.Scans, nil
	})
	return last, err
}

// lastTally is the newest account of the writer on a console; zero: there is none.
func lastTally(console []byte) (last guests.Tally) {
	labrun.Each(console, func(l guests.Line) {
		if a, ok := l.Body.(guests.Tally); ok {
			last = a
		}
	})
	return last
}
