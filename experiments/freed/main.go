// Command freed measures what memory that a guest has freed costs its checkpoints, and
// what a guest that zeroes it pays.
//
// A program fills memory with what cannot be compressed and ends. What it leaves is
// still in the guest's RAM, and so in every checkpoint, until something else is
// written there. A guest whose kernel was started with init_on_free=1 writes zeros when
// it frees (Documentation/admin-guide/kernel-parameters.txt), and pages of zeros are
// not stored.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"fermata/experiments/guests"
	"fermata/experiments/labrun"
	"fermata/experiments/result"
)

const name = "freed"

func main() { os.Exit(result.Main(name, run)) }

type options struct {
	n         int
	memoryMiB int
	writeMiB  int
	json      bool
	guestDir  string
	scratch   string
}

func parseOptions(args []string, complaints io.Writer) (options, error) {
	var o options
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	fs.SetOutput(complaints)
	quick := fs.Bool("quick", false, "once: shows that it works, measures little")
	fs.IntVar(&o.n, "n", 5, "how often each kind of guest is started")
	fs.IntVar(&o.memoryMiB, "memory", 512, "of the guest, `MiB`")
	fs.IntVar(&o.writeMiB, "write", 256, "`MiB` that the program fills before it ends")
	fs.StringVar(&o.guestDir, "guest-dir", "build/guest", "`directory` of the guests' kernel and initial RAM disk")
	fs.StringVar(&o.scratch, "dir", "/dev/shm", "`directory` for everything that is written")
	var err error
	o.json, err = result.ParseFlags(fs, args, func() error {
		if *quick {
			o.n, o.memoryMiB, o.writeMiB = 1, 192, 64
		}
		var errs []error
		if o.n < 1 {
			errs = append(errs, fmt.Errorf("-n %d: want 1 or more", o.n))
		}
		if o.writeMiB < 1 || o.memoryMiB < o.writeMiB+guests.MinMemoryMiB/2 {
			errs = append(errs, fmt.Errorf("-write %d: want 1 or more, and %d less than -memory", o.writeMiB, guests.MinMemoryMiB/2))
		}
		return errors.Join(errs...)
	})
	return o, err
}

// arm is a kind of guest.
type arm struct {
	name   string
	kernel string // words of its command line
}

var arms = []arm{{"as it is", ""}, {"init_on_free=1", "init_on_free=1"}}

// row is one kind of guest.
type row struct {
	Guest      string        `json:"guest"`
	NonZeroMiB result.Sample `json:"non_zero_mib"` // of the checkpoint after the program has ended
	StoredMiB  result.Sample `json:"stored_mib"`
	WriteMiBPS result.Sample `json:"write_mib_per_s"` // how fast the program filled memory
	BootS      result.Sample `json:"boot_s"`          // of the guest's own clock, until it is ready
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, err := parseOptions(args, stderr)
	if err != nil {
		return err
	}
	kernel, initrd := guests.ImageFiles(o.guestDir)
	if err := result.Need([]string{result.QEMU, labrun.Setpriv, "go"}, kernel, initrd); err != nil {
		return err
	}
	doc, err := result.New[row](ctx, name)
	if err != nil {
		return err
	}
	note := result.Notes(stderr)
	for _, a := range arms {
		doc.Rows = append(doc.Rows, row{Guest: a.name})
	}
	for round := range o.n {
		for i, a := range arms {
			if err := measure(ctx, o, a, &doc.Rows[i]); err != nil {
				return fmt.Errorf("%s: %w", a.name, err)
			}
		}
		note("round %d of %d", round+1, o.n)
	}
	was, is := doc.Rows[0].StoredMiB.Median(), doc.Rows[1].StoredMiB.Median()
	doc.Goals = []result.Goal{result.AtLeast("freed memory that is not stored, of what the program had written", 0.9, (was-is)/float64(o.writeMiB))}
	return doc.Print(stdout, o.json, columns())
}

const (
	clusterName = "freed"
	writeFor    = 5 * time.Second
	endBudget   = 2 * time.Minute
)

// measure starts one guest, and takes a checkpoint when its program has ended.
func measure(ctx context.Context, o options, a arm, r *row) (err error) {
	lab, err := labrun.NewScratch(ctx, o.scratch, name, 1)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lab.End()) }()
	app := guests.Cluster{Count: 1, Work: guests.RunDirty, Tick: time.Second, Kernel: a.kernel,
		Writer: guests.Writer{MiB: o.writeMiB, Length: writeFor}}
	var end guests.Dirty
	var ready guests.Ready
	ended := func(console []byte) bool {
		left := false
		labrun.Each(console, func(l guests.Line) {
			switch body := l.Body.(type) {
			case guests.Ready:
				ready = body
			case guests.Dirty:
				if body.Ended {
					end = body
				}
			case guests.DirtyExit:
				left = true
			}
		})
		return left
	}
	if err := lab.BringGuests(ctx, clusterName, o.guestDir, o.memoryMiB, app, func(c []byte) bool { return len(c) > 0 }); err != nil {
		return err
	}
	consoles := labrun.Consoles{Lab: lab.Lab, Cluster: clusterName, Count: 1}
	err = consoles.Await(ctx, endBudget, "the program to end", func(all map[string][]byte) (bool, error) {
		for _, c := range all {
			if !ended(c) {
				return false, nil
			}
		}
		return true, nil
	})
	if err != nil {
		return err
	}
	if end.Bad != 0 || end.Written == 0 {
		return fmt.Errorf("the program ended with %+v", end)
	}
	var taken struct {
		NonZero uint64 `json:"non_zero_bytes"`
		Stored  uint64 `json:"stored_bytes"`
	}
	if err := lab.Command(ctx, io.Discard, &taken, "checkpoint", clusterName, "-o", "json"); err != nil {
		return err
	}
	r.NonZeroMiB = append(r.NonZeroMiB, float64(taken.NonZero)/(1<<20))
	r.StoredMiB = append(r.StoredMiB, float64(taken.Stored)/(1<<20))
	r.WriteMiBPS = append(r.WriteMiBPS, end.Rate)
	r.BootS = append(r.BootS, float64(ready.Uptime.Duration())/float64(time.Second))
	return nil
}

func columns() []result.Column[row] {
	return []result.Column[row]{
		{Name: "GUEST", Cell: func(r row) string { return r.Guest }},
		{Name: "NOT ZERO MiB", Cell: func(r row) string { return r.NonZeroMiB.String() }},
		{Name: "STORED MiB", Cell: func(r row) string { return r.StoredMiB.String() }},
		{Name: "WRITES MiB/s", Cell: func(r row) string { return r.WriteMiBPS.String() }},
		{Name: "BOOT s", Cell: func(r row) string { return r.BootS.String() }},
		{Name: "N", Cell: func(r row) string { return strconv.Itoa(len(r.StoredMiB)) }},
	}
}
