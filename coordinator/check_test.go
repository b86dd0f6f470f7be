package coordinator_test

import (
	"os"
	"path/filepath"
	"testing"

	"fermata/coordinator/coordinatortest"
	"fermata/protocol/api"
	"fermata/protocol/fault"
)

// TestRestart_ChecksBeforeItEndsGuests: whatever would make a rollback fail is found while
// the old guests run, and by a dry run as well.
func TestRestart_ChecksBeforeItEndsGuests(t *testing.T) {
	for _, tc := range []struct {
		name  string
		spoil func(*lab, *api.Checkpoint)
		class fault.Class
		text  string
	}{
		{"no epoch is left", func(l *lab, _ *api.Checkpoint) { l.useLastEpoch("web") }, fault.Invalid, "draw epoch"},
		{"a node has another machine", func(l *lab, _ *api.Checkpoint) {
			for range 2 {
				l.agents["n2"].Inject(coordinatortest.Check, coordinatortest.Refuse(fault.Mismatch, "saved by 10.0, here the older 7.2"))
			}
		}, fault.Mismatch, "check-guests on node n2"},
		{"a pack is gone", func(l *lab, c *api.Checkpoint) { l.removePacks(c) }, fault.Corrupt, "web@"},
		{"bytes are damaged", func(l *lab, c *api.Checkpoint) { l.damagePacks(c) }, fault.Corrupt, "web@"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newLab(t, "n1", "n2")
			c := l.ready(0)
			taken := c.taken("web", 1)[0]
			l.touch("web", "a", 7)
			tc.spoil(l, taken)
			for _, dry := range []bool{true, false} {
				_, err := c.restart(&api.RestartRequest{Cluster: "web", From: taken.GetId(), Rollback: true, DryRun: dry})
				wantFault(t, err, tc.class, tc.text)
			}
			if n := l.runningGuests("web"); n != 2 {
				t.Errorf("%d guests run, want the old 2", n)
			}
			l.wantFirst("web", 7)
			for name, a := range l.agents {
				if n := a.Calls(coordinatortest.Destroy); n != 1 {
					t.Errorf("%d calls to end guests on %s, want that of the start", n, name)
				}
			}
			c.wantState("web", up, "")
		})
	}
}

// useLastEpoch leaves a record of the largest epoch that there can be.
func (l *lab) useLastEpoch(cluster string) {
	l.t.Helper()
	dir := filepath.Join(l.repoDir(), "clusters", cluster)
	names, err := os.ReadDir(dir)
	if err != nil {
		l.t.Fatal(err)
	}
	record, err := os.ReadFile(filepath.Join(dir, names[0].Name()))
	if err != nil {
		l.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "10000000000000000000.outcome"), record, 0o600); err != nil {
		l.t.Fatal(err)
	}
}

// A start that a node would refuse leaves no trace.
func TestStart_ChecksFirst(t *testing.T) {
	l := newLab(t, "n1", "n2")
	c := l.ready(0)
	c.create("web", "a", "b")
	l.agents["n2"].Inject(coordinatortest.Check, coordinatortest.Refuse(fault.Invalid, "no kernel"))
	_, err := c.startCluster("web")
	wantFault(t, err, fault.Invalid, "check-guests on node n2", "no kernel")
	c.wantState("web", stopped, "")
	if n := l.agents["n1"].Calls(coordinatortest.Create) + l.agents["n1"].Calls(coordinatortest.Destroy); n != 0 {
		t.Errorf("%d calls that change something were made on n1", n)
	}
}
