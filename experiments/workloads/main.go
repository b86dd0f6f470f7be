// Command workloads takes programs of others through checkpoints, rollbacks, agent
// restarts and reboots, and checks that their results are right: HPC Challenge (HPL,
// matrix transpose, random access, FFT) over Open MPI in two guests, and a Redis that
// is replicated from one guest to another.
//
// Checkpoints come every few seconds, rollbacks behind some of them, and the agent of
// a node is killed before some; a seed decides which. In the end each guest is reset
// once, after it had been put back, and must boot and work again.
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

const name = "workloads"

func main() { os.Exit(result.Main(name, run)) }

type options struct {
	checkpoints, rollbacks, kills int
	alone                         time.Duration // between two checkpoints
	hpccN                         int
	seed                          uint64
	workloads                     []workload
	json                          bool
	guestDir                      string
	scratch                       string
}

func parseOptions(args []string, complaints io.Writer) (options, error) {
	var o options
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	fs.SetOutput(complaints)
	quick := fs.Bool("quick", false, "two checkpoints, a rollback and an agent restart of Redis: shows that it works, proves little")
	fs.IntVar(&o.checkpoints, "checkpoints", 10, "checkpoints of each workload")
	fs.IntVar(&o.rollbacks, "rollbacks", 3, "how many checkpoints are followed by a rollback to them; the last one always is")
	fs.IntVar(&o.kills, "kills", 3, "how many checkpoints an agent is killed before")
	fs.DurationVar(&o.alone, "alone", 4*time.Second, "how long the guests work between two checkpoints")
	fs.IntVar(&o.hpccN, "hpcc", 3000, "order of the matrices of HPC Challenge")
	fs.Uint64Var(&o.seed, "seed", 0, "decides which checkpoints are followed by what; 0: another each time")
	only := fs.String("only", "", "one of hpcc and redis; by default both")
	fs.StringVar(&o.guestDir, "guest-dir", "build/guest", "`directory` of the guests' kernel and initial RAM disks")
	fs.StringVar(&o.scratch, "dir", "/dev/shm", "`directory` for everything that is written")
	var err error
	o.json, err = result.ParseFlags(fs, args, func() error {
		if *quick {
			o.checkpoints, o.rollbacks, o.kills, o.alone = 2, 1, 1, time.Second
			if *only == "" {
				*only = (&redis{}).title()
			}
		}
		if o.seed == 0 {
			o.seed = rand.Uint64()
		}
		var errs []error
		for _, w := range []workload{&redis{}, &hpcc{n: o.hpccN}} {
			if *only == "" || *only == w.title() {
				o.workloads = append(o.workloads, w)
			}
		}
		if len(o.workloads) == 0 {
			errs = append(errs, fmt.Errorf("-only %s: want hpcc or redis", *only))
		}
		for _, f := range []struct {
			flag               string
			value, least, most int
		}{
			{"-checkpoints", o.checkpoints, 1, 1000}, {"-rollbacks", o.rollbacks, 1, o.checkpoints},
			{"-kills", o.kills, 0, o.checkpoints}, {"-hpcc", o.hpccN, 100, 4000},
		} {
			if f.value < f.least || f.value > f.most {
				errs = append(errs, fmt.Errorf("%s %d: want %d to %d", f.flag, f.value, f.least, f.most))
			}
		}
		if o.alone < 0 {
			errs = append(errs, fmt.Errorf("-alone %s: want 0 or more", o.alone))
		}
		return errors.Join(errs...)
	})
	return o, err
}

// row is the account of one workload.
type row struct {
	Workload    string        `json:"workload"`
	Seed        uint64        `json:"seed"`
	Checkpoints int           `json:"checkpoints"`
	Rollbacks   int           `json:"rollbacks"`
	AgentKills  int           `json:"agent_kills"`
	Reboots     int           `json:"reboots"`
	PauseMS     result.Sample `json:"pause_ms"` // of each checkpoint, the longest of any guest
	Checked     uint64        `json:"checked"`  // HPC Challenge: results; Redis: steps
	Wrong       uint64        `json:"wrong"`    // of them
	Reconnects  uint64        `json:"reconnects"`
	Syncs       uint64        `json:"syncs"` // whole copies from master to replica, before any guest was reset
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, err := parseOptions(args, stderr)
	if err != nil {
		return err
	}
	kernel, initrd := guests.AppImageFiles(o.guestDir)
	if err := result.Need([]string{result.QEMU, labrun.Setpriv, "go"}, kernel, initrd); err != nil {
		return err
	}
	doc, err := result.New[row](ctx, name)
	if err != nil {
		return err
	}
	note := result.Notes(stderr)
	for _, w := range o.workloads {
		r, err := measure(ctx, o, w, note)
		if err != nil {
			return fmt.Errorf("%s (seed %d): %w", w.title(), o.seed, err)
		}
		doc.Rows = append(doc.Rows, r)
	}
	doc.Goals = goals(doc.Rows)
	return doc.Print(stdout, o.json, columns())
}

func goals(rows []row) []result.Goal {
	var out []result.Goal
	for _, r := range rows {
		out = append(out,
			result.AtMost(r.Workload+": wrong results", 0, float64(r.Wrong)),
			result.AtLeast(r.Workload+": results checked", 1, float64(r.Checked)),
			result.AtMost(r.Workload+": broken connections", 0, float64(r.Reconnects)))
	}
	return out
}

func columns() []result.Column[row] {
	count := func(name string, of func(row) uint64) result.Column[row] {
		return result.Column[row]{Name: name, Cell: func(r row) string { return fmt.Sprint(of(r)) }}
	}
	return []result.Column[row]{
		{Name: "WORKLOAD", Cell: func(r row) string { return r.Workload }},
		count("CHECKPOINTS", func(r row) uint64 { return uint64(r.Checkpoints) }),
		count("ROLLBACKS", func(r row) uint64 { return uint64(r.Rollbacks) }),
		count("AGENT KILLS", func(r row) uint64 { return uint64(r.AgentKills) }),
		count("REBOOTS", func(r row) uint64 { return uint64(r.Reboots) }),
		{Name: "PAUSE ms", Cell: func(r row) string { return r.PauseMS.String() }},
		count("CHECKED", func(r row) uint64 { return r.Checked }),
		count("WRONG", func(r row) uint64 { return r.Wrong }),
		count("RECONNECTS", func(r row) uint64 { return r.Reconnects }),
		count("SYNCS", func(r row) uint64 { return r.Syncs }),
	}
}

// ordeal says what is done around each checkpoint, by its number from 0.
type ordeal struct {
	rollback, kill []bool
	node           []int // whose agent is killed
}

// draw makes an ordeal of the seed's. The last checkpoint is always rolled back to, so
// that the guests that are reset in the end have been put back.
func draw(o options) ordeal {
	random := rand.New(rand.NewPCG(o.seed, 0))
	some := func(count, of int) []bool {
		chosen := make([]bool, of)
		for _, i := range random.Perm(of)[:count] {
			chosen[i] = true
		}
		return chosen
	}
	d := ordeal{rollback: append(some(o.rollbacks-1, o.checkpoints-1), true), kill: some(o.kills, o.checkpoints)}
	for range o.checkpoints {
		d.node = append(d.node, random.IntN(nodes))
	}
	return d
}
