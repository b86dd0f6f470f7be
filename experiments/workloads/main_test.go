package main

import (
	"slices"
	"testing"

	"fermata/experiments/result/resulttest"
	"fermata/protocol/mustrun"
)

// TestRun_Quick runs Redis through one of everything. That its data are right holds at
// any length.
func TestRun_Quick(t *testing.T) {
	mustrun.Need(t, mustrun.QEMU, mustrun.UFFD, mustrun.NetNS, mustrun.GuestImage)
	if testing.Short() {
		t.Skip("boots guests twice")
	}
	image, err := mustrun.GuestDir()
	if err != nil {
		t.Fatal(err)
	}
	doc := resulttest.Quick[row](t, run, "--guest-dir", image)
	if len(doc.Rows) != 1 {
		t.Fatalf("%d rows, want one workload", len(doc.Rows))
	}
	for _, r := range doc.Rows {
		if r.Checkpoints != 2 || r.Rollbacks != 1 || r.AgentKills != 1 || r.Reboots != 2 {
			t.Errorf("%s: too little was done: %+v", r.Workload, r)
		}
		if r.Checked == 0 || r.Wrong != 0 || r.Reconnects != 0 {
			t.Errorf("%s: %d results, %d wrong, %d connections broken", r.Workload, r.Checked, r.Wrong, r.Reconnects)
		}
	}
}

// An ordeal holds as much of each trouble as was asked for, ends with a rollback, and is
// the same for the same seed.
func TestDraw(t *testing.T) {
	o := options{checkpoints: 10, rollbacks: 3, kills: 4, seed: 7}
	d := draw(o)
	count := func(of []bool) int {
		return len(slices.DeleteFunc(slices.Clone(of), func(is bool) bool { return !is }))
	}
	if count(d.rollback) != 3 || !d.rollback[9] || count(d.kill) != 4 || len(d.node) != 10 {
		t.Errorf("drew %+v", d)
	}
	again := draw(o)
	if !slices.Equal(d.rollback, again.rollback) || !slices.Equal(d.kill, again.kill) || !slices.Equal(d.node, again.node) {
		t.Errorf("the same seed drew %+v and %+v", d, again)
	}
}
