package nodeagent

import (
	"strings"
	"testing"
	"time"

	"fermata/protocol/api"
	"fermata/protocol/fault"
)

// endedGuest returns the status of a guest that has ended, once the agent knows.
func (b *bench) endedGuest(name string) *api.GuestStatus {
	b.t.Helper()
	var found *api.GuestStatus
	b.await("guest "+name+" to be shown as ended", func() bool {
		info, err := b.agent.Describe(b.t.Context())
		if err != nil {
			b.t.Fatal(err)
		}
		for _, g := range info.Guests {
			if g.Name == name && g.State == api.GuestState_GUEST_STATE_DEAD && g.Reason != "" {
				found = g
			}
		}
		return found != nil
	})
	return found
}

// TestEnding_IsKnown: a guest that ends by itself is noticed at once, shown with when and
// why, kept in the journal, and named by what cannot be done without it.
func TestEnding_IsKnown(t *testing.T) {
	b := newBench(t, 2)
	before := time.Now()
	b.machines[0].Crash()
	g := b.endedGuest("g1")
	if ended := time.Unix(0, g.EndedUnixNs); g.Reason != "it crashed" || ended.Before(before) || ended.After(time.Now()) || g.Epoch != 1 {
		t.Errorf("status %v, want why and when it ended", g)
	}
	select {
	case <-b.agent.news:
	case <-time.After(stepBudget):
		t.Error("the coordinator is not told before the next heartbeat")
	}
	records, err := b.agent.journal.Guests()
	if err != nil {
		t.Fatal(err)
	}
	if e := records[0].Ending; e == nil || e.Why != "it crashed" || e.UnixNS != g.EndedUnixNs || records[1].Ending != nil {
		t.Errorf("journal %+v", records)
	}
	_, err = b.agent.PrepareRound(t.Context(), &api.PrepareRoundRequest{Round: b.round(2), Nodes: []string{"n1"}, PauseBudgetMs: 1000})
	text := "guest g1 on node n1 has ended (it crashed at " + clock(time.Unix(0, g.EndedUnixNs)) + "); use `fermata rollback c`"
	if fault.ClassOf(err) != fault.Invalid || !strings.Contains(err.Error(), text) {
		t.Errorf("checkpoint: %v, want %q", err, text)
	}
}

// TestEnding_OnPurposeIsNone: guests that are destroyed, or let go of, have not ended by
// themselves.
func TestEnding_OnPurposeIsNone(t *testing.T) {
	b := newBench(t, 1)
	g := b.cluster.list()[0]
	if err := b.agent.DestroyGuests(t.Context(), &api.DestroyGuestsRequest{Fence: b.fence, Cluster: "c"}); err != nil {
		t.Fatal(err)
	}
	if e := b.cluster.endingOf(g); e != nil {
		t.Errorf("a guest that was destroyed has ended by itself: %+v", e)
	}
}
