package coordinator_test

import (
	"context"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	"fermata/coordinator/coordinatortest"
	"fermata/coordinator/store"
	"fermata/protocol/api"
	"fermata/protocol/fault"
)

// parkAfter does the work, closes done and never answers.
func parkAfter(done chan<- struct{}) coordinatortest.Fault {
	return func(ctx context.Context, work func() error) error {
		err := work()
		close(done)
		<-ctx.Done()
		return errors.Join(err, ctx.Err())
	}
}

// TestCarryOn: the leader is lost at some point of a start or restart, and its
// successor brings the cluster up. Guests that have been made are not made again.
func TestCarryOn(t *testing.T) {
	never := make(chan struct{})
	for _, op := range []string{"start", "restart"} {
		for _, tc := range []struct {
			name  string
			call  coordinatortest.Call
			fault func(arrived chan<- struct{}) coordinatortest.Fault
			again bool // guests are made a second time
		}{
			{"before a node has ended old guests", coordinatortest.Destroy, func(c chan<- struct{}) coordinatortest.Fault { return coordinatortest.Park(c, never) }, true},
			{"before a node has made guests", coordinatortest.Create, func(c chan<- struct{}) coordinatortest.Fault { return coordinatortest.Park(c, never) }, true},
			{"before a node has released guests", coordinatortest.Release, func(c chan<- struct{}) coordinatortest.Fault { return coordinatortest.Park(c, never) }, false},
			{"after all nodes have released guests", coordinatortest.Release, parkAfter, false},
		} {
			t.Run(op+" "+tc.name, func(t *testing.T) {
				l := newLab(t, "n1", "n2")
				first := l.ready(0)
				first.taken("web", 1)
				l.touch("web", "a", 9) // what a restart takes back
				if _, err := first.stopCluster("web"); err != nil {
					t.Fatal(err)
				}
				second := l.start(1)
				arrived := make(chan struct{})
				l.agents["n2"].Inject(tc.call, tc.fault(arrived))
				made := l.agents["n1"].Calls(coordinatortest.Create)
				ended := make(chan error, 1)
				go func() {
					var err error
					if op == "start" {
						_, err = first.startCluster("web")
					} else {
						_, err = first.restart(&api.RestartRequest{Cluster: "web"})
					}
					ended <- err
				}()
				<-arrived
				l.await("n1 has done its part", func() bool {
					switch tc.call {
					case coordinatortest.Create:
						return len(l.agents["n1"].Guests("web")) == 1
					case coordinatortest.Release:
						return len(l.agents["n1"].Running("web")) == 1
					default:
						return true
					}
				})
				epoch := l.agents["n1"].Epoch("web")
				destroyed := l.agents["n1"].Calls(coordinatortest.Destroy)
				l.election.Depose()
				wantFault(t, <-ended, fault.Unknown)
				l.settled()
				second.wantState("web", up, "")
				if n := l.runningGuests("web"); n != 2 {
					t.Fatalf("%d guests run, want 2", n)
				}
				if op == "restart" {
					l.wantFirst("web", 1)
				}
				if !tc.again && (l.agents["n1"].Epoch("web") != epoch || l.agents["n1"].Calls(coordinatortest.Destroy) != destroyed) {
					t.Errorf("guests that were complete in epoch %d were ended, those of epoch %d run", epoch, l.agents["n1"].Epoch("web"))
				}
				if n := l.agents["n1"].Calls(coordinatortest.Create) - made; tc.again && n == 0 {
					t.Error("no guest was made again")
				}
				second.mustCheckpoint("web")
			})
		}
	}
}

// settled waits until no operation is left in the store.
func (l *lab) settled() {
	l.t.Helper()
	l.await("no operation is left", func() bool {
		ops, err := l.store.Operations(l.t.Context())
		return err == nil && len(ops) == 0
	})
}

// A successor that cannot carry a restart on says so in the cluster's state, and the next
// command works.
func TestCarryOn_Fails(t *testing.T) {
	l := newLab(t, "n1", "n2")
	first := l.ready(0)
	all := first.taken("web", 1)
	second := l.start(1)
	arrived, never := make(chan struct{}), make(chan struct{})
	l.agents["n2"].Inject(coordinatortest.Create, coordinatortest.Park(arrived, never))
	ended := make(chan error, 1)
	go func() {
		_, err := first.restart(&api.RestartRequest{Cluster: "web", From: all[0].GetId(), Rollback: true})
		ended <- err
	}()
	<-arrived
	l.agents["n1"].Inject(coordinatortest.Check, coordinatortest.Refuse(fault.NoSpace, "taken meanwhile"))
	l.election.Depose()
	wantFault(t, <-ended, fault.Unknown)
	l.settled()
	second.wantState("web", stopped, "taken meanwhile")
	if guests := l.guests("web"); len(guests) != 0 {
		t.Errorf("%v are left", guests)
	}
	if _, err := second.restart(&api.RestartRequest{Cluster: "web"}); err != nil {
		t.Fatal(err)
	}
	l.wantFirst("web", 1)
}

