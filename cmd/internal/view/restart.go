package view

import (
	"fmt"
	"io"
	"strings"

	"fermata/cmd/internal/render"
	"fermata/protocol/api"
)

// Restart is the document of "restart" and "rollback".
type Restart struct {
	CheckpointID   string       `json:"checkpoint_id"`
	DryRun         bool         `json:"dry_run"`
	RestartMS      float64      `json:"restart_ms"` // from the request until all guests ran
	FramesInjected uint64       `json:"frames_injected"`
	Plan           []Assignment `json:"plan"`
	Skipped        []string     `json:"skipped"` // newer checkpoints found damaged, each with the reason

	ClockStepped    bool     `json:"clock_stepped"`     // of all guests but those that follow
	ClockNotStepped []string `json:"clock_not_stepped"` // each with the reason

	NotEnded []string `json:"not_ended"` // nodes where guests of the earlier life may still run, each with the reason
}

// Assignment says on which node a guest is restored.
type Assignment struct {
	Guest       string `json:"guest"`
	Node        string `json:"node"`
	MemoryBytes uint64 `json:"memory_bytes"`
	VCPUs       uint32 `json:"vcpus"`
}

// OfRestartReport makes the document. What was skipped keeps its order: newest
// first, as restart walked back.
func OfRestartReport(m *api.RestartReport) Restart {
	return Restart{
		CheckpointID: m.GetCheckpointId(), DryRun: m.GetDryRun(),
		RestartMS: millis(m.GetRestartUs()), FramesInjected: m.GetFramesInjected(),
		Plan: collect(m.GetPlan(), func(a *api.Assignment) Assignment {
			return Assignment{Guest: a.GetGuest(), Node: a.GetNode(), MemoryBytes: a.GetMemoryBytes(), VCPUs: a.GetVcpus()}
		}, func(a Assignment) string { return a.Guest }),
		Skipped: list(m.GetSkipped()),

		ClockStepped: m.GetClockStepped(), ClockNotStepped: list(m.GetClockNotStepped()),
		NotEnded: list(m.GetNotEnded()),
	}
}

// WriteTable writes what was done, or would be, and where each guest is.
func (d Restart) WriteTable(w io.Writer) error {
	for _, s := range d.Skipped {
		if _, err := fmt.Fprintf(w, "skipped: %s\n", render.Clean(s)); err != nil {
			return err
		}
	}
	head := fmt.Sprintf("restarted from %s in %s ms, %d frames injected", d.CheckpointID, render.Millis(d.RestartMS), d.FramesInjected)
	if d.DryRun {
		head = "would restart from " + d.CheckpointID
	}
	if _, err := fmt.Fprintln(w, head); err != nil {
		return err
	}
	for _, s := range d.ClockNotStepped {
		if _, err := fmt.Fprintf(w, "clock not stepped: %s\n", render.Clean(s)); err != nil {
			return err
		}
	}
	for _, s := range d.NotEnded {
		if _, err := fmt.Fprintf(w, "not ended: %s\n", render.Clean(s)); err != nil {
			return err
		}
	}
	if len(d.Plan) == 0 {
		return nil
	}
	rows := render.NewRows("GUEST", "NODE", "MEMORY", "VCPUS")
	for _, a := range d.Plan {
		rows.Add(a.Guest, a.Node, render.Bytes(a.MemoryBytes), a.VCPUs)
	}
	return section(w, rows)
}

func joined(words []string) string { return strings.Join(words, ",") }
