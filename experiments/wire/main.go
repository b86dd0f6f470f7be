// Command wire measures how much a virtual network carries and how long a frame takes:
// the switch of the fabric by itself and with a guest, beside what the system calls
// allow, a Linux bridge, and QEMU's own socket netdev.
//
// A load generator sits on the sockets. Without a guest it sends frames at one end of
// an arm and counts them at the other. With a guest, the boot-sector program that
// answers every frame, it sends and counts at the same end. The arms of a round follow
// in random order.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"time"

	"fermata/experiments/result"
)

const name = "wire"

func main() { os.Exit(result.Main(name, run)) }

// sizes are of frames, in bytes, without a checksum: the least that Ethernet has, what
// it usually has at most, and a jumbo frame.
var sizes = []int{64, 1514, 9014}

type options struct {
	n       int
	length  time.Duration
	json    bool
	scratch string
}

func parseOptions(args []string, complaints io.Writer) (options, error) {
	var o options
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	fs.SetOutput(complaints)
	quick := fs.Bool("quick", false, "one short round: shows that it works, measures nothing")
	fs.IntVar(&o.n, "n", 10, "rounds, each with every arm at every size")
	fs.DurationVar(&o.length, "length", time.Second, "how long an arm is under load in a round")
	fs.StringVar(&o.scratch, "dir", "/dev/shm", "`directory` for the guests' files")
	var err error
	o.json, err = result.ParseFlags(fs, args, func() error {
		if *quick {
			o.n, o.length = 1, 50*time.Millisecond
		}
		var errs []error
		if o.n < 1 {
			errs = append(errs, fmt.Errorf("-n %d: want 1 or more", o.n))
		}
		if o.length < 10*time.Millisecond {
			errs = append(errs, fmt.Errorf("-length %s: want 10ms or more", o.length))
		}
		return errors.Join(errs...)
	})
	return o, err
}

// row is one arm at one size.
type row struct {
	Arm        string `json:"arm"`
	Guest      bool   `json:"guest"` // frames go through a guest and back
	FrameBytes int    `json:"frame_bytes"`

	FramesPerS   result.Sample `json:"frames_per_s"`   // that arrived
	GbitPerS     result.Sample `json:"gbit_per_s"`     // of frames that arrived
	CPUSPerMega  result.Sample `json:"cpu_s_per_mega"` // of the whole machine, for a million frames that arrived; generator included
	RoundTripUS  result.Sample `json:"round_trip_us"`  // of one frame at a time, there and back; median of a round
	LostPerMille result.Sample `json:"lost_per_mille"` // of the frames that were sent
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	o, err := parseOptions(args, stderr)
	if err != nil {
		return err
	}
	if err := result.Need([]string{result.QEMU}); err != nil {
		return err
	}
	doc, err := result.New[row](ctx, name)
	if err != nil {
		return err
	}
	note := result.Notes(stderr)
	scratch, err := os.MkdirTemp(o.scratch, "fermata-wire-")
	if err != nil {
		return fmt.Errorf("make scratch directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(scratch)) }()
	if doc.Rows, err = measure(ctx, o, scratch, note); err != nil {
		return err
	}
	doc.Goals = goals(doc.Rows)
	return doc.Print(stdout, o.json, columns())
}

func measure(ctx context.Context, o options, scratch string, note func(string, ...any)) ([]row, error) {
	var rows []row
	var cells []arm
	for _, a := range arms {
		for _, size := range sizes {
			if size <= a.most() {
				rows = append(rows, row{Arm: a.name, Guest: a.guest, FrameBytes: size})
				cells = append(cells, a)
			}
		}
	}
	for round := range o.n {
		for _, i := range rand.Perm(len(rows)) {
			if err := measureOne(ctx, cells[i], o.length, scratch, &rows[i]); err != nil {
				return nil, fmt.Errorf("%s at %d bytes: %w", rows[i].Arm, rows[i].FrameBytes, err)
			}
		}
		note("round %d of %d", round+1, o.n)
	}
	return rows, nil
}

func measureOne(ctx context.Context, a arm, length time.Duration, scratch string, r *row) (err error) {
	line, err := a.open(ctx, scratch)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, line.close()) }()
	trip, err := line.roundTrip(ctx, r.FrameBytes, length)
	if err != nil {
		return fmt.Errorf("round trips: %w", err)
	}
	load, err := line.load(ctx, r.FrameBytes, length)
	if err != nil {
		return fmt.Errorf("load: %w", err)
	}
	if load.arrived == 0 {
		return errors.New("load: nothing arrived")
	}
	rate := float64(load.arrived) / load.took.Seconds()
	r.FramesPerS = append(r.FramesPerS, rate)
	r.GbitPerS = append(r.GbitPerS, rate*float64(r.FrameBytes)*8/1e9)
	r.CPUSPerMega = append(r.CPUSPerMega, load.cpu.Seconds()/float64(load.arrived)*1e6)
	r.RoundTripUS = append(r.RoundTripUS, float64(trip)/float64(time.Microsecond))
	r.LostPerMille = append(r.LostPerMille, float64(load.sent-load.arrived)/float64(load.sent)*1000)
	return nil
}

func find(rows []row, arm string, size int) *row {
	i := slices.IndexFunc(rows, func(r row) bool { return r.Arm == arm && r.FrameBytes == size })
	if i < 0 {
		return nil
	}
	return &rows[i]
}

func goals(rows []row) []result.Goal {
	var all []result.Goal
	const small = 64
	sw, limit := find(rows, armSwitch, small), find(rows, armCalls, small)
	all = append(all,
		result.AtLeast("switch only, 64 bytes: frames a second and core, generator included", 1e6, 1e6/sw.CPUSPerMega.Median()),
		result.AtLeast("switch only, 64 bytes: frames a second over what two hops of system calls allow", 1, 2*sw.FramesPerS.Median()/limit.FramesPerS.Median()))
	for _, size := range sizes[:2] {
		ours, theirs := find(rows, armGuest, size), find(rows, armSocketNetdev, size)
		all = append(all, result.AtLeast(fmt.Sprintf("with a guest, %d bytes: frames a second over QEMU's socket netdev", size), 1,
			ours.FramesPerS.Median()/theirs.FramesPerS.Median()))
	}
	return all
}

func columns() []result.Column[row] {
	return []result.Column[row]{
		{Name: "ARM", Cell: func(r row) string { return r.Arm }},
		{Name: "BYTES", Cell: func(r row) string { return strconv.Itoa(r.FrameBytes) }},
		{Name: "N", Cell: func(r row) string { return strconv.Itoa(len(r.FramesPerS)) }},
		{Name: "FRAMES/s", Cell: func(r row) string { return r.FramesPerS.String() }},
		{Name: "Gbit/s", Cell: func(r row) string { return r.GbitPerS.String() }},
		{Name: "CPU s/1e6", Cell: func(r row) string { return r.CPUSPerMega.String() }},
		{Name: "ROUND TRIP µs", Cell: func(r row) string { return r.RoundTripUS.String() }},
		{Name: "LOST ‰", Cell: func(r row) string { return r.LostPerMille.String() }},
	}
}
