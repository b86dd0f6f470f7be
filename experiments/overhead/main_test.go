package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"fermata/experiments/result/resulttest"
	"fermata/protocol/mustrun"
)

// TestRun_Quick runs the whole experiment, and decodes what it prints strictly.
func TestRun_Quick(t *testing.T) {
	mustrun.Need(t, mustrun.QEMU, mustrun.UFFD, mustrun.NetNS, mustrun.GuestImage)
	image, err := mustrun.GuestDir()
	if err != nil {
		t.Fatal(err)
	}
	drawing := filepath.Join(t.TempDir(), "overhead.svg")
	doc := resulttest.Quick[row](t, run, "--svg", drawing, "--guest-dir", image)
	if len(doc.Rows) != len(arms) {
		t.Fatalf("%d rows, want %d", len(doc.Rows), len(arms))
	}
	for i, r := range doc.Rows {
		if r.Arm != arms[i].name || len(r.ElapsedS) != 2 || len(r.PauseMS) != 2*r.Checkpoints || r.WorkBytes == 0 {
			t.Errorf("row %+v", r)
		}
		for _, s := range r.ElapsedS {
			if s <= 0 {
				t.Errorf("%s took %v s", r.Arm, s)
			}
		}
	}
	for _, ratio := range doc.Rows[0].OverNone {
		if ratio != 1 {
			t.Errorf("none over itself is %v", ratio)
		}
	}
	if fi, err := os.Stat(drawing); err != nil || fi.Size() == 0 {
		t.Errorf("drawing: %v", err)
	}
}

func TestParseOptions_RefusesNonsense(t *testing.T) {
	for _, args := range [][]string{{"-n", "0"}, {"-length", "1ms"}, {"-o", "xml"}, {"extra"}} {
		if _, err := parseOptions(args, &bytes.Buffer{}); err == nil {
			t.Errorf("%v was accepted", args)
		}
	}
}
