// Command matrix lets every fault meet every step of the commands that begin and end a
// cluster's guests, with real processes and real guests: an agent or the leader is
// killed, an agent stands still for five seconds, the repository hangs, or is read-only
// or full, a node is cut off.
//
// Of each cell it says whether the guests were worse off than before the command,
// whether the state that was shown is true, and whether the next command worked.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"fermata/experiments/guests"
	"fermata/experiments/labrun"
	"fermata/experiments/result"
)

const name = "matrix"

func main() { os.Exit(result.Main(name, run)) }

type options struct {
	commands, steps, faults []string // empty: all
	quick                   bool
	json                    bool
	fermata                 string // binary; empty: it is built
	guestDir                string
	scratch                 string
}

func parseOptions(args []string, complaints io.Writer) (options, error) {
	var o options
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	fs.SetOutput(complaints)
	fs.BoolVar(&o.quick, "quick", false, "a sample of the cells")
	commands := fs.String("commands", "", "only these commands, a `list`")
	steps := fs.String("steps", "", "only these steps, a `list`")
	faults := fs.String("faults", "", "only these faults, a `list`")
	fs.StringVar(&o.fermata, "fermata", "", "`binary` built with the tag failpoints (default: it is built first)")
	fs.StringVar(&o.guestDir, "guest-dir", "build/guest", "`directory` of the guests' kernel and initial RAM disk")
	fs.StringVar(&o.scratch, "dir", "/dev/shm", "`directory` for everything that is written")
	var err error
	o.json, err = result.ParseFlags(fs, args, func() error {
		var errs []error
		for _, list := range []struct {
			flag, text string
			known      []string
			into       *[]string
		}{
			{"-commands", *commands, commandNames(), &o.commands},
			{"-steps", *steps, stepNames(), &o.steps},
			{"-faults", *faults, faultNames(), &o.faults},
		} {
			errs = append(errs, choose(list.flag, list.text, list.known, list.into))
		}
		return errors.Join(errs...)
	})
	return o, err
}

// row is one cell.
type row struct {
	Command string `json:"command"`
	Step    string `json:"step"`
	Fault   string `json:"fault"`

	Said     string  `json:"said"`      // how the command ended
	TookS    float64 `json:"took_s"`    // until it ended
	Shown    string  `json:"shown"`     // state of the cluster, when it was at rest
	Running  int     `json:"running"`   // guests that run
	NotWorse bool    `json:"not_worse"` // off than before the command, the guests are
	True     bool    `json:"true"`      // is the state that was shown
	Next     bool    `json:"next"`      // command works
	NextS    float64 `json:"next_s"`    // until it did
	Note     string  `json:"note"`      // what was wrong
}

func (r row) good() bool { return r.NotWorse && r.True && r.Next }

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, err := parseOptions(args, stderr)
	if err != nil {
		return err
	}
	kernel, initrd := guests.ImageFiles(o.guestDir)
	if err := result.Need([]string{result.QEMU, labrun.Setpriv, "go", "nsenter", "ip"}, kernel, initrd, "/dev/fuse"); err != nil {
		return err
	}
	doc, err := result.New[row](ctx, name)
	if err != nil {
		return err
	}
	note := result.Notes(stderr)
	b, err := newBench(ctx, o, note)
	if err != nil {
		return err
	}
	runErr := func() error {
		for _, c := range o.cells() {
			r, err := b.try(ctx, c)
			if err != nil {
				return fmt.Errorf("%s: %w", c, err)
			}
			note("%s: %s; %s, %d guests run; good: %t %s", c, r.Said, r.Shown, r.Running, r.good(), r.Note)
			doc.Rows = append(doc.Rows, r)
		}
		return nil
	}()
	if runErr != nil {
		io.WriteString(stderr, b.lab.Logs())
	}
	if err := errors.Join(runErr, b.close()); err != nil {
		return err
	}
	var bad float64
	for _, r := range doc.Rows {
		if !r.good() {
			bad++
		}
	}
	doc.Goals = append(doc.Goals, result.AtMost("cells in which guests were worse off, the state shown was not true, or the next command failed", 0, bad))
	return doc.Print(stdout, o.json, columns)
}

var columns = []result.Column[row]{
	{Name: "command", Cell: func(r row) string { return r.Command }},
	{Name: "step", Cell: func(r row) string { return r.Step }},
	{Name: "fault", Cell: func(r row) string { return r.Fault }},
	{Name: "command ended", Cell: func(r row) string { return r.Said }},
	{Name: "s", Cell: func(r row) string { return fmt.Sprintf("%.1f", r.TookS) }},
	{Name: "shown", Cell: func(r row) string { return r.Shown }},
	{Name: "running", Cell: func(r row) string { return fmt.Sprint(r.Running) }},
	{Name: "not worse", Cell: func(r row) string { return mark(r.NotWorse) }},
	{Name: "true", Cell: func(r row) string { return mark(r.True) }},
	{Name: "next", Cell: func(r row) string { return mark(r.Next) }},
	{Name: "next s", Cell: func(r row) string { return fmt.Sprintf("%.1f", r.NextS) }},
	{Name: "note", Cell: func(r row) string { return r.Note }},
}

func mark(ok bool) string {
	if ok {
		return "yes"
	}
	return "NO"
}

func seconds(since time.Time) float64 {
	return float64(time.Since(since).Round(100*time.Millisecond)) / float64(time.Second)
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }
