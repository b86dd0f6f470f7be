package main

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"fermata/experiments/result"
	"fermata/experiments/result/resulttest"
	"fermata/protocol/mustrun"
)

// TestRun_Quick runs the whole experiment, and decodes what it prints strictly. That a
// slow node does not make others wait, except at a barrier, shows at any speed.
func TestRun_Quick(t *testing.T) {
	mustrun.Need(t, mustrun.QEMU, mustrun.UFFD, mustrun.NetNS, mustrun.GuestImage)
	image, err := mustrun.GuestDir()
	if err != nil {
		t.Fatal(err)
	}
	drawing := filepath.Join(t.TempDir(), "cut.svg")
	doc := resulttest.Quick[row](t, run, "--svg", drawing, "--guest-dir", image)
	if len(doc.Rows) != 4 {
		t.Fatalf("%d rows, want 4", len(doc.Rows))
	}
	late := result.Milliseconds(slowBy)
	for _, r := range doc.Rows {
		if r.Nodes != 2 || r.Guests != 2 || len(r.PauseMS) != 4 || len(r.LongestMS) != 2 || len(r.SkewMS) != 2 {
			t.Errorf("row %+v", r)
		}
		if r.SlowNode && r.SkewMS.Median() < late*0.9 {
			t.Errorf("%s cut with a slow node: skew %s ms, want about %v", r.Cut, r.SkewMS, late)
		}
		// The shorter of both: a busy machine may make a pause long for reasons of its own.
		if waited := r.LongestMS.Quantile(0) > late*0.8; waited != (r.SlowNode && r.Cut == "barrier") {
			t.Errorf("%s cut, slow node %t: longest pause %s ms", r.Cut, r.SlowNode, r.LongestMS)
		}
	}
	if fi, err := os.Stat(drawing); err != nil || fi.Size() == 0 {
		t.Errorf("drawing: %v", err)
	}
}

func TestParseOptions_RefusesNonsense(t *testing.T) {
	for _, args := range [][]string{{"-n", "0"}, {"-nodes", "0"}, {"-guests", "two"}, {"-guests", "99"}, {"-o", "xml"}, {"more"}} {
		if _, err := parseOptions(args, &bytes.Buffer{}); err == nil {
			t.Errorf("%v was accepted", args)
		}
	}
}
