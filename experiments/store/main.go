// Command store puts the same RAM images of real guests into Fermata's repository and
// into what others would keep them in, and measures how fast that is, what is stored,
// and what it costs to get them back and to forget some.
//
// The images are those of checkpoints that the run takes: several guests, several
// generations. Everything lies in memory (tmpfs), so that no disk is measured. What
// Fermata's own parts do alone, in the same run, says how much of the time is spent on
// anything else.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"

	"fermata/experiments/guests"
	"fermata/experiments/labrun"
	"fermata/experiments/result"
)

const name = "store"

func main() {
	if len(os.Args) > 1 && os.Args[1] == workerArg {
		if err := work(os.Args[2:], os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(result.Main(name, run))
}

type options struct {
	n         int
	guests    int
	memoryMiB int
	json      bool
	guestDir  string
	scratch   string
}

// generations is how often the guests are looked at.
const generations = 3

func parseOptions(args []string, complaints io.Writer) (options, error) {
	var o options
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	fs.SetOutput(complaints)
	quick := fs.Bool("quick", false, "one round with two small guests: shows that it works, measures nothing")
	fs.IntVar(&o.n, "n", 5, "rounds, each with every tool")
	fs.IntVar(&o.guests, "guests", 4, "how many guests")
	fs.IntVar(&o.memoryMiB, "memory", 512, "of each guest, `MiB`")
	fs.StringVar(&o.guestDir, "guest-dir", "build/guest", "`directory` of the guests' kernel and initial RAM disk")
	fs.StringVar(&o.scratch, "dir", "/dev/shm", "`directory` for everything that is written, in memory")
	var err error
	o.json, err = result.ParseFlags(fs, args, func() error {
		if *quick {
			o.n, o.guests, o.memoryMiB = 1, 2, guests.MinMemoryMiB
		}
		var errs []error
		for _, f := range []struct {
			flag               string
			value, least, most int
		}{{"-n", o.n, 1, 1000}, {"-guests", o.guests, 1, 16}, {"-memory", o.memoryMiB, guests.MinMemoryMiB, 1 << 14}} {
			if f.value < f.least || f.value > f.most {
				errs = append(errs, fmt.Errorf("%s %d: want %d to %d", f.flag, f.value, f.least, f.most))
			}
		}
		return errors.Join(errs...)
	})
	return o, err
}

// step is what is measured of a tool.
type step string

const (
	full      step = "full"      // the first generation, into nothing
	next      step = "next"      // the two that follow
	unchanged step = "unchanged" // the last one again
	restore   step = "restore"   // the last one
	prune     step = "prune"     // forgets the first one
)

// row is one step of one tool.
type row struct {
	Tool      string        `json:"tool"`
	Step      step          `json:"step"`
	DataBytes int64         `json:"data_bytes"`               // of them in pages that are not zeros, in the first generation
	Bytes     int64         `json:"bytes"`                    // of RAM that the step is about
	MBPerS    result.Sample `json:"mb_per_s,omitempty"`       // wall clock; of prune none
	CoreMBPS  result.Sample `json:"mb_per_s_core,omitempty"`  // by processor time
	Seconds   result.Sample `json:"seconds"`                  // wall clock
	Processor result.Sample `json:"cpu_s"`                    // processor time
	PeakMiB   result.Sample `json:"peak_mib"`                 // of the process; of Fermata's ingest that of all its steps
	Stored    int64         `json:"stored_bytes"`             // after the step, of the last round
	OfLimit   result.Sample `json:"share_of_limit,omitempty"` // processor time that its parts take alone, over what it took
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	o, err := parseOptions(args, stderr)
	if err != nil {
		return err
	}
	kernel, initrd := guests.ImageFiles(o.guestDir)
	if err := result.Need([]string{result.QEMU, labrun.Setpriv, "go", "restic", "borg", "zstd", "qemu-img"}, kernel, initrd); err != nil {
		return err
	}
	doc, err := result.New[row](ctx, name)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(o.scratch, "fermata-store-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	note := result.Notes(stderr)
	in, err := takeImages(ctx, o, filepath.Join(dir, "images"), note)
	if err != nil {
		return fmt.Errorf("take images: %w", err)
	}
	note("%d MB of RAM a generation, %d MB of the first not zero", in.bytes/1e6, in.data/1e6)
	rows := newTable()
	tools := allTools()
	for round := range o.n {
		for _, i := range rand.Perm(len(tools)) {
			t := tools[i]
			place := filepath.Join(dir, "work")
			if err := os.Mkdir(place, 0o700); err != nil {
				return err
			}
			measured, err := t.measure(ctx, in, place)
			if err := errors.Join(err, os.RemoveAll(place)); err != nil {
				return fmt.Errorf("%s: %w", t.name, err)
			}
			rows.add(t.name, in, measured)
		}
		note("round %d of %d", round+1, o.n)
	}
	doc.Rows = rows.rows
	doc.Goals = goals(doc.Rows)
	return doc.Print(stdout, o.json, columns())
}

// measurement is one step, measured once.
type measurement struct {
	Step    step    `json:"step"`
	Bytes   int64   `json:"bytes"`
	Wall    float64 `json:"wall_s"`
	CPU     float64 `json:"cpu_s"`
	PeakKiB int64   `json:"peak_kib"`
	Stored  int64   `json:"stored"`
	Limit   float64 `json:"limit_s"` // processor time of its parts alone; 0: not known
}

// table collects measurements.
type table struct {
	rows []row
	at   map[[2]string]int
}

func newTable() *table { return &table{at: map[[2]string]int{}} }

func (t *table) add(tool string, in images, all []measurement) {
	for _, m := range all {
		key := [2]string{tool, string(m.Step)}
		i, ok := t.at[key]
		if !ok {
			i = len(t.rows)
			t.at[key] = i
			t.rows = append(t.rows, row{Tool: tool, Step: m.Step, Bytes: m.Bytes, DataBytes: m.Bytes / in.bytes * in.data})
		}
		r := &t.rows[i]
		if m.Step != prune {
			r.MBPerS = append(r.MBPerS, float64(m.Bytes)/1e6/m.Wall)
			r.CoreMBPS = append(r.CoreMBPS, float64(m.Bytes)/1e6/m.CPU)
		}
		r.Seconds = append(r.Seconds, m.Wall)
		r.Processor = append(r.Processor, m.CPU)
		r.PeakMiB = append(r.PeakMiB, float64(m.PeakKiB)/1024)
		r.Stored = m.Stored
		if m.Limit > 0 {
			r.OfLimit = append(r.OfLimit, m.Limit/m.CPU)
		}
	}
}

func find(rows []row, tool string, s step) row {
	for _, r := range rows {
		if r.Tool == tool && r.Step == s {
			return r
		}
	}
	return row{}
}

// dataPerCore is the pages that are not zeros, in GB a second of processor time.
func dataPerCore(r row) float64 { return float64(r.DataBytes) / 1e9 / r.Processor.Median() }

func goals(rows []row) []result.Goal {
	ours := find(rows, fermataS2, full)
	var all []result.Goal
	for _, peer := range []string{"restic", "borg"} {
		theirs := find(rows, peer, full)
		all = append(all, result.AtLeast("full ingest over "+peer+", wall clock", 5, ours.MBPerS.Median()/theirs.MBPerS.Median()))
	}
	sealed := find(rows, fermataKey, full)
	for _, peer := range []string{"restic", "borg"} {
		all = append(all, result.AtLeast("full ingest, encrypted, over "+peer+", wall clock", 5, sealed.MBPerS.Median()/find(rows, peer, full).MBPerS.Median()))
	}
	best := min(find(rows, "restic", next).Stored, find(rows, "borg", next).Stored)
	back := find(rows, fermataS2, restore)
	return append(all,
		result.AtMost("stored over the better of restic and borg, all generations", 1, float64(find(rows, fermataS2, next).Stored)/float64(best)),
		result.AtLeast("full ingest: its parts alone over what it took", 0.6, ours.OfLimit.Median()),
		result.AtLeast("unchanged generation, GB/s a core of pages that are looked at", 5, dataPerCore(find(rows, fermataS2, unchanged))),
		result.AtLeast("restore, GB/s a core of RAM", 1, back.CoreMBPS.Median()/1000),
		result.AtLeast("restore, GB/s a core of pages that are not zeros", 1, dataPerCore(back)))
}

func columns() []result.Column[row] {
	sample := func(s func(row) result.Sample) func(row) string {
		return func(r row) string {
			if len(s(r)) == 0 {
				return "-"
			}
			return s(r).String()
		}
	}
	return []result.Column[row]{
		{Name: "TOOL", Cell: func(r row) string { return r.Tool }},
		{Name: "STEP", Cell: func(r row) string { return string(r.Step) }},
		{Name: "MB/s", Cell: sample(func(r row) result.Sample { return r.MBPerS })},
		{Name: "MB/s A CORE", Cell: sample(func(r row) result.Sample { return r.CoreMBPS })},
		{Name: "SECONDS", Cell: sample(func(r row) result.Sample { return r.Seconds })},
		{Name: "PEAK MiB", Cell: sample(func(r row) result.Sample { return r.PeakMiB })},
		{Name: "STORED MB", Cell: func(r row) string { return strconv.FormatInt(r.Stored/1e6, 10) }},
		{Name: "OF LIMIT", Cell: sample(func(r row) result.Sample { return r.OfLimit })},
	}
}
