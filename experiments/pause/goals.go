package main

import (
	"fmt"
	"math"

	"fermata/experiments/result"
)

// What is hoped for of live checkpoints.
const (
	medianGoal  = 5.0      // ms of pause
	p99Goal     = 15.0     // ms of pause
	growthGoal  = 1.3      // pause in the largest guest over that in the smallest
	pauseGoal   = 1.0 / 10 // pause over background-snapshot's, in the largest guest
	durableGoal = 1.0 / 3  // time until durable over background-snapshot's
	idleGoal    = 0.01     // bytes stored for an idle guest over those for a first checkpoint
	idleMSGoal  = 300.0    // time until durable for an idle guest
)

// goals compares the rows that there are. Background-snapshot is the better one
// of the QEMUs that were measured.
func goals(all []pair, rows []row) []result.Goal {
	var out []result.Goal
	smallest, largest := all[0].busy.memory, all[0].busy.memory
	for _, p := range all {
		smallest, largest = min(smallest, p.busy.memory), max(largest, p.busy.memory)
	}
	for _, p := range all {
		for _, method := range []string{fermataFirst, fermataNext} {
			if r, ok := find(rows, p.busy.memory, method); ok {
				out = append(out,
					result.AtMost(fmt.Sprintf("%s: pause of %s, median, ms", p.busy.memory, method), medianGoal, r.PauseMS.Median()),
					result.AtMost(fmt.Sprintf("%s: pause of %s, p99, ms", p.busy.memory, method), p99Goal, r.PauseMS.Quantile(0.99)))
			}
		}
	}
	for _, method := range []string{fermataFirst, fermataNext} {
		least, ok := find(rows, smallest, method)
		most, too := find(rows, largest, method)
		if !ok || !too {
			continue
		}
		if smallest != largest {
			out = append(out, result.AtMost(fmt.Sprintf("pause of %s, %s over %s", method, largest, smallest), growthGoal,
				most.PauseMS.Median()/least.PauseMS.Median()))
		}
		if peer, ok := best(rows, largest, func(r row) result.Sample { return r.PauseMS }); ok {
			out = append(out, result.AtMost(fmt.Sprintf("%s: pause, %s over %s", largest, method, background), pauseGoal, most.PauseMS.Median()/peer))
		}
	}
	for _, p := range all {
		memory := p.busy.memory
		first, ok := find(rows, memory, fermataFirst)
		if !ok {
			continue
		}
		if peer, ok := best(rows, memory, func(r row) result.Sample { return r.DurableMS }); ok {
			out = append(out, result.AtMost(fmt.Sprintf("%s: durable, %s over %s", memory, fermataFirst, background), durableGoal, first.DurableMS.Median()/peer))
		}
		if idle, ok := find(rows, memory, fermataIdle); ok {
			out = append(out,
				result.AtMost(fmt.Sprintf("%s: stored, %s over %s", memory, fermataIdle, fermataFirst), idleGoal, idle.StoredBytes.Median()/first.StoredBytes.Median()),
				result.AtMost(fmt.Sprintf("%s: durable, %s, ms", memory, fermataIdle), idleMSGoal, idle.DurableMS.Median()))
		}
	}
	return out
}

// best is the least median of background-snapshot's rows.
func best(rows []row, memory size, of func(row) result.Sample) (float64, bool) {
	least, found := math.Inf(1), false
	for _, method := range []string{background, backgroundNewer} {
		if r, ok := find(rows, memory, method); ok {
			least, found = min(least, of(r).Median()), true
		}
	}
	return least, found
}
