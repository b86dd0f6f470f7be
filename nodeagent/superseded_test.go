package nodeagent

import (
	"context"
	"testing"

	"fermata/protocol/api"
	"fermata/protocol/fault"
)

// TestEndOlder ends guests of a life that another one has followed, and no others.
func TestEndOlder(t *testing.T) {
	b := newBench(t, 2)
	left := func() int { return len(b.cluster.list()) }
	order := func(before, token uint64) error {
		return b.agent.endOlder(t.Context(), &api.SupersededLife{
			Fence: &api.Fence{Store: 1, Token: token}, Cluster: "c", BeforeEpoch: before,
		})
	}
	if err := order(1, 5); err != nil || left() != 2 {
		t.Errorf("guests of the life that is told: %v, %d left, want 2", err, left())
	}
	if err := order(0, 5); fault.ClassOf(err) != fault.Invalid || left() != 2 {
		t.Errorf("without an epoch: %v, %d left, want 2", err, left())
	}
	if err := order(2, 4); fault.ClassOf(err) != fault.Stale || left() != 2 {
		t.Errorf("by a coordinator that was deposed: %v, %d left, want 2", err, left())
	}
	if err := order(2, 5); err != nil || left() != 0 {
		t.Errorf("guests of an earlier life: %v, %d left", err, left())
	}
	records, err := b.agent.journal.Guests()
	if err != nil || len(records) != 0 {
		t.Errorf("journal: %v, %v", records, err)
	}
	if err := order(2, 5); err != nil {
		t.Errorf("repeated: %v", err)
	}
}

// TestOrders_AreCarriedOut hands the answer of a registration to the agent that runs.
func TestOrders_AreCarriedOut(t *testing.T) {
	b := newBench(t, 1)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		b.agent.endSuperseded(ctx)
	}()
	b.agent.order([]*api.SupersededLife{{Fence: b.fence, Cluster: "c", BeforeEpoch: 7}})
	b.await("the guest to be ended", func() bool { return len(b.cluster.list()) == 0 })
	<-b.agent.news // the coordinator is told at once
	stop()
	<-done
}
