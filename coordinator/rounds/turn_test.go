package rounds_test

import (
	"testing"
	"time"

	"fermata/coordinator/coordinatortest"
	"fermata/coordinator/deploy"
	"fermata/coordinator/rounds"
	"fermata/protocol/api"
	"fermata/protocol/round"
)

// other makes a second cluster on the field's agent, and returns a round of it.
func (f *field) other(t *testing.T, b *book) rounds.Job {
	t.Helper()
	life := deploy.Life{Cluster: "d", Epoch: 1, Fence: f.job.Fence}
	parts := []deploy.Part{{Node: f.job.Members[0], Guests: []*api.GuestSpec{{Name: "a", MemoryBytes: 1 << 20}}}}
	if _, err := f.deployer.Create(t.Context(), life, parts, func(*api.Event) {}); err != nil {
		t.Fatal(err)
	}
	if err := f.deployer.Release(t.Context(), life, f.job.Members); err != nil {
		t.Fatal(err)
	}
	job := f.job
	job.Round, job.Ledger, job.Judge = round.ID{Cluster: "d", Epoch: 2}, b, b
	return job
}

// TestRun_KeepsAliveWhoWaitsToWrite: a node that is not allowed to write yet hears again
// and again that its round goes on.
func TestRun_KeepsAliveWhoWaitsToWrite(t *testing.T) {
	f := newFieldWith(t, &book{}, rounds.Config{Writers: 1, KeepAlive: 5 * time.Millisecond})
	second := f.other(t, &book{})
	arrived, goOn := make(chan struct{}), make(chan struct{})
	f.agent.Inject(coordinatortest.Persist, coordinatortest.Park(arrived, goOn))
	first := make(chan error, 1)
	go func() { first <- f.driver.Run(t.Context(), t.Context(), f.job) }()
	<-arrived // it writes, and the other has to wait
	waits := make(chan error, 1)
	go func() { waits <- f.driver.Run(t.Context(), t.Context(), second) }()
	deadline := time.Now().Add(20 * time.Second)
	for f.agent.Calls(coordinatortest.Cut) < 10 {
		select {
		case err := <-waits:
			t.Fatalf("the round that waits has ended: %v", err)
		case <-time.After(time.Millisecond):
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d calls", f.agent.Calls(coordinatortest.Cut))
		}
	}
	close(goOn)
	for what, end := range map[string]chan error{"that wrote": first, "that waited": waits} {
		if err := <-end; err != nil {
			t.Errorf("the round %s: %v", what, err)
		}
	}
}
