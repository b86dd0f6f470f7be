package coordinator_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"fermata/coordinator/coordinatortest"
	"fermata/protocol/api"
)

// A node is cut off, not dead, while its cluster is restarted elsewhere. Until it comes back
// the report and "cluster show" name it; then its guests of the earlier life are ended.
func TestTwoLives_TheOlderIsEnded(t *testing.T) {
	l := newLab(t, "n2")
	l.leaseTTL = 3 * time.Second // long enough for a busy machine
	n1, err := coordinatortest.New(t.Context(), coordinatortest.Config{
		Name: "n1", Repository: l.repoConfig(), MemoryBytes: 64 * mib,
		Coordinators: []string{l.address(0)}, Socket: l.dir + "/n1.sock",
	})
	if err != nil {
		t.Fatal(err)
	}
	cutOff := run(t, "agent n1", n1.Run)
	c := l.start(0)
	l.await("two nodes", func() bool { return c.alive() == 2 })
	c.create("web", "g1", "g2")
	on := map[string]string{"g1": "n1", "g2": "n2"}
	if _, err := follow(c.StartCluster(t.Context(), &api.StartClusterRequest{Name: "web", On: on})); err != nil {
		t.Fatal(err)
	}
	c.mustCheckpoint("web")
	l.heartbeats(c, "n1", 1) // as an agent does at once when it has made guests
	cutOff()
	l.await("the lease of n1 to end", func() bool { return c.alive() == 1 })
	report, err := c.restart(&api.RestartRequest{Cluster: "web", Rollback: true})
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(report.GetNotEnded(), "\n"); !strings.Contains(got, "node n1: it has not been heard of since") || !strings.Contains(got, "guests g1 ") {
		t.Errorf("the report says of guests that could not be ended: %q", got)
	}
	shown := func() *api.Cluster {
		got, err := c.GetCluster(t.Context(), &api.GetClusterRequest{Name: "web"})
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	if left := shown().GetLeftovers(); len(left) != 1 || left[0].GetNode() != "n1" || left[0].GetState() != api.GuestState_GUEST_STATE_UNKNOWN {
		t.Errorf("left of the earlier life: %v, want g1 on n1", left)
	}
	if got := n1.Running("web"); len(got) != 1 {
		t.Fatalf("n1 runs %v, want the guest of the earlier life", got)
	}
	run(t, "agent n1, back", n1.Run)
	l.await("the guest of the earlier life to be ended", func() bool { return len(n1.Guests("web")) == 0 })
	l.await("nothing to be left", func() bool { return len(shown().GetLeftovers()) == 0 })
	c.wantState("web", up, "")
	if got := l.agents["n2"].Running("web"); len(got) != 2 {
		t.Errorf("n2 runs %v, want both guests", got)
	}
}

// Guests are not ended because a store knows nothing of them.
func TestTwoLives_OnlyWhatIsKnownToBeOlder(t *testing.T) {
	l := newLab(t, "n1")
	l.leaseTTL = 3 * time.Second // long enough for a busy machine
	c := l.ready(0)
	c.running("web", "a")
	c.mustCheckpoint("web")
	c.stop()
	l.wipe() // etcd is lost
	c = l.ready(0)
	l.heartbeats(c, "n1", 3)
	if n := l.runningGuests("web"); n != 1 {
		t.Errorf("%d guests run beside a coordinator that does not know them, want 1", n)
	}
}

// heartbeats waits until a node has registered some more times.
func (l *lab) heartbeats(c *client, node string, n int) {
	l.t.Helper()
	seen := func() int64 {
		reply, err := c.ListNodes(context.Background(), &api.ListNodesRequest{})
		if err != nil {
			return 0
		}
		for _, info := range reply.GetNodes() {
			if info.GetName() == node {
				return info.GetLastSeenUnixNs()
			}
		}
		return 0
	}
	for range n {
		last := seen()
		l.await("a registration of "+node, func() bool { return seen() > last })
	}
}