// All guests run, but the answer of one node is lost: the restart has succeeded.
func TestRestart_LostAnswerOfTheRelease(t *testing.T) {
	l := newLab(t, "n1", "n2")
	l.timeouts = quick()
	c := l.ready(0)
	c.taken("web", 1)
	l.agents["n2"].Inject(coordinatortest.Release, coordinatortest.HangAfter())
	if _, err := c.restart(&api.RestartRequest{Cluster: "web", Rollback: true}); err != nil {
		t.Fatal(err)
	}
	c.wantState("web", up, "")
	if n := l.runningGuests("web"); n != 2 {
		t.Errorf("%d guests run, want 2", n)
	}
}

// A node that is lost between the end of the old guests and the start of the new ones
// does not cost the cluster: the others take its guests.
func TestRestart_NodeLostInTheMiddle(t *testing.T) {
	l := newLab(t, "n1", "n2")
	l.timeouts = quick()
	c := l.ready(0)
	c.taken("web", 1)
	n2 := l.agents["n2"]
	n2.Inject(coordinatortest.Create, func(ctx context.Context, _ func() error) error {
		for range 2 { // looks at the nodes do without it
			n2.Inject(coordinatortest.Describe, coordinatortest.Hang())
		}
		<-ctx.Done()
		return ctx.Err()
	})
	if _, err := c.restart(&api.RestartRequest{Cluster: "web", Rollback: true}); err != nil {
		t.Fatal(err)
	}
	if got := l.agents["n1"].Running("web"); len(got) != 2 {
		t.Errorf("n1 runs %v, want both guests", got)
	}
	l.wantFirst("web", 1)
}

// Once a rollback ends guests it goes on without its caller.
func TestRestart_CallerGoesAwayAfterTheGuestsWereEnded(t *testing.T) {
	l := newLab(t, "n1", "n2")
	c := l.ready(0)
	c.taken("web", 1)
	arrived, goOn := make(chan struct{}), make(chan struct{})
	l.agents["n2"].Inject(coordinatortest.Create, coordinatortest.Park(arrived, goOn))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := follow(c.Restart(ctx, &api.RestartRequest{Cluster: "web", Rollback: true}))
		ended <- err
	}()
	<-arrived
	cancel()
	if err := <-ended; err == nil {
		t.Error("a call that was cancelled succeeded")
	}
	close(goOn)
	l.await("the cluster runs", func() bool { return c.state("web") == up })
	if n := l.runningGuests("web"); n != 2 {
		t.Errorf("%d guests run, want 2", n)
	}
}

// A leader is lost before it has ended the first guest of a rollback, and its successor
// finds that the rollback cannot be made: the guests go on as if nobody had asked.
func TestCarryOn_FailsBeforeAnythingWasEnded(t *testing.T) {
	l := newLab(t, "n1", "n2")
	l.leaseTTL = 3 * time.Second // long enough for a busy machine
	first := l.ready(0)
	taken := first.taken("web", 1)[0]
	l.touch("web", "a", 9)
	first.stop()
	was, err := l.store.Cluster(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	request, err := protojson.Marshal(&api.RestartRequest{Cluster: "web", From: taken.GetId(), Rollback: true})
	if err != nil {
		t.Fatal(err)
	}
	phase, err := json.Marshal(map[string]any{
		"epoch": 77, "checkpoint": taken.GetEpoch(), "request": json.RawMessage(request), "touched": false,
		"before": map[string]any{"state": was.State, "assignments": was.Assignments, "life": was.Life},
	})
	if err != nil {
		t.Fatal(err)
	}
	op := store.Operation{ID: "restart-1", Kind: store.Restart, Cluster: "web", Epoch: 77, Phase: phase, Started: time.Now()}
	err = l.store.BeginOperation(t.Context(), l.election.Usurp(), op, func(c *store.Cluster) error {
		c.State, c.Life = api.ClusterState_CLUSTER_STATE_STARTING, 77
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	l.agents["n2"].Inject(coordinatortest.Check, coordinatortest.Refuse(fault.Mismatch, "other machine"))
	second := l.start(1)
	l.settled()
	second.awaitNodes()
	l.heartbeats(second, "n1", 2) // which would end guests of an earlier life
	second.wantState("web", up, "")
	if n := l.runningGuests("web"); n != 2 {
		t.Errorf("%d guests run, want the old 2", n)
	}
	l.wantFirst("web", 9)
	for name, a := range l.agents {
		if n := a.Calls(coordinatortest.Destroy); n != 1 {
			t.Errorf("%d calls to end guests on %s, want that of the start", n, name)
		}
	}
	second.mustCheckpoint("web")
}
