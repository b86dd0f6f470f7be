package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"fermata/experiments/guests"
	"fermata/experiments/labrun"
)

// bootBudget is until a guest's memory is filled and its load runs, on a busy
// machine.
const bootBudget = 10 * time.Minute

// recentBytes of a console hold more than a second of it.
const recentBytes = 64 << 10

// console is the file that a guest's serial line is written to.
type console struct{ path string }

// account is the last that the load said of itself; nil before it has said
// anything.
func (c console) account() (*guests.Dirty, error) {
	f, err := os.Open(c.path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read console: %w", err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read console: %w", err)
	}
	b, err := io.ReadAll(io.NewSectionReader(f, max(0, fi.Size()-recentBytes), recentBytes))
	if err != nil {
		return nil, fmt.Errorf("read console: %w", err)
	}
	var last *guests.Dirty
	var exit *guests.DirtyExit
	labrun.Each(b, func(l guests.Line) {
		switch body := l.Body.(type) {
		case guests.Dirty:
			last = &body
		case guests.DirtyExit:
			exit = &body
		}
	})
	if exit != nil {
		return nil, fmt.Errorf("the guest's load ended with status %d", exit.Status)
	}
	if last != nil && last.Bad > 0 {
		return nil, fmt.Errorf("the guest found %d pages that are not what it wrote", last.Bad)
	}
	return last, nil
}

// awaitLoad waits until the load has run for some time by the guest's clock.
func (c console) awaitLoad(ctx context.Context, length time.Duration) error {
	first, err := c.account()
	if err != nil {
		return err
	}
	return labrun.Poll(ctx, bootBudget, "the guest's load to run", func() (bool, error) {
		now, err := c.account()
		if err != nil || now == nil {
			return false, err
		}
		if first == nil {
			first = now
		}
		return (now.Uptime - first.Uptime).Duration() >= length, nil
	})
}

// silencePoll is how exactly a silence is timed, at two per cent of a processor.
const silencePoll = time.Millisecond

// listener finds the longest silence of a console: what an observer outside
// notices of a pause, whoever reports it. It is longer than the pause by up to
// a heartbeat, and more when the guest gets no processor.
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
