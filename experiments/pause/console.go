package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"fermata/experiments/guests"
	"fermata/experiments/labrun"
)

// bootBudget is until a guest's load runs, on a busy machine.
const bootBudget = 4 * time.Minute

// console is the file that a guest's serial line is written to.
type console struct{ path string }

// reports are the load's reports so far.
func (c console) reports() ([]guests.MPIIter, error) {
	b, err := os.ReadFile(c.path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("read console: %w", err)
	}
	var reports []guests.MPIIter
	labrun.Each(b, func(l guests.Line) {
		if r, ok := l.Body.(guests.MPIIter); ok {
			reports = append(reports, r)
		}
	})
	return reports, nil
}

// awaitLoad waits until the load has done n further iterations, and returns how
// fast it wrote memory meanwhile, in bytes a second of the guest's clock.
func (c console) awaitLoad(ctx context.Context, n int) (float64, error) {
	before, err := c.reports()
	if err != nil {
		return 0, err
	}
	var rate float64
	err = labrun.Poll(ctx, bootBudget, "the guest's load to run", func() (bool, error) {
		now, err := c.reports()
		if err != nil || len(now) == 0 {
			return false, err
		}
		first := now[max(0, len(before)-1)]
		last := now[len(now)-1]
		if last.Iteration-first.Iteration < n {
			return false, nil
		}
		rate = float64(last.Iteration-first.Iteration) * gridBytes / float64(last.Uptime-first.Uptime)
		return true, nil
	})
	return rate, err
}

// silencePoll is how exactly a silence is timed, at two per cent of a processor.
const silencePoll = time.Millisecond

// listener finds the longest silence of a console: what an observer outside
// notices of a pause, whoever reports it. Heartbeats come each 20 ms, so it is
// longer than the pause by up to that much, and more when the guest gets no
// processor.
type listener struct {
	stop   context.CancelFunc
	done   sync.WaitGroup
	most   time.Duration // owned by the goroutine until done
	failed error         // likewise
}

func (c console) listen(ctx context.Context) *listener {
	ctx, cancel := context.WithCancel(ctx)
	l := &listener{stop: cancel}
	l.done.Go(func() { l.most, l.failed = c.longestSilence(ctx) })
	return l
}

// end stops listening.
func (l *listener) end() (time.Duration, error) {
	l.stop()
	l.done.Wait()
	return l.most, l.failed
}

func (c console) longestSilence(ctx context.Context) (time.Duration, error) {
	f, err := os.Open(c.path)
	if err != nil {
		return 0, fmt.Errorf("listen to console: %w", err)
	}
	defer f.Close()
	ticker := time.NewTicker(silencePoll)
	defer ticker.Stop()
	var most time.Duration
	length, heard := int64(-1), time.Now()
	for {
		fi, err := f.Stat()
		if err != nil {
			return 0, fmt.Errorf("listen to console: %w", err)
		}
		now := time.Now()
		most = max(most, now.Sub(heard))
		if fi.Size() != length {
			length, heard = fi.Size(), now
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return most, nil
		}
	}
}
