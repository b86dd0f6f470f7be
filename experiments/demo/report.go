package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"fermata/experiments/guests"
)

// report is the result of the demo, as it is written to JSON.
type report struct {
	Guests      []placement      `json:"guests"` // before the kill
	Nodes       int              `json:"nodes"`
	Control     bool             `json:"control"`
	MPI         mpiResult        `json:"mpi"`
	Canary      canaryResult     `json:"canary"`
	Checkpoints []checkpointLine `json:"checkpoints"`

	RestartFrom    string      `json:"restart_from"`
	RestartOn      []placement `json:"restart_on"`
	RestartMS      float64     `json:"restart_ms"`     // until all guests ran, by the coordinator's clock
	FirstReplyMS   float64     `json:"first_reply_ms"` // from the command until every guest's first heartbeat was seen
	FramesInjected uint64      `json:"frames_injected"`

	losses []string // which canaries were lost, and what is known of it
}

type placement struct {
	Name string `json:"name"`
	Node string `json:"node"`
}

type mpiResult struct {
	Checksum       string `json:"checksum"`
	NativeChecksum string `json:"native_checksum"`
	Equal          bool   `json:"equal"`
}

type canaryResult struct {
	Sent      uint64 `json:"sent"`
	Received  uint64 `json:"received"`
	Lost      int64  `json:"lost"`
	Doubled   uint64 `json:"doubled"`
	Reordered uint64 `json:"reordered"`
	Corrupt   uint64 `json:"corrupt"`
}

type checkpointLine struct {
	ID             string             `json:"id"`
	PauseMS        map[string]float64 `json:"pause_ms"`
	SkewMS         float64            `json:"skew_ms"`
	ResumedMS      float64            `json:"resumed_ms"`
	DurableMS      float64            `json:"durable_ms"`
	RawBytes       uint64             `json:"raw_bytes"`
	NonZeroBytes   uint64             `json:"non_zero_bytes"`
	NewBytes       uint64             `json:"new_bytes"`
	StoredBytes    uint64             `json:"stored_bytes"`
	FramesRecorded uint64             `json:"frames_recorded"`

	FramesDiscarded uint64 `json:"frames_discarded"` // by the control
}

// checkpoint is what of `fermata checkpoint -o json` the demo reads.
type checkpoint struct {
	checkpointLine
	Guests []struct {
		Name    string  `json:"name"`
		Node    string  `json:"node"`
		PauseMS float64 `json:"pause_ms"`
	} `json:"guests"`
}

// restart is what of `fermata restart -o json` the demo reads.
type restart struct {
	CheckpointID   string  `json:"checkpoint_id"`
	RestartMS      float64 `json:"restart_ms"`
	FramesInjected uint64  `json:"frames_injected"`
	Plan           []struct {
		Guest string `json:"guest"`
		Node  string `json:"node"`
	} `json:"plan"`
}

func newReport(o options) *report { return &report{Nodes: nodeCount, Control: o.Control} }

func (r *report) addCheckpoint(cp checkpoint) {
	line := cp.checkpointLine
	line.PauseMS = map[string]float64{}
	r.Guests = nil
	for _, g := range cp.Guests {
		line.PauseMS[g.Name] = g.PauseMS
		r.Guests = append(r.Guests, placement{Name: g.Name, Node: g.Node})
	}
	r.Checkpoints = append(r.Checkpoints, line)
}

func (r *report) setRestart(in restart, firstReply time.Duration) {
	r.RestartFrom, r.RestartMS, r.FramesInjected = in.CheckpointID, in.RestartMS, in.FramesInjected
	r.FirstReplyMS = float64(firstReply.Microseconds()) / 1000
	for _, a := range in.Plan {
		r.RestartOn = append(r.RestartOn, placement{Name: a.Guest, Node: a.Node})
	}
}

func (r *report) setSummary(s guests.Summary) {
	r.MPI.Checksum = s.MPIChecksum
	r.MPI.Equal = s.MPIChecksum != "" && s.MPIChecksum == r.MPI.NativeChecksum
	t := s.Totals
	r.losses = nil
	for pair, f := range s.Pairs {
		if f.Lost == 0 {
			continue
		}
		k := s.Kernel[pair.To]
		r.losses = append(r.losses, fmt.Sprintf("%d from %s to %s (longest gap %s; the kernel of %s threw away %d for want of a socket's buffer, its card %d)",
			f.Lost, pair.From, pair.To, f.Gap.Duration(), pair.To, k.UDPReceiveBuffer, k.DeviceRxDropped))
	}
	slices.Sort(r.losses)
	r.Canary = canaryResult{Sent: t.Sent, Received: t.Received, Lost: t.Lost, Doubled: t.Doubled, Reordered: t.Reordered, Corrupt: t.Corrupt}
}

// verdict tells what the run did not prove.
func (r *report) verdict(control bool) error {
	var errs []error
	complain := func(bad bool, format string, args ...any) {
		if bad {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	c := r.Canary
	complain(!r.MPI.Equal, "the MPI result %q is not that of the native run, %q", r.MPI.Checksum, r.MPI.NativeChecksum)
	complain(c.Sent == 0, "the canary sent nothing")
	complain(c.Doubled != 0 || c.Reordered != 0 || c.Corrupt != 0, "canary: %d doubled, %d reordered, %d corrupt", c.Doubled, c.Reordered, c.Corrupt)
	if control {
		complain(c.Lost <= 0, "the control lost no canary: the proof would prove nothing")
	} else {
		complain(c.Lost != 0, "canary: %d lost: %s", c.Lost, strings.Join(r.losses, "; "))
		last := r.Checkpoints[len(r.Checkpoints)-1]
		complain(last.FramesRecorded == 0, "no frame was in flight at the cut: the run proves nothing")
		complain(r.FramesInjected != last.FramesRecorded, "%d frames recorded, %d injected", last.FramesRecorded, r.FramesInjected)
	}
	return errors.Join(errs...)
}

func (r *report) writeJSON(path string) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("encode report: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	if err := os.WriteFile(path, append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}

func (r *report) writeTable(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	row := func(format string, args ...any) { fmt.Fprintf(t, format+"\n", args...) }
	row("\nCHECKPOINT\tGUEST\tPAUSE\tSKEW\tRESUMED\tDURABLE\tRAW\tNON-ZERO\tNEW\tSTORED\tFRAMES")
	for _, c := range r.Checkpoints {
		row("%s\t\t\t%.1f ms\t%.0f ms\t%.0f ms\t%s\t%s\t%s\t%s\t%d", c.ID, c.SkewMS, c.ResumedMS, c.DurableMS,
			mib(c.RawBytes), mib(c.NonZeroBytes), mib(c.NewBytes), mib(c.StoredBytes), c.FramesRecorded)
		for _, g := range r.Guests {
			row("\t%s\t%.1f ms", g.Name, c.PauseMS[g.Name])
		}
	}
	row("\nRESTART\tfrom %s\tguests ran after %.0f ms\tfirst heartbeats seen after %.0f ms\t%d frames injected", r.RestartFrom, r.RestartMS, r.FirstReplyMS, r.FramesInjected)
	row("MPI\tchecksum %s\tnative %s\tequal: %t", r.MPI.Checksum, r.MPI.NativeChecksum, r.MPI.Equal)
	c := r.Canary
	row("CANARY\tsent %d\treceived %d\tlost %d, doubled %d, reordered %d", c.Sent, c.Received, c.Lost, c.Doubled, c.Reordered)
	_ = t.Flush()
}

func mib(n uint64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }
