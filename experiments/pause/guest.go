package main

import (
	"bytes"
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"fermata/experiments/guests"
)

// What the guests do while they are checkpointed. The MPI program runs as one
// rank and writes one of its two grids in each iteration, so that after two
// iterations every page of both has changed.
const (
	gridSide = 1022 // with the boundary a row is 8 KiB, a grid 8 MiB

	gridBytes  = (gridSide + 2) * (gridSide + 2) * 8
	iterations = 1 << 30 // for ever
	every      = 5       // iterations between two reports
	heartbeat  = 20 * time.Millisecond

	// warmIterations pass before a guest is measured, and between two
	// checkpoints: two seconds or so, in which TCG has translated the program
	// and both grids were rewritten many times.
	warmIterations = 25

	// ballastPart of a guest's memory is random bytes.
	ballastPart = 4
)

const (
	accel   = "tcg"
	machine = "pc-q35-7.2"
	cpu     = "qemu64"
)

//go:embed ballast.sh
var ballastScript string

// ballastName is the script's path in the guest.
const ballastName = "ballast"

// guest is what all methods boot at one size.
type guest struct {
	memory  size
	kernel  string
	initrd  string
	cmdline string
}

func (g guest) ballast() size { return g.memory / ballastPart }

func newGuest(memory size, kernel, initrd string) (guest, error) {
	g := guest{memory: memory, kernel: kernel, initrd: initrd}
	app := guests.Cluster{
		Count: 1, Work: guests.RunMPI, Tick: heartbeat,
		MPI: guests.MPI{Side: gridSide, Iterations: iterations, Every: every},
	}
	if err := app.Validate(); err != nil {
		return guest{}, fmt.Errorf("describe guest: %w", err)
	}
	g.cmdline = fmt.Sprintf("%s rdinit=/%s fermata.ballast=%d", app.Cmdline(1), ballastName, g.ballast()/mib)
	return g, nil
}

// writeInitrd writes the guests' initial RAM disk with the ballast script behind
// it. The kernel unpacks one archive after the other
// (Documentation/driver-api/early-userspace/buffer-format.rst).
func writeInitrd(path, original string) error {
	b, err := os.ReadFile(original)
	if err != nil {
		return fmt.Errorf("read guests' initial RAM disk: %w", err)
	}
	out := bytes.NewBuffer(pad4(b))
	const executable = 0o100755
	writeEntry(out, ballastName, executable, ballastScript)
	writeEntry(out, "TRAILER!!!", 0, "")
	if err := os.WriteFile(path, out.Bytes(), 0o600); err != nil {
		return fmt.Errorf("write initial RAM disk: %w", err)
	}
	return nil
}

// writeEntry writes one file in cpio's "newc" format.
func writeEntry(out *bytes.Buffer, name string, mode uint32, data string) {
	fields := []int{0, int(mode), 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0}
	header := "070701"
	for _, f := range fields {
		header += fmt.Sprintf("%08x", f)
	}
	out.Write(pad4([]byte(header + name + "\x00")))
	out.Write(pad4([]byte(data)))
}

// pad4 fills up to a multiple of four bytes with zeros.
func pad4(b []byte) []byte { return append(b, make([]byte, (4-len(b)%4)%4)...) }

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

// imageFiles are the guests' kernel and initial RAM disk in dir.
func imageFiles(dir string) (kernel, initrd string) {
	return filepath.Join(dir, "vmlinuz"), filepath.Join(dir, "initrd.img")
}
