// Command cut measures what a cut costs the guests of a cluster: how long each stands
// still, and how far apart they are cut, by the number of guests and of nodes, in a
// coloured cut and at a barrier, with all nodes alike and with one that is slow.
//
// The guests send each other numbered datagrams throughout. The kinds of cut take
// turns in random order on the same guests, so that what drifts hits both.
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
	"strings"
	"time"

	"fermata/experiments/guests"
	"fermata/experiments/labrun"
	"fermata/experiments/result"
	"fermata/protocol/round"
)

const name = "cut"

func main() { os.Exit(result.Main(name, run)) }

// slowBy is how much later than it is told to the slow node begins to cut.
const slowBy = 200 * time.Millisecond

type options struct {
	n        int
	nodes    []int
	guests   []int
	json     bool
	svg      string
	guestDir string
	scratch  string
}

func parseOptions(args []string, complaints io.Writer) (options, error) {
	var o options
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	fs.SetOutput(complaints)
	quick := fs.Bool("quick", false, "two cuts of two guests on two nodes: shows that it works, measures nothing")
	fs.IntVar(&o.n, "n", 20, "checkpoints by each kind of cut")
	nodes := fs.String("nodes", "2,3", "how many nodes, a `list`")
	counts := fs.String("guests", "1,2,4,8", "how many guests, a `list`")
	fs.StringVar(&o.svg, "svg", "", "draw the result into this `file`, too")
	fs.StringVar(&o.guestDir, "guest-dir", "build/guest", "`directory` of the guests' kernel and initial RAM disk")
	fs.StringVar(&o.scratch, "dir", "/dev/shm", "`directory` for everything that is written")
	var err error
	o.json, err = result.ParseFlags(fs, args, func() error {
		if *quick {
			o.n, *nodes, *counts = 2, "2", "2"
		}
		var errs []error
		if o.n < 1 {
			errs = append(errs, fmt.Errorf("-n %d: want 1 or more", o.n))
		}
		for _, list := range []struct {
			flag, text string
			most       int
			into       *[]int
		}{{"-nodes", *nodes, 8, &o.nodes}, {"-guests", *counts, 16, &o.guests}} {
			var err error
			if *list.into, err = numbers(list.text, list.most); err != nil {
				errs = append(errs, fmt.Errorf("%s %s: %w", list.flag, list.text, err))
			}
		}
		return errors.Join(errs...)
	})
	return o, err
}

// numbers reads a list of numbers from 1 to most.
func numbers(text string, most int) ([]int, error) {
	var all []int
	for word := range strings.SplitSeq(text, ",") {
		n, err := strconv.Atoi(word)
		if err != nil || n < 1 || n > most {
			return nil, fmt.Errorf("want numbers from 1 to %d", most)
		}
		all = append(all, n)
	}
	return all, nil
}

// row is one kind of cut of one cluster.
type row struct {
	Nodes    int    `json:"nodes"`
	Guests   int    `json:"guests"`
	Cut      string `json:"cut"`
	SlowNode bool   `json:"slow_node"` // one of the nodes begins late

	PauseMS   result.Sample `json:"pause_ms"`   // of every guest
	LongestMS result.Sample `json:"longest_ms"` // of each checkpoint, that of its slowest guest
	SkewMS    result.Sample `json:"skew_ms"`
	Recorded  uint64        `json:"frames_recorded"` // in all checkpoints
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
	for _, nodes := range o.nodes {
		for _, count := range o.guests {
			rows, err := measure(ctx, o, nodes, count, note)
			if err != nil {
				return fmt.Errorf("%d guests on %d nodes: %w", count, nodes, err)
			}
			doc.Rows = append(doc.Rows, rows...)
		}
	}
	doc.Goals = goals(doc.Rows)
	if o.svg != "" {
		if err := result.Draw(o.svg, panel(doc.Rows)); err != nil {
			return err
		}
	}
	return doc.Print(stdout, o.json, columns())
}

var cuts = []round.Cut{round.CutColoured, round.CutBarrier}

