package coordinator_test

import (
	"strings"
	"testing"
	"time"

	"fermata/coordinator/coordinatortest"
	"fermata/protocol/api"
	"fermata/protocol/fault"
)

const ended = "it powered itself off at 2026-12-01T12:03:51Z"

// TestEndedGuests_AreShownAndNamed: what is shown of a cluster whose guests end is true, and
// what cannot be done then says what can.
func TestEndedGuests_AreShownAndNamed(t *testing.T) {
	l := newLab(t, "n1", "n2")
	l.leaseTTL = 3 * time.Second // so that agents register every second
	c := l.ready(0)
	all := c.taken("web", 1)
	a, b := l.agents["n1"], l.agents["n2"]
	guestA, guestB := a.Guests("web")[0], b.Guests("web")[0]
	a.End("web", guestA, "it powered itself off")
	c.wantState("web", api.ClusterState_CLUSTER_STATE_DEGRADED, "guest "+guestA+" on node n1 has ended ("+ended+")")
	b.End("web", guestB, "its kernel panicked")
	c.wantState("web", api.ClusterState_CLUSTER_STATE_ENDED, "its kernel panicked")
	l.await("the coordinator has heard", func() bool {
		reply, err := c.ListNodes(t.Context(), &api.ListNodesRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range reply.GetNodes() {
			if len(n.GetGuests()) != 1 || n.GetGuests()[0].GetState() != api.GuestState_GUEST_STATE_DEAD {
				return false
			}
		}
		return true
	})
	prepared := a.Calls(coordinatortest.Prepare)
	_, err := c.checkpoint("web")
	wantFault(t, err, fault.Invalid, "guest "+guestA+" on node n1 has ended ("+ended+")", "fermata rollback web", all[0].GetId())
	if strings.Contains(err.Error(), "prepare") || a.Calls(coordinatortest.Prepare) != prepared {
		t.Errorf("a round was begun: %v", err)
	}
	_, err = c.startCluster("web")
	wantFault(t, err, fault.Busy, ended, "fermata rollback web", "fermata cluster stop web")
	// A restart needs no rollback: nothing runs.
	if _, err := c.restart(&api.RestartRequest{Cluster: "web"}); err != nil {
		t.Fatal(err)
	}
	c.wantState("web", up, "")
	c.mustCheckpoint("web")
}

// A start says that there are checkpoints which it does not use.
func TestStart_MentionsCheckpoints(t *testing.T) {
	l := newLab(t, "n1", "n2")
	c := l.ready(0)
	all := c.taken("web", 2)
	if _, err := c.stopCluster("web"); err != nil {
		t.Fatal(err)
	}
	stream, err := c.StartCluster(t.Context(), &api.StartClusterRequest{Name: "web"})
	if err != nil {
		t.Fatal(err)
	}
	var said string
	for {
		e, err := stream.Recv()
		if err != nil {
			break
		}
		said += e.GetText()
	}
	if !strings.Contains(said, "fermata restart web") || !strings.Contains(said, all[1].GetId()) {
		t.Errorf("start of a cluster with checkpoints says %q", said)
	}
}
