// Command pause measures how long a guest stands still for one checkpoint, and
// how long it takes until the checkpoint is durable.
//
// It compares, on the same kind of guest under the same load and in turns:
// QEMU's plain stop-and-copy, QEMU's background-snapshot, by a newer QEMU, too,
// where there is one, and Fermata's checkpoints, driven from outside through a
// lab: with memory copied inside the pause, live into an empty repository, live
// after an earlier one, and that of an idle guest. A boot serves many
// checkpoints. All images go to the same filesystem, by default in memory, and
// all count as durable when they are synced to it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"fermata/experiments/guests"
	"fermata/experiments/labrun"
	"fermata/experiments/result"
)

const name = "pause"

func main() { os.Exit(result.Main(name, run)) }

const (
	defaultN     = 20
	defaultBoots = 2
	defaultSizes = "512MiB,2GiB,4GiB"
	quickN       = 2
	quickSizes   = "256MiB"

	// newerQEMU is where experiments/qemunewer puts it.
	newerQEMU = "build/qemu-newer/" + result.QEMU
	noNewer   = "none"
)

// options are the flags.
type options struct {
	n        int
	boots    int
	sizes    []size
	json     bool
	svg      string
	fermata  string
	newer    string // "" = none
	guestDir string
	scratch  string
}

func parseOptions(args []string, complaints io.Writer) (options, error) {
	var o options
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	fs.SetOutput(complaints)
	quick := fs.Bool("quick", false, fmt.Sprintf("two repetitions at %s: shows that it works, measures little", quickSizes))
	fs.IntVar(&o.n, "n", defaultN, "checkpoints by each method at each size")
	fs.IntVar(&o.boots, "boots", defaultBoots, "guests that each method and size spreads them over")
	sizes := fs.String("sizes", defaultSizes, "memory of the guests, a `list`")
	fs.StringVar(&o.svg, "svg", "", "draw the result into this `file`, too")
	fs.StringVar(&o.fermata, "fermata", "", "the fermata `binary`; built from this tree when empty")
	fs.StringVar(&o.newer, "qemu-newer", "", fmt.Sprintf("a newer QEMU `binary` to compare with, too; %q: none; when empty %s if it is there", noNewer, newerQEMU))
	fs.StringVar(&o.guestDir, "guest-dir", "build/guest", "`directory` of the guests' kernel and initial RAM disk")
	fs.StringVar(&o.scratch, "dir", ramDir, "`directory` for everything that is written; its filesystem is measured, too")
	var err error
	o.json, err = result.ParseFlags(fs, args, func() error {
		given := map[string]bool{}
		fs.Visit(func(f *flag.Flag) { given[f.Name] = true })
		if *quick && !given["n"] {
			o.n = quickN
		}
		if *quick && !given["sizes"] {
			*sizes = quickSizes
		}
		var errs []error
		var err error
		if o.sizes, err = parseSizes(*sizes); err != nil {
			errs = append(errs, err)
		}
		if o.n < 1 {
			errs = append(errs, fmt.Errorf("-n %d: want 1 or more", o.n))
		}
		if o.boots < 1 {
			errs = append(errs, fmt.Errorf("-boots %d: want 1 or more", o.boots))
		}
		return errors.Join(errs...)
	})
	switch o.newer {
	case noNewer:
		o.newer = ""
	case "":
		if _, err := os.Stat(newerQEMU); err == nil {
			o.newer = newerQEMU
		}
	}
	return o, err
}

// missing names what the machine lacks, nil when it has all.
func (o options) missing() error {
	programs := []string{result.QEMU, labrun.Setpriv}
	if o.fermata == "" {
		programs = append(programs, "go")
	} else {
		programs = append(programs, o.fermata)
	}
	if o.newer != "" {
		programs = append(programs, o.newer)
	}
	kernel, initrd := guests.ImageFiles(o.guestDir)
	return result.Need(programs, kernel, initrd)
}

// room refuses sizes for which the machine has no memory: a full tmpfs would
// kill guests.
func (o options) room() error {
	var most size
	for _, s := range o.sizes {
		most = max(most, s)
	}
	// A guest, an image of it, and a copy while it is stopped.
	need := 3*most + spareMemory
	var fs unix.Statfs_t
	if err := unix.Statfs(ramDir, &fs); err != nil {
		return fmt.Errorf("look for room on %s: %w", ramDir, err)
	}
	if free := size(fs.Bavail * uint64(fs.Bsize)); free < need {
		return result.Missing{fmt.Sprintf("%d MiB on %s for a guest of %s, which has %d MiB", need/mib, ramDir, most, free/mib)}
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return fmt.Errorf("look for memory: %w", err)
	}
	if total := size(info.Totalram * uint64(info.Unit)); total < need {
		return result.Missing{fmt.Sprintf("%d MiB of memory for a guest of %s, of %d MiB", need/mib, most, total/mib)}
	}
	return nil
}

