package trials

import (
	"testing"
	"time"

	"fermata/experiments/guests"
	"fermata/protocol/mustrun"
)

// TestAgents_AreKilledUnderTraffic kills agents with SIGKILL ten times, in turn, while
// their guests talk over IP, over raw Ethernet and over TCP. The data planes of the nodes
// carry every frame on.
func TestAgents_AreKilledUnderTraffic(t *testing.T) {
	mustrun.Need(t, mustrun.UFFD)
	r := newRig(t, 2)
	r.app.Count, r.app.Work = 2, guests.RunCanary
	r.app.Canary = guests.Canary{Rate: 200, SizeBytes: 200, Length: 40 * time.Second, Wires: guests.AllWires}
	r.start()
	r.must(nil, "cluster", "create", "-f", r.spec(nil))
	r.must(nil, "cluster", "start", r.cluster)
	r.sending()
	for i := range 10 {
		if err := r.RenewAgent(t.Context(), []string{"n1", "n2"}[i%2], "", r.cluster, r.app.Count); err != nil {
			t.Fatal(err)
		}
	}
	r.checkpoint()
	if totals := r.counted(); !totals.Clean() {
		t.Errorf("10 agents were killed: %+v, want nothing lost, doubled or reordered", totals)
	}
}
