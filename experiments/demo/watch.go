package main

import (
	"context"

	"fermata/experiments/guests"
	"fermata/experiments/labrun"
)

// watcher knows what the demo waits for on the guests' consoles.
type watcher struct{ labrun.Consoles }

// iteration returns the last iteration guest 1 has reported, 0 before the first.
func iteration(all map[string][]byte) int {
	last := 0
	labrun.Each(all[guests.Name(1)], func(l guests.Line) {
		if b, ok := l.Body.(guests.MPIIter); ok {
			last = b.Iteration
		}
	})
	return last
}

func (w *watcher) mpiHasBegun(all map[string][]byte) (bool, error) { return iteration(all) > 0, nil }

// mpiHasGoneOn says yes once guest 1 reports another iteration than at the
// first question.
func (w *watcher) mpiHasGoneOn() func(map[string][]byte) (bool, error) {
	first := -1
	return func(all map[string][]byte) (bool, error) {
		now := iteration(all)
		if first < 0 {
			first = now
		}
		return now > first, nil
	}
}

func (w *watcher) mpiDone(ctx context.Context) (bool, error) {
	all, err := w.Read(ctx)
	if err != nil {
		return false, err
	}
	done := false
	labrun.Each(all[guests.Name(1)], func(l guests.Line) {
		if _, ok := l.Body.(guests.MPIDone); ok {
			done = true
		}
	})
	return done, nil
}

// allTick says yes once every guest has printed a heartbeat. After a restart
// consoles begin empty.
func (w *watcher) allTick(all map[string][]byte) (bool, error) {
	for _, console := range all {
		ticks := 0
		labrun.Each(console, func(l guests.Line) {
			if _, ok := l.Body.(guests.Tick); ok {
				ticks++
			}
		})
		if ticks == 0 {
			return false, nil
		}
	}
	return true, nil
}

func (w *watcher) complete(all map[string][]byte) (bool, error) {
	s, err := labrun.Summarise(all)
	return s.Complete, err
}

func (w *watcher) summary(ctx context.Context) (guests.Summary, error) {
	all, err := w.Read(ctx)
	if err != nil {
		return guests.Summary{}, err
	}
	return labrun.Summarise(all)
}
