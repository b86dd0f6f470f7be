// Command loss counts what guests lose, get twice and get out of order while their
// cluster is checkpointed and put back again and again, in UDP, in bare Ethernet frames
// and in streams of TCP.
//
// Every guest sends numbered datagrams to every other on each of the three wires, all
// the time, and each receiver knows in the end what it missed. The arms differ in what
// is done to the cluster meanwhile; the last, without what was in flight, shows that
// losses would be seen.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"fermata/experiments/guests"
	"fermata/experiments/labrun"
	"fermata/experiments/result"
)

const name = "loss"

func main() { os.Exit(result.Main(name, run)) }

type options struct {
	n        int
	arms     []arm
	alone    time.Duration // how long guests send beside what their checkpoints take
	rate     int
	nodes    int
	guests   int
	json     bool
	guestDir string
	scratch  string
}

func parseOptions(args []string, complaints io.Writer) (options, error) {
	var o options
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	fs.SetOutput(complaints)
	quick := fs.Bool("quick", false, "a few checkpoints and restarts, with and without channel state: shows that it works, proves little")
	fs.IntVar(&o.n, "n", 100, "checkpoints of each arm")
	fs.IntVar(&o.rate, "rate", 60, "datagrams a second from each guest to each other on each wire; 0: the highest, of 120, 60, 30 and 15, at which no stream stands still for 50 ms with nothing done, nor for longer than a pause and 50 ms with checkpoints")
	fs.IntVar(&o.nodes, "nodes", 3, "how many nodes")
	fs.IntVar(&o.guests, "guests", 3, "how many guests")
	fs.StringVar(&o.guestDir, "guest-dir", "build/guest", "`directory` of the guests' kernel and initial RAM disk")
	fs.StringVar(&o.scratch, "dir", "/dev/shm", "`directory` for everything that is written: some 10 MiB a checkpoint")
	var err error
	o.json, err = result.ParseFlags(fs, args, func() error {
		o.arms, o.alone = []arm{alone, running, restarts, holes}, aloneFor
		leastRate := 0
		if *quick {
			leastRate = 1 // there is no arm to find one in
			o.n, o.arms, o.alone = 4, []arm{restarts, holes}, 3*time.Second
		}
		var errs []error
		for _, f := range []struct {
			flag         string
			value, least int
			most         int
		}{{"-n", o.n, 1, 10_000}, {"-rate", o.rate, leastRate, 10_000}, {"-nodes", o.nodes, 1, 8}, {"-guests", o.guests, 2, 16}} {
			if f.value < f.least || f.value > f.most {
				errs = append(errs, fmt.Errorf("%s %d: want %d to %d", f.flag, f.value, f.least, f.most))
			}
		}
		return errors.Join(errs...)
	})
	return o, err
}

// arm is what is done to a cluster while its guests send.
type arm string

const (
	alone    arm = "nothing"
	running  arm = "checkpoints"
	restarts arm = "checkpoints and restarts"
	holes    arm = "the same, without channel state"
)

// row is the account of one wire in one arm.
type row struct {
	Arm         arm    `json:"arm"`
	Wire        string `json:"wire"`
	Guests      int    `json:"guests"`
	Rate        int    `json:"rate"` // datagrams a second of each pair, as asked for
	Checkpoints int    `json:"checkpoints"`
	Restarts    int    `json:"restarts"`
	Recorded    uint64 `json:"frames_recorded"` // in all checkpoints, of all wires

	Sent      uint64 `json:"sent"`
	Lost      int64  `json:"lost"`
	Doubled   uint64 `json:"doubled"`
	Reordered uint64 `json:"reordered"`

	GapMS        result.Sample `json:"gap_ms"`            // of each pair, the longest time between two arrivals, on the receiver's clock
	WarmMS       result.Sample `json:"warm_ms,omitempty"` // of each guest, what its processors took of ours after the last restart, beyond what they always take
	LongestMS    float64       `json:"longest_ms"`        // pause of any guest
	Corrupt      uint64        `json:"corrupt"`           // of all wires
	Broken       uint64        `json:"broken"`            // connections of the streams
	Resets       uint64        `json:"tcp_resets"`        // of any connection, by the guests' kernels
	Timeouts     uint64        `json:"tcp_timeouts"`      // retransmission time-outs, by the guests' kernels
	Retransmits  uint64        `json:"tcp_retransmits"`   // segments
	ThrownInside uint64        `json:"thrown_inside"`     // datagrams for which a guest's own kernel had no room
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
	arms := o.arms
	if o.rate == 0 {
		if doc.Rows, o.rate, err = sustain(ctx, o, note); err != nil {
			return err
		}
		arms = slices.DeleteFunc(slices.Clone(arms), func(a arm) bool { return slices.Contains(resident, a) })
	}
	for _, a := range arms {
		rows, err := measure(ctx, o, a, note)
		if err != nil {
			return fmt.Errorf("%s: %w", a, err)
		}
		doc.Rows = append(doc.Rows, rows...)
	}
	doc.Goals = goals(doc.Rows, o.rate)
	return doc.Print(stdout, o.json, columns())
}

// sustainable are the rates of which the highest is chosen that guests sustain.
var sustainable = []int{120, 60, 30, 15}

// resident are the arms in which guests stay where they are: a rate is sustained through all.
var resident = []arm{alone, running}

// sustain measures the resident arms at one rate after the other until one is sustained,
// or is the lowest. It returns all that it measured, and that rate.
func sustain(ctx context.Context, o options, note func(string, ...any)) (rows []row, rate int, err error) {
	for _, o.rate = range sustainable {
		held, lowest := true, o.rate == slices.Min(sustainable)
		for _, a := range resident {
			if !held && !lowest {
				break
			}
			more, err := measure(ctx, o, a, note)
			if err != nil {
				return nil, 0, fmt.Errorf("%s: %w", a, err)
			}
			rows, held = append(rows, more...), held && sustained(more)
		}
		if held {
			break
		}
		note("  %d a second is more than these guests sustain", o.rate)
	}
	return rows, o.rate, nil
}