// experiment is one run.
type experiment struct {
	dir     string // for everything that is written
	fermata string // the binary
	can     abilities
	qemu    emulator // that of Fermata's guests, too
	newer   emulator // without a program when there is none
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	o, err := parseOptions(args, stderr)
	if err != nil {
		return err
	}
	if err := o.missing(); err != nil {
		return err
	}
	if err := o.room(); err != nil {
		return err
	}
	doc, err := result.New[row](ctx, name)
	if err != nil {
		return err
	}
	note := result.Notes(stderr)
	x := &experiment{}
	// The name stays short: there are sockets below it.
	if x.dir, err = os.MkdirTemp(o.scratch, "fermata-pause-"); err != nil {
		return fmt.Errorf("make scratch directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(x.dir)) }()
	all, err := x.prepare(ctx, o, note)
	if err != nil {
		return err
	}
	results, err := repeat(ctx, o.n, o.boots, all, x.subjects(), note)
	if err != nil {
		return err
	}
	doc.Rows = newRows(all, results)
	doc.Goals = goals(all, doc.Rows)
	if o.svg != "" {
		if err := result.Draw(o.svg, panels(all, doc.Rows)...); err != nil {
			return err
		}
	}
	return doc.Print(stdout, o.json, columns())
}

// prepare finds and makes what all trials need: the programs and the guests.
func (x *experiment) prepare(ctx context.Context, o options, note func(string, ...any)) ([]pair, error) {
	x.fermata = filepath.Join(x.dir, "fermata")
	if o.fermata == "" {
		note("building fermata")
		if err := labrun.Build(ctx, x.fermata); err != nil {
			return nil, err
		}
	} else {
		path, err := filepath.Abs(o.fermata)
		if err != nil {
			return nil, fmt.Errorf("find %s: %w", o.fermata, err)
		}
		x.fermata = path
	}
	var err error
	if x.can, err = ask(ctx, x.fermata); err != nil {
		return nil, err
	}
	switch {
	case !x.can.modes:
		note("this fermata has no --mode: live checkpoints are not measured")
	case !x.can.full:
		note("this fermata has no --full: %s is measured once a boot, %d times in all", fermataFirst, min(o.n, o.boots))
	}
	if x.qemu, err = askQEMU(ctx, result.QEMU); err != nil {
		return nil, err
	}
	if o.newer != "" {
		if x.newer, err = askQEMU(ctx, o.newer); err != nil {
			return nil, err
		}
	}
	guestDir, err := filepath.Abs(o.guestDir)
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", o.guestDir, err)
	}
	kernel, initrd := guests.ImageFiles(guestDir)
	var all []pair
	for _, memory := range o.sizes {
		var p pair
		if p.busy, err = newGuest(memory, kernel, initrd, false); err != nil {
			return nil, err
		}
		if p.idle, err = newGuest(memory, kernel, initrd, true); err != nil {
			return nil, err
		}
		all = append(all, p)
	}
	return all, nil
}

func askQEMU(ctx context.Context, program string) (emulator, error) {
	version, err := result.QEMUVersion(ctx, program)
	return emulator{program: program, version: version}, err
}

// subjects are what is compared. Background-snapshot gets anonymous memory,
// with which it is fastest.
func (x *experiment) subjects() []subject {
	peer := func(name string, e emulator, ram ramKind, take takeFunc) subject {
		return subject{name: name, trial: func(ctx context.Context, g guest, n int) ([]taken, error) {
			return x.peerTrial(ctx, e, g, ram, n, take)
		}}
	}
	fermata := func(name string, ways []way) subject {
		return subject{name: name, trial: func(ctx context.Context, g guest, n int) ([]taken, error) {
			return x.fermataTrial(ctx, g, n, ways)
		}}
	}
	all := []subject{
		peer(stopAndCopy, x.qemu, sharedRAM, takeByStopAndCopy),
		peer(background, x.qemu, anonymousRAM, takeInBackground(background)),
	}
	if x.newer.program != "" {
		all = append(all, peer(backgroundNewer, x.newer, anonymousRAM, takeInBackground(backgroundNewer)))
	}
	all = append(all, fermata("fermata", x.can.busyWays()))
	if x.can.modes {
		idle := fermata("fermata-idle", idleWays())
		idle.idle = true
		all = append(all, idle)
	}
	return all
}
