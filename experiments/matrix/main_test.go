package main

import (
	"bytes"
	"testing"

	"fermata/experiments/result/resulttest"
	"fermata/protocol/mustrun"
)

// TestRun_Quick tries a sample of the cells, in which nothing may be wrong: those that do
// not wait for leases to end.
func TestRun_Quick(t *testing.T) {
	if testing.Short() {
		t.Skip("boots guests")
	}
	mustrun.Need(t, mustrun.QEMU, mustrun.NetNS, mustrun.FUSE, mustrun.GuestImage)
	image, err := mustrun.GuestDir()
	if err != nil {
		t.Fatal(err)
	}
	doc := resulttest.Quick[row](t, run, "--guest-dir", image, "--commands", "start,restart")
	if len(doc.Rows) < 3 {
		t.Errorf("%d cells, want 3 or more", len(doc.Rows))
	}
	for _, r := range doc.Rows {
		if !r.good() {
			t.Errorf("%+v", r)
		}
	}
}

// TestCells: each command meets each fault at each of its steps, and what --quick tries
// is part of that.
func TestCells(t *testing.T) {
	all := options{}.cells()
	if want := (3*len(steps) + 3) * len(faults); len(all) != want {
		t.Errorf("%d cells, want %d", len(all), want)
	}
	quick := options{quick: true}.cells()
	if len(quick) != len(quickCells) {
		t.Errorf("%d of %d cells of --quick exist", len(quick), len(quickCells))
	}
	met := map[string]bool{}
	for _, c := range quick {
		met[c.command.name], met[c.fault.name] = true, true
	}
	for _, name := range append(commandNames(), faultNames()...) {
		if !met[name] {
			t.Errorf("--quick never tries %q", name)
		}
	}
}

func TestParseOptions_RefusesNonsense(t *testing.T) {
	for _, args := range [][]string{{"-commands", "begin"}, {"-steps", "none"}, {"-faults", "fire"}, {"-o", "xml"}, {"more"}} {
		if _, err := parseOptions(args, &bytes.Buffer{}); err == nil {
			t.Errorf("%v was accepted", args)
		}
	}
}
