// Command pause measures how long a guest stands still for one checkpoint, and
// how long it takes until the checkpoint is durable.
//
// It compares three ways, on the same kind of guest under the same load and in
// turns: QEMU's plain stop-and-copy, QEMU's background-snapshot, and Fermata's
// checkpoint, driven from outside through a lab, the first into an empty
// repository and the next of the same guest. Every trial boots a guest of its
// own. All images go to the same filesystem, and all count as durable when they
// are on the disk.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"fermata/experiments/result"
)

const name = "pause"

func main() { os.Exit(result.Main(name, run)) }

const (
	defaultN     = 10
	defaultSizes = "256MiB,1GiB"
	quickN       = 2
	quickSizes   = "256MiB"
)

// options are the flags.
type options struct {
	n        int
	sizes    []size
	json     bool
	svg      string
	fermata  string
	guestDir string
	scratch  string
}

func parseOptions(args []string, complaints io.Writer) (options, error) {
	var o options
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	fs.SetOutput(complaints)
	quick := fs.Bool("quick", false, fmt.Sprintf("two repetitions at %s: shows that it works, measures little", quickSizes))
	format := fs.String("o", "table", "`format` of the result: table or json")
	fs.IntVar(&o.n, "n", defaultN, "repetitions")
	sizes := fs.String("sizes", defaultSizes, "memory of the guests, a `list`")
	fs.StringVar(&o.svg, "svg", "", "draw the result into this `file`, too")
	fs.StringVar(&o.fermata, "fermata", "", "the fermata `binary`; built from this tree when empty")
	fs.StringVar(&o.guestDir, "guest-dir", "build/guest", "`directory` of the guests' kernel and initial RAM disk")
	fs.StringVar(&o.scratch, "dir", os.TempDir(), "`directory` for everything that is written; its filesystem is measured, too")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return o, err
		}
		return o, &result.UsageError{Err: err}
	}
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
	if *format != "table" && *format != "json" {
		errs = append(errs, fmt.Errorf("-o %s: want table or json", *format))
	}
	if fs.NArg() > 0 {
		errs = append(errs, fmt.Errorf("unexpected argument %q", fs.Arg(0)))
	}
	o.json = *format == "json"
	if err := errors.Join(errs...); err != nil {
		return o, &result.UsageError{Err: err}
	}
	return o, nil
}

// setpriv is of util-linux.
const setpriv = "setpriv"

// missing names what the machine lacks, nil when it has all.
func (o options) missing() error {
	var m result.Missing
	if os.Geteuid() != 0 {
		m = append(m, "root (network namespaces)")
	}
	programs := []string{result.QEMU, setpriv}
	if o.fermata == "" {
		programs = append(programs, "go")
	} else {
		programs = append(programs, o.fermata)
	}
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			m = append(m, p)
		}
	}
	kernel, initrd := imageFiles(o.guestDir)
	for _, path := range []string{kernel, initrd} {
		if _, err := os.Stat(path); err != nil {
			m = append(m, fmt.Sprintf("%s (make guests)", path))
		}
	}
	if m == nil {
		return nil
	}
	return m
}

// room refuses sizes for which the machine has no memory: a full tmpfs would
// kill guests.
func (o options) room() error {
	var most size
	for _, s := range o.sizes {
		most = max(most, s)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(ramDir, &fs); err != nil {
		return fmt.Errorf("look for room on %s: %w", ramDir, err)
	}
	need := most + spareMemory
	if free := size(fs.Bavail * uint64(fs.Bsize)); free < need {
		return result.Missing{fmt.Sprintf("%d MiB on %s for a guest of %s, which has %d MiB", need/mib, ramDir, most, free/mib)}
	}
	return nil
}

// experiment is one run.
type experiment struct {
	dir     string // for everything that is written
	fermata string // the binary
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
	doc := result.Document[row]{Experiment: name}
	if doc.Machine, err = result.Here(ctx); err != nil {
		return err
	}
	if doc.Commit, err = result.Commit(ctx, "."); err != nil {
		return err
	}
	begun := time.Now()
	note := func(format string, args ...any) {
		fmt.Fprintf(stderr, "[%6.1fs] %s\n", time.Since(begun).Seconds(), fmt.Sprintf(format, args...))
	}
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
	results, err := repeat(ctx, o.n, all, x.subjects(), note)
	if err != nil {
		return err
	}
	doc.Rows = newRows(all, results)
	doc.Goals = goals(all, doc.Rows)
	if o.svg != "" {
		if err := draw(o.svg, panels(all, doc.Rows)); err != nil {
			return err
		}
	}
	if o.json {
		return doc.Encode(stdout)
	}
	return doc.WriteTable(stdout, columns())
}

// prepare makes what all trials need: the binary and the guests' image.
func (x *experiment) prepare(ctx context.Context, o options, note func(string, ...any)) ([]guest, error) {
	x.fermata = filepath.Join(x.dir, "fermata")
	if o.fermata == "" {
		note("building fermata")
		out, err := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", x.fermata, "fermata/cmd/fermata").CombinedOutput()
		if err != nil {
			return nil, fmt.Errorf("build fermata: %w\n%s", err, out)
		}
	} else {
		path, err := filepath.Abs(o.fermata)
		if err != nil {
			return nil, fmt.Errorf("find %s: %w", o.fermata, err)
		}
		x.fermata = path
	}
	guestDir, err := filepath.Abs(o.guestDir)
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", o.guestDir, err)
	}
	kernel, original := imageFiles(guestDir)
	initrd := filepath.Join(x.dir, "initrd.img")
	if err := writeInitrd(initrd, original); err != nil {
		return nil, err
	}
	var all []guest
	for _, memory := range o.sizes {
		g, err := newGuest(memory, kernel, initrd)
		if err != nil {
			return nil, err
		}
		all = append(all, g)
	}
	return all, nil
}

// subjects are what is compared. Background-snapshot gets anonymous memory,
// with which it is fastest.
func (x *experiment) subjects() []subject {
	return []subject{
		{stopAndCopy, func(ctx context.Context, g guest) ([]taken, error) {
			return x.peerTrial(ctx, g, sharedRAM, takeByStopAndCopy)
		}},
		{background, func(ctx context.Context, g guest) ([]taken, error) {
			return x.peerTrial(ctx, g, anonymousRAM, takeInBackground)
		}},
		{"fermata", x.fermataTrial},
	}
}

func draw(path string, panels []result.Panel) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("draw result: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return result.WriteSVG(f, panels...)
}
