package main

import (
	"bytes"
	"encoding/json"
	"math"
	"strings"
	"testing"
	"time"

	"fermata/experiments/guests"
	"fermata/experiments/result"
	"fermata/experiments/result/resulttest"
	"fermata/protocol/mustrun"
)

// TestRun_Quick runs the experiment for a short time, and decodes what it prints
// strictly. That nothing is lost holds at any length.
func TestRun_Quick(t *testing.T) {
	mustrun.Need(t, mustrun.QEMU, mustrun.UFFD, mustrun.NetNS, mustrun.GuestImage)
	image, err := mustrun.GuestDir()
	if err != nil {
		t.Fatal(err)
	}
	doc := resulttest.Quick[row](t, run, "--guest-dir", image)
	if len(doc.Rows) != 6 {
		t.Fatalf("%d rows, want 2 arms of 3 wires", len(doc.Rows))
	}
	for _, r := range doc.Rows {
		if r.Checkpoints != 4 || r.Restarts == 0 || r.Sent == 0 || len(r.GapMS) != 6 {
			t.Errorf("row %+v", r)
		}
		if r.Doubled+r.Reordered+r.Corrupt+r.Broken != 0 || r.Arm == restarts && r.Lost != 0 || r.Wire == "tcp" && r.Lost != 0 {
			t.Errorf("%s, %s: %d lost, %d doubled, %d reordered, %d corrupt, %d broken", r.Arm, r.Wire, r.Lost, r.Doubled, r.Reordered, r.Corrupt, r.Broken)
		}
	}
}

// Arms in which nothing is put back have no warm-up, and a document none the less.
func TestRowsOf_ArmWithoutRestarts(t *testing.T) {
	s := guests.Summary{Pairs: map[guests.Pair]guests.CanaryFinal{}}
	for wire := range strings.SplitSeq(guests.AllWires, "+") {
		s.Pairs[guests.Pair{From: "g1", To: "g2", Wire: wire}] = guests.CanaryFinal{Sent: 1, Gap: 0.25}
	}
	for _, r := range rowsOf(options{rate: 30, guests: 2}, alone, work{}, s) {
		if _, err := json.Marshal(r); err != nil {
			t.Error(err)
		}
		if got, want := r.stall(), 250-1000.0/30; math.Abs(got-want) > 1e-6 {
			t.Errorf("%s: stall of %g ms, want %g", r.Wire, got, want)
		}
	}
}

// A rate that guests do not sustain shows in the document and is no goal of theirs, but
// for what they lose.
func TestGoals_OfTheRateThatIsSustained(t *testing.T) {
	at := func(a arm, rate int, gapMS float64, lost int64) row {
		return row{Arm: a, Wire: "tcp", Rate: rate, GapMS: result.Sample{gapMS}, LongestMS: 20, Lost: lost}
	}
	held, late := at(running, 50, 20+20+50, 0), at(running, 100, 10+20+50+1, 0)
	if !sustained([]row{held}) || sustained([]row{held, late}) {
		t.Error("a stall is not told from none")
	}
	for lost, want := range []bool{true, false} {
		late.Lost = int64(lost)
		met := true
		for _, g := range goals([]row{late, held, at(holes, 50, 1000, 1)}, 50) {
			met = met && g.Met
		}
		if met != want {
			t.Errorf("%d lost at another rate: goals met: %v", lost, met)
		}
	}
}

func TestBudget_IsWholeSeconds(t *testing.T) {
	for n := range 4 {
		if b := (options{n: n, alone: aloneFor}).budget(running); b%time.Second != 0 || b < time.Duration(n)*perCheckpoint {
			t.Errorf("%d checkpoints: %s", n, b)
		}
	}
}

func TestParseOptions_RefusesNonsense(t *testing.T) {
	for _, args := range [][]string{{"-n", "0"}, {"-rate", "-1"}, {"-quick", "-rate", "0"}, {"-nodes", "99"}, {"-guests", "1"}, {"-o", "xml"}, {"more"}} {
		if _, err := parseOptions(args, &bytes.Buffer{}); err == nil {
			t.Errorf("%v was accepted", args)
		}
	}
}
