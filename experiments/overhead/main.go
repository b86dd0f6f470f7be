// Command overhead measures how much slower fixed work in a guest gets by
// checkpoints: none, one and six a minute, and by the tracking of its writes
// alone, from the second of which on a live checkpoint reads only what changed.
//
// One guest boots and rewrites memory as fast as it can. A run is the time, by the
// host's clock, in which it rewrites a fixed amount. The arms of a round follow in
// random order and are compared with the round's own run without checkpoints, so
// that what drifts or disturbs hits all.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"time"

	"fermata/experiments/guests"
	"fermata/experiments/labrun"
	"fermata/experiments/result"
)

const name = "overhead"

func main() { os.Exit(result.Main(name, run)) }

// The arms, as they stand in the document.
const (
	none     = "none"       // nothing is tracked, no checkpoint
	tracking = "tracking"   // writes are tracked, no checkpoint
	one      = "1 a minute" // live checkpoints
	six      = "6 a minute" // live checkpoints
)

// arms are in the order of the document, none first. One checkpoint a minute takes
// a minute to see; the others are compared by a third of that.
var arms = []arm{
	{name: none, share: 3},
	{name: tracking, share: 3, tracked: true},
	{name: one, share: 1, checkpoints: 1, tracked: true},
	{name: six, share: 3, checkpoints: 2, tracked: true},
}

type arm struct {
	name        string
	share       int // its runs last a minute by this
	checkpoints int // evenly spread over a run
	tracked     bool
}

type options struct {
	n        int
	length   time.Duration
	json     bool
	svg      string
	guestDir string
	scratch  string
}

func parseOptions(args []string, complaints io.Writer) (options, error) {
	var o options
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	fs.SetOutput(complaints)
	quick := fs.Bool("quick", false, "two short rounds: shows that it works, measures nothing")
	fs.IntVar(&o.n, "n", 10, "rounds, each with a run of every arm")
	fs.DurationVar(&o.length, "length", time.Minute, "what counts as a minute; with less, checkpoints are closer than their arm says")
	fs.StringVar(&o.svg, "svg", "", "draw the result into this `file`, too")
	fs.StringVar(&o.guestDir, "guest-dir", "build/guest", "`directory` of the guest's kernel and initial RAM disk")
	fs.StringVar(&o.scratch, "dir", "/dev/shm", "`directory` for everything that is written")
	var err error
	o.json, err = result.ParseFlags(fs, args, func() error {
		if *quick {
			o.n, o.length = 2, 6*time.Second
		}
		var errs []error
		if o.n < 1 {
			errs = append(errs, fmt.Errorf("-n %d: want 1 or more", o.n))
		}
		if o.length < 3*time.Second {
			errs = append(errs, fmt.Errorf("-length %s: want 3s or more", o.length))
		}
		return errors.Join(errs...)
	})
	return o, err
}

// row is one arm.
type row struct {
	Arm         string `json:"arm"`
	Checkpoints int    `json:"checkpoints"` // in each run
	WorkBytes   uint64 `json:"work_bytes"`  // rewritten in each run

	ElapsedS result.Sample `json:"elapsed_s"`
	OverNone result.Sample `json:"over_none"`          // time a byte, over that of the run without checkpoints of the same round
	PauseMS  result.Sample `json:"pause_ms,omitempty"` // of all its checkpoints
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
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
	t, err := start(ctx, o, note)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.End()) }()
	if doc.Rows, err = measure(ctx, t, o, note); err != nil {
		return err
	}
	doc.Goals = goals(doc.Rows)
	if o.svg != "" {
		if err := result.Draw(o.svg, panel(doc.Rows)); err != nil {
			return err
		}
	}
	return doc.Print(stdout, o.json, columns())
}

// measure runs the rounds.
func measure(ctx context.Context, t *trial, o options, note func(string, ...any)) ([]row, error) {
	rate, err := t.rate(ctx, min(o.length, 10*time.Second))
	if err != nil {
		return nil, err
	}
	note("the guest rewrites %.0f MiB a second", rate/mib)
	rows := make([]row, len(arms))
	for i, a := range arms {
		length := o.length / time.Duration(a.share)
		rows[i] = row{Arm: a.name, Checkpoints: a.checkpoints, WorkBytes: uint64(rate*length.Seconds()) / mib * mib}
	}
	for round := range o.n {
		each := make([]float64, len(arms)) // seconds a byte
		for _, i := range rand.Perm(len(arms)) {
			took, pauses, err := t.run(ctx, arms[i], rows[i].WorkBytes, o.length/time.Duration(arms[i].share))
			if err != nil {
				return nil, fmt.Errorf("%s, round %d: %w", arms[i].name, round+1, err)
			}
			note("round %d of %d: %s took %.2f s", round+1, o.n, arms[i].name, took.Seconds())
			rows[i].ElapsedS = append(rows[i].ElapsedS, took.Seconds())
			rows[i].PauseMS = append(rows[i].PauseMS, pauses...)
			each[i] = took.Seconds() / float64(rows[i].WorkBytes)
		}
		for i := range arms {
			rows[i].OverNone = append(rows[i].OverNone, each[i]/each[0])
		}
	}
	return rows, nil
}

func goals(rows []row) []result.Goal {
	var all []result.Goal
	for _, r := range rows {
		if r.Arm == tracking {
			all = append(all, result.AtMost("time of fixed work, tracking over none, median", 1.01, r.OverNone.Median()))
		}
	}
	return all
}

func columns() []result.Column[row] {
	return []result.Column[row]{
		{Name: "CHECKPOINTS", Cell: func(r row) string { return r.Arm }},
		{Name: "N", Cell: func(r row) string { return fmt.Sprint(len(r.ElapsedS)) }},
		{Name: "ELAPSED s", Cell: func(r row) string { return r.ElapsedS.String() }},
		{Name: "OVER NONE", Cell: func(r row) string {
			return fmt.Sprintf("%.4f [%.4f, %.4f]", r.OverNone.Median(), r.OverNone.Quantile(0.25), r.OverNone.Quantile(0.75))
		}},
		{Name: "PAUSE ms", Cell: func(r row) string { return r.PauseMS.String() }},
	}
}

func panel(rows []row) result.Panel {
	p := result.Panel{Title: "How much slower fixed work gets", Unit: "time, over that without checkpoints", Groups: []string{"512MiB guest"}}
	for _, r := range rows {
		p.Series = append(p.Series, result.Series{Name: r.Arm, Samples: []result.Sample{r.OverNone}})
	}
	return p
}
