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
	BallastBytes uint64 `json:"ballast_bytes"` // of it incompressible, never written again
	LoadBytes    uint64 `json:"load_bytes"`    // of it written over and over
	Method       string `json:"method"`
	QEMU         string `json:"qemu,omitempty"` // version

	PauseMS         result.Sample            `json:"pause_ms"`
	PauseMeasured   map[string]int           `json:"pause_measured"` // how, and in how many of the repetitions
	PausePartsMS    map[string]result.Sample `json:"pause_parts_ms,omitempty"`
	SilenceMS       result.Sample            `json:"silence_ms,omitempty"`        // longest of the guest's console, from the command until durable
	SilenceBeforeMS result.Sample            `json:"silence_before_ms,omitempty"` // the same before the command
	DurableMS       result.Sample            `json:"durable_ms"`                  // from the command on
	CommandMS       result.Sample            `json:"command_ms,omitempty"`
	Details         map[string]result.Sample `json:"details,omitempty"` // what else the agent told

	NonZeroBytes result.Sample `json:"non_zero_bytes"`
	StoredBytes  result.Sample `json:"stored_bytes"`

	CPUSeconds result.Sample `json:"cpu_seconds,omitempty"` // from the command until durable, of QEMU and what serves it, the guest's own work included
	LoadCPUs   result.Sample `json:"load_cpus,omitempty"`   // processors that they used before

	LoadRate   result.Sample `json:"load_bytes_per_second,omitempty"` // written before the checkpoint
	RateDuring result.Sample `json:"load_bytes_per_second_during,omitempty"`
	RateAfter  result.Sample `json:"load_bytes_per_second_after,omitempty"`
}

// methods are the rows of one size, in order. One that was not measured has none.
var methods = []string{stopAndCopy, background, backgroundNewer, fermataStop, fermataFirst, fermataNext, fermataIdle}

// newRows makes the rows of all sizes, in the order of sizes and methods.
func newRows(all []pair, results map[size][]taken) []row {
	var rows []row
	for _, p := range all {
		for _, method := range methods {
			g := p.busy
			if method == fermataIdle {
				g = p.idle
			}
			r := row{MemoryBytes: uint64(g.memory), BallastBytes: uint64(g.ballast()), LoadBytes: uint64(g.load()), Method: method, PauseMeasured: map[string]int{}}
			for _, t := range results[g.memory] {
				if t.method == method {
					r.add(t)
				}
			}
			if len(r.PauseMS) > 0 {
				rows = append(rows, r)
			}
		}
	}
	return rows
}

func (r *row) add(t taken) {
	add := func(s *result.Sample, d time.Duration) { *s = append(*s, result.Milliseconds(d)) }
	r.QEMU = t.qemu
	add(&r.PauseMS, t.pause)
	if t.silence > 0 {
		add(&r.SilenceMS, t.silence)
		add(&r.SilenceBeforeMS, t.silenceBefore)
		r.LoadRate = append(r.LoadRate, whole(t.before))
		r.RateDuring = append(r.RateDuring, whole(t.during))
		r.RateAfter = append(r.RateAfter, whole(t.after))
	}
	add(&r.DurableMS, t.durable)
	if t.command > 0 {
		add(&r.CommandMS, t.command)
	}
	r.PauseMeasured[t.pauseFrom]++
	for name, d := range t.parts {
		addTo(&r.PausePartsMS, name, result.Milliseconds(d))
	}
	for name, v := range t.details {
		addTo(&r.Details, name, v)
	}
	r.NonZeroBytes = append(r.NonZeroBytes, float64(t.nonZeroBytes))
	r.StoredBytes = append(r.StoredBytes, float64(t.storedBytes))
	r.CPUSeconds = append(r.CPUSeconds, t.cpu.Seconds())
	r.LoadCPUs = append(r.LoadCPUs, whole(t.loadCPU*1000)/1000)
}

func whole(v float64) float64 { return float64(int64(v)) }

func addTo(samples *map[string]result.Sample, name string, v float64) {
	if *samples == nil {
		*samples = map[string]result.Sample{}
	}
	(*samples)[name] = append((*samples)[name], v)
}

// columns are the table; samples are median and quartiles.
func columns() []result.Column[row] {
	mebibytes := func(s result.Sample) string {
		if len(s) == 0 {
			return "-"
		}
		return fmt.Sprintf("%.0f", s.Median()/float64(mib))
	}
	return []result.Column[row]{
		{Name: "MEMORY", Cell: func(r row) string { return size(r.MemoryBytes).String() }},
		{Name: "METHOD", Cell: func(r row) string { return r.Method }},
		{Name: "N", Cell: func(r row) string { return fmt.Sprint(len(r.PauseMS)) }},
		{Name: "PAUSE ms", Cell: func(r row) string { return r.PauseMS.String() }},
		{Name: "p99", Cell: func(r row) string { return fmt.Sprintf("%.1f", r.PauseMS.Quantile(0.99)) }},
		{Name: "SILENCE ms", Cell: func(r row) string { return r.SilenceMS.String() }},
		{Name: "BEFORE", Cell: func(r row) string { return r.SilenceBeforeMS.String() }},
		{Name: "DURABLE ms", Cell: func(r row) string { return r.DurableMS.String() }},
		{Name: "NON-ZERO MiB", Cell: func(r row) string { return mebibytes(r.NonZeroBytes) }},
		{Name: "STORED MiB", Cell: func(r row) string { return mebibytes(r.StoredBytes) }},
		{Name: "CPU s", Cell: func(r row) string { return r.CPUSeconds.String() }},
		{Name: "LOAD MiB/s", Cell: func(r row) string {
			return fmt.Sprintf("%s, %s, %s", mebibytes(r.LoadRate), mebibytes(r.RateDuring), mebibytes(r.RateAfter))
		}},
		{Name: "PAUSE SPENT ON (ms)", Cell: parts},
	}
}

// phases are the parts of a pause in their order.
var phases = []string{"gate", "drain", "stop", "devices", "rearm", "memory", "channels", "continue", "resume"}

// parts are the medians of what a pause was spent on, in order.
func parts(r row) string {
	var out []string
	for _, name := range phases {
		if s, ok := r.PausePartsMS[name]; ok {
			out = append(out, fmt.Sprintf("%s %.1f", name, s.Median()))
		}
	}
	return strings.Join(out, ", ")
}

// find is the row of a method at a size; false when it was not measured.
func find(rows []row, memory size, method string) (row, bool) {
	i := slices.IndexFunc(rows, func(r row) bool { return r.MemoryBytes == uint64(memory) && r.Method == method })
	if i < 0 {
		return row{}, false
	}
	return rows[i], true
}

// panels are the plot. The idle guest is another guest and stays out of it.
func panels(all []pair, rows []row) []result.Panel {
	pause := result.Panel{Title: "How long one guest stands still for a checkpoint", Unit: "pause (ms)"}
	durable := result.Panel{Title: "How long until the checkpoint is durable", Unit: "time since the command (ms)"}
	for _, p := range all {
		pause.Groups = append(pause.Groups, p.busy.memory.String())
	}
	durable.Groups = pause.Groups
	for _, method := range methods {
		p, d := result.Series{Name: method}, result.Series{Name: method}
		measured := false
		for _, g := range all {
			r, ok := find(rows, g.busy.memory, method)
			measured = measured || ok
			p.Samples, d.Samples = append(p.Samples, r.PauseMS), append(d.Samples, r.DurableMS)
		}
		if measured && method != fermataIdle {
			pause.Series, durable.Series = append(pause.Series, p), append(durable.Series, d)
		}
	}
	return []result.Panel{pause, durable}
}