// measure boots a cluster and takes its checkpoints, first with all nodes alike.
func measure(ctx context.Context, o options, nodes, count int, note func(string, ...any)) (rows []row, err error) {
	note("%d guests on %d nodes: booting", count, nodes)
	t, err := start(ctx, o, nodes, count)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, t.End()) }()
	for _, slow := range []bool{false, true} {
		if slow && count < 2 {
			continue // the slow node has none
		}
		if slow {
			if err := t.slowDown(ctx); err != nil {
				return nil, err
			}
		}
		group := make([]row, len(cuts))
		for i, cut := range cuts {
			group[i] = row{Nodes: nodes, Guests: count, Cut: cut.String(), SlowNode: slow}
		}
		if _, err := t.checkpoint(ctx, round.CutColoured); err != nil { // the first reads all memory
			return nil, err
		}
		for range o.n {
			for _, i := range rand.Perm(len(cuts)) {
				rep, err := t.checkpoint(ctx, cuts[i])
				if err != nil {
					return nil, fmt.Errorf("%s cut: %w", cuts[i], err)
				}
				group[i].add(rep)
			}
		}
		for _, r := range group {
			note("  %s cut, slow node %t: pause %s ms, skew %s ms", r.Cut, slow, r.PauseMS, r.SkewMS)
		}
		rows = append(rows, group...)
	}
	return rows, nil
}

func (r *row) add(rep report) {
	for _, g := range rep.Guests {
		r.PauseMS = append(r.PauseMS, g.PauseMS)
	}
	r.LongestMS = append(r.LongestMS, rep.MaxPauseMS)
	r.SkewMS = append(r.SkewMS, rep.SkewMS)
	r.Recorded += rep.FramesRecorded
}

// find returns the row of a kind of cut; nil if it was not measured.
func find(rows []row, nodes, guests int, cut round.Cut, slow bool) *row {
	i := slices.IndexFunc(rows, func(r row) bool {
		return r.Nodes == nodes && r.Guests == guests && r.Cut == cut.String() && r.SlowNode == slow
	})
	if i < 0 {
		return nil
	}
	return &rows[i]
}

func goals(rows []row) []result.Goal {
	var all []result.Goal
	for _, r := range rows {
		if r.Cut != round.CutColoured.String() {
			continue
		}
		what := fmt.Sprintf("%d guests on %d nodes: pause of a guest, median", r.Guests, r.Nodes)
		if one := find(rows, r.Nodes, 1, round.CutColoured, false); one != nil && r.Guests == 8 && !r.SlowNode {
			all = append(all, result.AtMost(what+", over that of one guest alone", 1.1, r.PauseMS.Median()/one.PauseMS.Median()))
		}
		if alike := find(rows, r.Nodes, r.Guests, round.CutColoured, false); r.SlowNode {
			all = append(all, result.AtMost(what+", with a slow node over without", 1.1, r.PauseMS.Median()/alike.PauseMS.Median()))
		}
	}
	return all
}

func columns() []result.Column[row] {
	return []result.Column[row]{
		{Name: "NODES", Cell: func(r row) string { return strconv.Itoa(r.Nodes) }},
		{Name: "GUESTS", Cell: func(r row) string { return strconv.Itoa(r.Guests) }},
		{Name: "CUT", Cell: func(r row) string { return r.Cut }},
		{Name: "ONE NODE", Cell: func(r row) string {
			if r.SlowNode {
				return fmt.Sprintf("%s late", slowBy)
			}
			return "like all"
		}},
		{Name: "N", Cell: func(r row) string { return strconv.Itoa(len(r.SkewMS)) }},
		{Name: "PAUSE ms", Cell: func(r row) string { return r.PauseMS.String() }},
		{Name: "LONGEST ms", Cell: func(r row) string { return r.LongestMS.String() }},
		{Name: "SKEW ms", Cell: func(r row) string { return r.SkewMS.String() }},
		{Name: "FRAMES", Cell: func(r row) string { return strconv.FormatUint(r.Recorded, 10) }},
	}
}

// panel shows the pauses of all guests, by the size of the cluster.
func panel(rows []row) result.Panel {
	p := result.Panel{Title: "How long a guest stands still", Unit: "ms"}
	series := map[string]*result.Series{}
	var order []string
	for _, r := range rows {
		group := fmt.Sprintf("%d on %d", r.Guests, r.Nodes)
		if !slices.Contains(p.Groups, group) {
			p.Groups = append(p.Groups, group)
		}
		of := r.Cut
		if r.SlowNode {
			of += ", one node late"
		}
		if series[of] == nil {
			series[of] = &result.Series{Name: of}
			order = append(order, of)
		}
		s := series[of]
		for len(s.Samples) < len(p.Groups)-1 {
			s.Samples = append(s.Samples, nil) // not measured
		}
		s.Samples = append(s.Samples, r.PauseMS)
	}
	for _, of := range order {
		s := series[of]
		for len(s.Samples) < len(p.Groups) {
			s.Samples = append(s.Samples, nil)
		}
		p.Series = append(p.Series, *s)
	}
	return p
}
