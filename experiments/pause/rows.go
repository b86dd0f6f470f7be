package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"fermata/experiments/result"
)

// row is one method at one size.
type row struct {
	MemoryBytes  uint64 `json:"memory_bytes"`
	BallastBytes uint64 `json:"ballast_bytes"` // of it random, never written again
	LoadBytes    uint64 `json:"load_bytes"`    // of it written over and over
	Method       string `json:"method"`

	PauseMS       result.Sample            `json:"pause_ms"`
	PauseMeasured map[string]int           `json:"pause_measured"` // how, and in how many of the repetitions
	PausePartsMS  map[string]result.Sample `json:"pause_parts_ms,omitempty"`
	SilenceMS     result.Sample            `json:"silence_ms"` // longest of the guest's console, from the command until durable
	DurableMS     result.Sample            `json:"durable_ms"` // from the command on
	CommandMS     result.Sample            `json:"command_ms,omitempty"`

	NonZeroBytes result.Sample `json:"non_zero_bytes"`
	StoredBytes  result.Sample `json:"stored_bytes"`
	LoadRate     result.Sample `json:"load_bytes_per_second"` // written before the checkpoint, by the guest's clock
}

// methods are the rows of one size, in order.
var methods = []string{stopAndCopy, background, fermataFirst, fermataNext}

// newRows makes the rows of all sizes, in the order of sizes and methods.
func newRows(all []guest, results map[size][]taken) []row {
	var rows []row
	for _, g := range all {
		for _, method := range methods {
			r := row{MemoryBytes: uint64(g.memory), BallastBytes: uint64(g.ballast()), LoadBytes: 2 * gridBytes, Method: method, PauseMeasured: map[string]int{}}
			for _, t := range results[g.memory] {
				if t.method == method {
					r.add(t)
				}
			}
			rows = append(rows, r)
		}
	}
	return rows
}

func (r *row) add(t taken) {
	add := func(s *result.Sample, d time.Duration) { *s = append(*s, result.Milliseconds(d)) }
	add(&r.PauseMS, t.pause)
	add(&r.SilenceMS, t.silence)
	add(&r.DurableMS, t.durable)
	if t.command > 0 {
		add(&r.CommandMS, t.command)
	}
	r.PauseMeasured[t.pauseFrom]++
	for name, d := range t.parts {
		if r.PausePartsMS == nil {
			r.PausePartsMS = map[string]result.Sample{}
		}
		r.PausePartsMS[name] = append(r.PausePartsMS[name], result.Milliseconds(d))
	}
	r.NonZeroBytes = append(r.NonZeroBytes, float64(t.nonZeroBytes))
	r.StoredBytes = append(r.StoredBytes, float64(t.storedBytes))
	r.LoadRate = append(r.LoadRate, float64(int64(t.loadRate)))
}

const (
	// pauseGoal is the part of stop-and-copy's pause that Fermata may take.
	pauseGoal = 1.0 / 3

	// growthGoal is how much longer the pause may be in the largest guest than
	// in the smallest, which is that of a pause that does not depend on memory.
	growthGoal = 2
)

// goals compares the medians of rows.
func goals(all []guest, rows []row) []result.Goal {
	find := func(g guest, method string) row {
		i := slices.IndexFunc(rows, func(r row) bool { return r.MemoryBytes == uint64(g.memory) && r.Method == method })
		return rows[i]
	}
	var out []result.Goal
	for _, g := range all {
		copying, inBackground := find(g, stopAndCopy), find(g, background)
		for _, method := range []string{fermataFirst, fermataNext} {
			ours := find(g, method)
			out = append(out,
				result.AtMost(fmt.Sprintf("%s: pause of %s over %s", g.memory, method, stopAndCopy), pauseGoal, ours.PauseMS.Median()/copying.PauseMS.Median()),
				result.AtMost(fmt.Sprintf("%s: pause of %s over %s", g.memory, method, background), 1, ours.PauseMS.Median()/inBackground.PauseMS.Median()),
				result.AtMost(fmt.Sprintf("%s: durable, %s over %s", g.memory, method, stopAndCopy), 1, ours.DurableMS.Median()/copying.DurableMS.Median()))
		}
	}
	smallest, largest := all[0], all[0]
	for _, g := range all {
		if g.memory < smallest.memory {
			smallest = g
		}
		if g.memory > largest.memory {
			largest = g
		}
	}
	if smallest != largest {
		out = append(out, result.AtMost(fmt.Sprintf("pause of %s, %s over %s", fermataFirst, largest.memory, smallest.memory), growthGoal,
			find(largest, fermataFirst).PauseMS.Median()/find(smallest, fermataFirst).PauseMS.Median()))
	}
	return out
}

// columns are the table; samples are median and quartiles.
func columns() []result.Column[row] {
	mebibytes := func(s result.Sample) string { return fmt.Sprintf("%.0f", s.Median()/float64(mib)) }
	return []result.Column[row]{
		{Name: "MEMORY", Cell: func(r row) string { return size(r.MemoryBytes).String() }},
		{Name: "METHOD", Cell: func(r row) string { return r.Method }},
		{Name: "N", Cell: func(r row) string { return fmt.Sprint(len(r.PauseMS)) }},
		{Name: "PAUSE ms", Cell: func(r row) string { return r.PauseMS.String() }},
		{Name: "SILENCE ms", Cell: func(r row) string { return r.SilenceMS.String() }},
		{Name: "DURABLE ms", Cell: func(r row) string { return r.DurableMS.String() }},
		{Name: "NON-ZERO MiB", Cell: func(r row) string { return mebibytes(r.NonZeroBytes) }},
		{Name: "STORED MiB", Cell: func(r row) string { return mebibytes(r.StoredBytes) }},
		{Name: "LOAD MiB/s", Cell: func(r row) string { return mebibytes(r.LoadRate) }},
		{Name: "PAUSE SPENT ON (ms)", Cell: parts},
	}
}

// parts are the medians of what a pause was spent on, in order.
func parts(r row) string {
	var out []string
	for _, name := range []string{"stop", "devices", "memory", "channels", "resume"} {
		if s, ok := r.PausePartsMS[name]; ok {
			out = append(out, fmt.Sprintf("%s %.1f", name, s.Median()))
		}
	}
	return strings.Join(out, ", ")
}

// panels are the plot.
func panels(all []guest, rows []row) []result.Panel {
	pause := result.Panel{Title: "How long one guest stands still for a checkpoint", Unit: "pause (ms)"}
	durable := result.Panel{Title: "How long until the checkpoint is durable", Unit: "time since the command (ms)"}
	for _, g := range all {
		pause.Groups = append(pause.Groups, g.memory.String())
	}
	durable.Groups = pause.Groups
	for _, method := range methods {
		p, d := result.Series{Name: method}, result.Series{Name: method}
		for _, r := range rows {
			if r.Method == method {
				p.Samples, d.Samples = append(p.Samples, r.PauseMS), append(d.Samples, r.DurableMS)
			}
		}
		pause.Series, durable.Series = append(pause.Series, p), append(durable.Series, d)
	}
	return []result.Panel{pause, durable}
}