// sustained tells whether no stream stood still for longer than it may beside a pause.
func sustained(rows []row) bool {
	return !slices.ContainsFunc(rows, func(r row) bool { return r.stall() > r.LongestMS+stallMS })
}

// stall is the longest time for which a pair's datagrams did not come when they should
// have, milliseconds.
func (r row) stall() float64 { return max(r.GapMS.Quantile(1)-1000/float64(r.Rate), 0) }

// rowsOf makes the rows of one arm of what its guests have counted.
func rowsOf(o options, a arm, done work, s guests.Summary) []row {
	var rows []row
	for wire := range strings.SplitSeq(guests.AllWires, "+") {
		r := row{Arm: a, Wire: wire, Guests: o.guests, Rate: o.rate, Checkpoints: done.checkpoints, Restarts: done.restarts, Recorded: done.recorded,
			WarmMS: done.warmMS, LongestMS: done.longestMS, Corrupt: s.Totals.Corrupt, Broken: s.Totals.Broken}
		for pair, f := range s.Pairs {
			if pair.Wire != wire {
				continue
			}
			r.Sent += f.Sent
			r.Lost += f.Lost
			r.Doubled += f.Doubled
			r.Reordered += f.Reordered
			r.GapMS = append(r.GapMS, result.Milliseconds(f.Gap.Duration()))
		}
		slices.Sort(r.GapMS)
		for _, k := range s.Kernel {
			r.Resets += k.TCPResets
			r.Timeouts += k.TCPTimeouts
			r.Retransmits += k.TCPRetransmits
			r.ThrownInside += k.UDPReceiveBuffer
		}
		rows = append(rows, r)
	}
	return rows
}

// The longest a stream may stand still beyond the pause, and behind a restart.
const (
	stallMS   = 50
	restartMS = 200
)

// goals judges what was measured; rate is the one that was asked for, or is sustained.
func goals(rows []row, rate int) []result.Goal {
	var all []result.Goal
	bad := func(r row) float64 { return float64(r.Lost) + float64(r.Doubled+r.Reordered+r.Corrupt+r.Broken) }
	lost, faster, others := 0.0, 0.0, false
	for _, r := range rows {
		if r.Arm == holes {
			lost += bad(r)
			continue
		}
		if r.Rate != rate {
			faster, others = faster+bad(r), true
			continue
		}
		all = append(all, result.AtMost(fmt.Sprintf("%s, %s: lost, doubled, reordered, corrupt", r.Arm, r.Wire), 0, bad(r)))
		if r.Wire != "tcp" || r.Arm == alone {
			continue
		}
		limit := float64(restartMS)
		if r.Arm == running {
			limit = r.LongestMS + stallMS
		}
		all = append(all,
			result.AtMost(fmt.Sprintf("%s: longest stall of a stream, ms", r.Arm), limit, r.stall()),
			result.AtMost(fmt.Sprintf("%s: retransmission time-outs and resets", r.Arm), 0, float64(r.Timeouts+r.Resets)))
	}
	if others {
		all = append(all, result.AtMost("at rates that are not sustained: lost, doubled, reordered, corrupt", 0, faster))
	}
	return append(all, result.AtLeast(fmt.Sprintf("%s: lost, doubled, reordered, corrupt", holes), 1, lost))
}

func columns() []result.Column[row] {
	count := func(n func(row) uint64) func(row) string {
		return func(r row) string { return strconv.FormatUint(n(r), 10) }
	}
	return []result.Column[row]{
		{Name: "ARM", Cell: func(r row) string { return string(r.Arm) }},
		{Name: "WIRE", Cell: func(r row) string { return r.Wire }},
		{Name: "GUESTS", Cell: func(r row) string { return strconv.Itoa(r.Guests) }},
		{Name: "RATE", Cell: func(r row) string { return strconv.Itoa(r.Rate) }},
		{Name: "CHECKPOINTS", Cell: func(r row) string { return strconv.Itoa(r.Checkpoints) }},
		{Name: "RESTARTS", Cell: func(r row) string { return strconv.Itoa(r.Restarts) }},
		{Name: "RECORDED", Cell: count(func(r row) uint64 { return r.Recorded })},
		{Name: "SENT", Cell: count(func(r row) uint64 { return r.Sent })},
		{Name: "LOST", Cell: func(r row) string { return strconv.FormatInt(r.Lost, 10) }},
		{Name: "DOUBLED", Cell: count(func(r row) uint64 { return r.Doubled })},
		{Name: "REORDERED", Cell: count(func(r row) uint64 { return r.Reordered })},
		{Name: "GAP ms", Cell: func(r row) string { return r.GapMS.String() }},
		{Name: "PAUSE ms", Cell: func(r row) string { return fmt.Sprintf("%.1f", r.LongestMS) }},
		{Name: "WARM-UP ms", Cell: func(r row) string { return r.WarmMS.String() }},
		{Name: "TIMEOUTS", Cell: count(func(r row) uint64 { return r.Timeouts })},
		{Name: "RESETS", Cell: count(func(r row) uint64 { return r.Resets + r.Broken })},
	}
}

// budget is how long one arm's guests send, in whole seconds: what its checkpoints take,
// the look at their warm-up with its commands, and more.
func (o options) budget(a arm) time.Duration {
	if a == alone {
		return o.alone
	}
	return (time.Duration(o.n)*perCheckpoint + 4*settled + o.alone + time.Second - 1).Truncate(time.Second)
}
