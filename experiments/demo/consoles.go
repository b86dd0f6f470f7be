package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"time"

	"fermata/experiments/guests"
)

// consoles reads what the guests print, through the operator's command line.
type consoles struct {
	lab   *labRun
	count int
}

// read returns all consoles, by guest.
func (c *consoles) read(ctx context.Context) (map[string][]byte, error) {
	out := map[string][]byte{}
	for i := 1; i <= c.count; i++ {
		name := guests.Name(i)
		cmd := exec.CommandContext(ctx, c.lab.fermata, "--lab", c.lab.dir, "cluster", "console", clusterName, name)
		var complaints bytes.Buffer
		cmd.Stderr = &complaints
		b, err := cmd.Output()
		if err != nil {
			return nil, fmt.Errorf("read console of %s: %w: %s", name, err, lastLine(complaints.String()))
		}
		out[name] = b
	}
	return out, nil
}

// each calls f for every line a guest's console holds.
func each(console []byte, f func(guests.Line)) {
	for text := range strings.Lines(string(console)) {
		if line, ok := guests.Parse(text); ok {
			f(line)
		}
	}
}

// await reads all consoles until is says yes.
func (c *consoles) await(ctx context.Context, budget time.Duration, what string, is func(map[string][]byte) (bool, error)) error {
	return poll(ctx, budget, what, func() (bool, error) {
		all, err := c.read(ctx)
		if err != nil {
			return false, err
		}
		return is(all)
	})
}

// iteration returns the last iteration guest 1 has reported, 0 before the first.
func iteration(all map[string][]byte) int {
	last := 0
	each(all[guests.Name(1)], func(l guests.Line) {
		if b, ok := l.Body.(guests.MPIIter); ok {
			last = b.Iteration
		}
	})
	return last
}

func (c *consoles) mpiHasBegun(all map[string][]byte) (bool, error) { return iteration(all) > 0, nil }

// mpiHasGoneOn says yes once guest 1 reports another iteration than at the
// first question.
func (c *consoles) mpiHasGoneOn() func(map[string][]byte) (bool, error) {
	first := -1
	return func(all map[string][]byte) (bool, error) {
		now := iteration(all)
		if first < 0 {
			first = now
		}
		return now > first, nil
	}
}

func (c *consoles) mpiDone(ctx context.Context) (bool, error) {
	all, err := c.read(ctx)
	if err != nil {
		return false, err
	}
	done := false
	each(all[guests.Name(1)], func(l guests.Line) {
		if _, ok := l.Body.(guests.MPIDone); ok {
			done = true
		}
	})
	return done, nil
}

// allTick says yes once every guest has printed a heartbeat. After a restart
// consoles begin empty.
func (c *consoles) allTick(all map[string][]byte) (bool, error) {
	for _, console := range all {
		ticks := 0
		each(console, func(l guests.Line) {
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

func (c *consoles) complete(all map[string][]byte) (bool, error) {
	s, err := summarise(all)
	return s.Complete, err
}

func (c *consoles) summary(ctx context.Context) (guests.Summary, error) {
	all, err := c.read(ctx)
	if err != nil {
		return guests.Summary{}, err
	}
	return summarise(all)
}

func summarise(all map[string][]byte) (guests.Summary, error) {
	readers := map[string]io.Reader{}
	for name, b := range all {
		readers[name] = bytes.NewReader(b)
	}
	return guests.Summarise(readers)
}
