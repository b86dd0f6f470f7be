package main

import (
	"fmt"
	"strings"
	"time"

	"fermata/experiments/guests"
)

// What the guests do while they are checkpointed: rewrite a region at a rate
// that an emulated processor keeps up with beside its own work. The rest of
// memory, but what the guest's system needs, holds the same pattern, which
// neither compression nor deduplication can make smaller, and stays as it is.
const (
	loadSize = 64 * mib
	loadRate = 20 // MiB/s

	// systemSize is for the guest's system; guests of 160 MiB boot with room.
	// Beside it Linux needs a part of all memory, for its own account of it and
	// free for itself: at 4 GiB, with a 40th it killed the load, with a 16th it
	// had room.
	systemSize = 160 * mib
	systemPart = 16

	// heartbeat is what silences of the console are measured with.
	heartbeat = 5 * time.Millisecond

	// reportEvery is between two accounts of the load.
	reportEvery = 50 * time.Millisecond

	// warmUp is how long, by the guest's clock, its load runs before it is
	// measured: TCG has translated the program by then.
	warmUp = 2 * time.Second
)

// An idle guest rewrites a page every few seconds.
const (
	idleSize      = mib
	idleRate      = 0.001 // MiB/s
	idleHeartbeat = time.Second
)

const (
	accel   = "tcg"
	machine = "pc-q35-7.2"
	cpu     = "qemu64"
)

// guest is what all methods boot at one size.
type guest struct {
	memory  size
	kernel  string
	initrd  string
	idle    bool
	cmdline string
}

// ballast is memory of the guest that holds what cannot be made smaller and is
// never written again.
func (g guest) ballast() size {
	return (g.memory - g.memory/systemPart - systemSize - loadSize) / mib * mib
}

// load is memory of the guest that is written over and over.
func (g guest) load() size {
	if g.idle {
		return idleSize
	}
	return loadSize
}

func newGuest(memory size, kernel, initrd string, idle bool) (guest, error) {
	g := guest{memory: memory, kernel: kernel, initrd: initrd, idle: idle}
	app := guests.Cluster{
		Count: 1, Work: guests.RunDirty, Tick: heartbeat,
		Writer: guests.Writer{MiB: int(g.load() / mib), BallastMiB: int(g.ballast() / mib), Rate: loadRate, Every: reportEvery},
	}
	if idle {
		app.Tick, app.Writer.Rate, app.Writer.Every = idleHeartbeat, idleRate, idleHeartbeat
	}
	if err := app.Validate(); err != nil {
		return guest{}, fmt.Errorf("describe guest: %w", err)
	}
	g.cmdline = app.Cmdline(1)
	return g, nil
}

// clusterName is the cluster of Fermata's guest.
const clusterName = "pause"

// specification is g as a cluster.
func (g guest) specification() []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "name: %s\nnetworks:\n  - name: lan\n", clusterName)
	fmt.Fprintf(&b, "defaults:\n  accel: %s\n  machine: %s\n  cpu: %s\n  memory: %s\n  vcpus: 1\n", accel, machine, cpu, g.memory)
	fmt.Fprintf(&b, "  kernel: %s\n  initrd: %s\n", g.kernel, g.initrd)
	fmt.Fprintf(&b, "guests:\n  - name: %s\n    cmdline: %q\n    nics:\n      - network: lan\n", guests.Name(1), g.cmdline)
	return []byte(b.String())
}
