package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"fermata/experiments/guests"
	"fermata/experiments/labrun"
	"fermata/protocol/failpoint"
	"fermata/protocol/round"
)

const (
	memoryMiB   = guests.MinMemoryMiB
	clusterName = "cut"

	// slowNode holds at least one of two guests that are spread.
	slowNode = "n2"

	// settle is how long the guests are left alone between two checkpoints.
	settle = 300 * time.Millisecond
)

// trial is a lab with one cluster whose guests send each other datagrams.
type trial struct {
	*labrun.Scratch
	guests int
}

// start boots the cluster and waits until all guests send. The binary is one with
// failpoints: the slow node is slowed down by one.
func start(ctx context.Context, o options, nodes, count int) (_ *trial, err error) {
	lab, err := labrun.NewScratch(ctx, o.scratch, name, nodes, "failpoints")
	if err != nil {
		return nil, err
	}
	t := &trial{lab, count}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.End())
		}
	}()
	app := guests.Cluster{Count: count, Work: guests.RunCanary, Tick: time.Second,
		Canary: guests.Canary{Rate: 20, SizeBytes: 200, Length: 24 * time.Hour}}
	if count == 1 {
		app.Work = guests.Idle // nobody to send to
	}
	return t, t.BringGuests(ctx, clusterName, o.guestDir, memoryMiB, app, func(console []byte) bool { return atWork(console, count) })
}

// atWork tells whether a guest sends to its peers, or ticks when it has none.
func atWork(console []byte, count int) (working bool) {
	labrun.Each(console, func(l guests.Line) {
		switch body := l.Body.(type) {
		case guests.CanaryStatus:
			working = working || body.Received > 0
		case guests.Tick:
			working = working || count == 1
		}
	})
	return working
}

// slowDown has one node begin its cuts late from now on.
func (t *trial) slowDown(ctx context.Context) error {
	plan := fmt.Sprintf("%s=delay(%s)", failpoint.AgentBeforeCut, slowBy)
	return t.RenewAgent(ctx, slowNode, plan, clusterName, t.guests)
}

// report is what of a checkpoint is read here.
type report struct {
	MaxPauseMS     float64 `json:"max_pause_ms"`
	SkewMS         float64 `json:"skew_ms"`
	FramesRecorded uint64  `json:"frames_recorded"`
	Guests         []struct {
		PauseMS float64 `json:"pause_ms"`
	} `json:"guests"`
}

func (t *trial) checkpoint(ctx context.Context, cut round.Cut) (rep report, err error) {
	if err := labrun.Sleep(ctx, settle); err != nil {
		return rep, err
	}
	err = t.Command(ctx, io.Discard, &rep, "checkpoint", clusterName, "--mode", "live", "--cut", cut.String(), "-o", "json")
	if err == nil && len(rep.Guests) != t.guests {
		err = fmt.Errorf("checkpoint of %d guests, want %d", len(rep.Guests), t.guests)
	}
	return rep, err
}
