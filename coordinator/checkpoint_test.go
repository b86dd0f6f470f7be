package coordinator_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	"fermata/coordinator/coordinatortest"
	"fermata/coordinator/store"
	"fermata/imageio/manifest"
	"fermata/imageio/repository"
	"fermata/protocol/api"
	"fermata/protocol/fault"
	"fermata/protocol/round"
)

func TestCheckpoint_ReportsAndIsListedTheSame(t *testing.T) {
	l := newLab(t, "n1", "n2")
	c := l.ready(0)
	c.running("web", "a", "b", "c")
	l.agents["n1"].Frames("web", l.agents["n1"].Guests("web")[0], 3)
	done := c.mustCheckpoint("web")
	if done.GetId() == "" || done.GetCluster() != "web" || done.GetLabel() != "test" || !done.GetChannelsRecorded() ||
		done.GetRawBytes() != 3*coordinatortest.MemoryBytes || done.GetNonZeroBytes() == 0 || done.GetFramesRecorded() != 3 ||
		done.GetNewBytes() < coordinatortest.UniqueBytes(3) || done.GetStoredBytes() == 0 || len(done.GetGuests()) != 3 ||
		done.GetResumedUs() == 0 || done.GetDurableUs() <= done.GetResumedUs() || done.GetQemuVersion() != "7.2.22" {
		t.Errorf("checkpoint: %v", done)
	}
	for _, id := range []string{done.GetId()} {
		shown, err := c.GetCheckpoint(t.Context(), &api.GetCheckpointRequest{Id: id})
		if err != nil {
			t.Fatal(err)
		}
		if shown.GetUniqueBytes() != coordinatortest.UniqueBytes(3) {
			t.Errorf("shown with %d distinct bytes, want %d", shown.GetUniqueBytes(), coordinatortest.UniqueBytes(3))
		}
		shown.UniqueBytes = 0
		if diff := cmp.Diff(done, shown, protocmp.Transform()); diff != "" {
			t.Errorf("shown again (-taken +shown):\n%s", diff)
		}
	}
	again := c.mustCheckpoint("web")
	if again.GetEpoch() <= done.GetEpoch() {
		t.Errorf("epoch %d after %d", again.GetEpoch(), done.GetEpoch())
	}
	list, err := c.ListCheckpoints(t.Context(), &api.ListCheckpointsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]*api.Checkpoint{done, again}, list.GetCheckpoints(), protocmp.Transform()); diff != "" {
		t.Errorf("list (-want +got):\n%s", diff)
	}
	for _, a := range l.agents {
		if committed, told := a.Outcome("web", done.GetEpoch()); !committed || !told {
			t.Errorf("an agent was told committed=%v, told=%v", committed, told)
		}
	}
	e, err := follow(c.VerifyCheckpoint(t.Context(), &api.VerifyCheckpointRequest{Id: done.GetId()}))
	if err != nil || e.GetVerify().GetBytes() == 0 || len(e.GetVerify().GetDamage()) != 0 {
		t.Errorf("verify: %v, %v", e, err)
	}
	if ops, err := l.store.Operations(t.Context()); err != nil || len(ops) != 0 {
		t.Errorf("operations %v are left, %v", ops, err)
	}
}

// Whatever fails in a round: nothing is committed, every node that knows of the
// round is told so, the guests run on, the error names node, step and reason
// with its class, and the next round commits.
func TestCheckpoint_FailureAborts(t *testing.T) {
	for _, tc := range []struct {
		name  string
		call  coordinatortest.Call
		fault coordinatortest.Fault
		class fault.Class
		texts []string
	}{
		{"prepare refused", coordinatortest.Prepare, coordinatortest.Refuse(fault.NoSpace, "no room for copies"), fault.NoSpace, []string{"node n2", "prepare", "no room for copies"}},
		{"prepare hangs", coordinatortest.Prepare, coordinatortest.Hang(), fault.Deadline, []string{"prepare", "n2"}},
		{"cut refused", coordinatortest.Cut, coordinatortest.Refuse(fault.Deadline, "guest b did not stop"), fault.Deadline, []string{"node n2", "cut", "guest b did not stop"}},
		{"cut done, then silence", coordinatortest.Cut, coordinatortest.HangAfter(), fault.Deadline, []string{"cut", "n2"}},
		{"persist refused", coordinatortest.Persist, coordinatortest.Refuse(fault.NoSpace, "filesystem full"), fault.NoSpace, []string{"node n2", "persist", "filesystem full"}},
		{"persist hangs", coordinatortest.Persist, coordinatortest.Hang(), fault.Deadline, []string{"n2", "persist", "no progress"}},
		{"persist done, then silence", coordinatortest.Persist, coordinatortest.HangAfter(), fault.Deadline, []string{"n2", "persist", "no progress"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newLab(t, "n1", "n2")
			l.timeouts = quick()
			c := l.ready(0)
			c.create("web", "a", "b")
			// The pause budget is part of a cut's patience.
			c.mustStartWithPause("web", "50ms")
			for range 3 { // a call without an answer is repeated
				l.agents["n2"].Inject(tc.call, tc.fault)
			}
			_, err := c.checkpoint("web")
			l.agents["n2"].Heal()
			wantFault(t, err, tc.class, tc.texts...)
			if got := l.committed("web"); len(got) != 0 {
				t.Errorf("epochs %v are committed", got)
			}
			for name, a := range l.agents {
				if committed, told := a.Outcome("web", l.lastEpoch("web")); committed || !told {
					t.Errorf("%s was told committed=%v, told=%v", name, committed, told)
				}
			}
			l.awaitOutcome("web", l.lastEpoch("web"), repository.OutcomeAborted)
			if l.runningGuests("web") != 2 {
				t.Errorf("%d guests run, want 2", l.runningGuests("web"))
			}
			c.mustCheckpoint("web")
		})
	}
}

// TestCheckpoint_PointsTooFarApart: a cut whose points are further apart than the
// specification allows is no checkpoint, unless all stood still at one instant.
func TestCheckpoint_PointsTooFarApart(t *testing.T) {
	l := newLab(t, "n1", "n2")
	c := l.ready(0)
	c.create("web", "a", "b")
	if _, err := c.startCluster("web"); err != nil {
		t.Fatal(err)
	}
	c.mustCheckpoint("web")
	l.agents["n2"].SetAhead(6 * time.Second) // the default budget is 5 s
	_, err := c.checkpoint("web")
	wantFault(t, err, fault.Deadline, "skew_budget")
	l.awaitOutcome("web", l.lastEpoch("web"), repository.OutcomeAborted)
	if l.runningGuests("web") != 2 {
		t.Errorf("%d guests run, want 2", l.runningGuests("web"))
	}
	if _, err := follow(c.TakeCheckpoint(t.Context(), &api.CheckpointRequest{Cluster: "web", Cut: api.Cut(round.CutBarrier).Enum()})); err != nil {
		t.Errorf("at a barrier: %v", err)
	}
	l.agents["n2"].SetAhead(4 * time.Second)
	c.mustCheckpoint("web")
}

// mustStartWithPause makes the cluster anew with a pause budget, and starts it.
func (c *client) mustStartWithPause(name, budget string) {
	c.lab.t.Helper()
	ctx := c.lab.t.Context()
	got, err := c.GetCluster(ctx, &api.GetClusterRequest{Name: name})
	if err != nil {
		c.lab.t.Fatal(err)
	}
	if _, err := c.DeleteCluster(ctx, &api.DeleteClusterRequest{Name: name}); err != nil {
		c.lab.t.Fatal(err)
	}
	yaml := bytes.Replace(got.GetSpecYaml(), []byte("pause_budget: 10s"), []byte("pause_budget: "+budget), 1)
	if _, err := c.CreateCluster(ctx, &api.CreateClusterRequest{SpecYaml: yaml}); err != nil {
		c.lab.t.Fatal(err)
	}
	if _, err := c.startCluster(name); err != nil {
		c.lab.t.Fatal(err)
	}
}

// awaitOutcome waits until the repository holds this outcome of an epoch. That of
// an abort follows the round.
func (l *lab) awaitOutcome(cluster string, epoch uint64, want repository.Outcome) {
	l.t.Helper()
	l.await(fmt.Sprintf("%s@%d is %s", cluster, epoch, want), func() bool {
		got, err := l.repo.Outcome(l.t.Context(), cluster, epoch)
		return err == nil && got == want
	})
}

// lastEpoch is the cluster's last epoch in the store.
func (l *lab) lastEpoch(name string) uint64 {
	l.t.Helper()
	c, err := l.store.Cluster(l.t.Context(), name)
	if err != nil {
		l.t.Fatal(err)
	}
	return c.Epoch
}

func TestCheckpoint_LostAnswersDoNotMatter(t *testing.T) {
	l := newLab(t, "n1", "n2")
	c := l.ready(0)
	c.running("web", "a", "b")
	for _, call := range []coordinatortest.Call{coordinatortest.Prepare, coordinatortest.Cut, coordinatortest.Persist, coordinatortest.Finish} {
		l.agents["n1"].Inject(call, coordinatortest.LoseAnswer())
		l.agents["n2"].Inject(call, coordinatortest.LoseRequest())
	}
	done := c.mustCheckpoint("web")
	for name, a := range l.agents {
		if committed, told := a.Outcome("web", done.GetEpoch()); !committed || !told {
			t.Errorf("%s was told committed=%v, told=%v", name, committed, told)
		}
	}
}

func TestCheckpoint_FinishThatHangsChangesNothing(t *testing.T) {
	l := newLab(t, "n1", "n2")
	l.timeouts = quick()
	c := l.ready(0)
	c.running("web", "a", "b")
	l.agents["n2"].Inject(coordinatortest.Finish, coordinatortest.Hang())
	done := c.mustCheckpoint("web")
	if got := l.committed("web"); !slices.Equal(got, []uint64{done.GetEpoch()}) {
		t.Errorf("committed %v", got)
	}
	c.mustCheckpoint("web")
}

// TestCheckpoint_CancelledByCall aborts a round by a call of its own: the one who
// has it taken is told how it ended.
func TestCheckpoint_CancelledByCall(t *testing.T) {
	l := newLab(t, "n1")
	c := l.ready(0)
	c.running("web", "a")
	cancel := func() error {
		_, err := c.CancelCheckpoint(t.Context(), &api.CancelCheckpointRequest{Cluster: "web"})
		return err
	}
	wantFault(t, cancel(), fault.NotFound, "no checkpoint of cluster web is in progress")
	arrived, never := make(chan struct{}), make(chan struct{})
	l.agents["n1"].Inject(coordinatortest.Persist, coordinatortest.Park(arrived, never))
	ended := make(chan error, 1)
	go func() {
		_, err := c.checkpoint("web")
		ended <- err
	}()
	<-arrived
	if err := cancel(); err != nil {
		t.Error(err)
	}
	wantFault(t, <-ended, fault.Aborted, "at the operator's request")
	c.mustCheckpoint("web")
}

func TestCheckpoint_CancelAborts(t *testing.T) {
	for _, call := range []coordinatortest.Call{coordinatortest.Prepare, coordinatortest.Cut, coordinatortest.Persist} {
		t.Run(string(call), func(t *testing.T) {
			l := newLab(t, "n1", "n2")
			c := l.ready(0)
			c.running("web", "a", "b")
			arrived, never := make(chan struct{}), make(chan struct{})
			l.agents["n2"].Inject(call, coordinatortest.Park(arrived, never))
			ctx, cancel := context.WithCancel(t.Context())
			go func() { <-arrived; cancel() }()
			if _, err := c.checkpointCtx(ctx, "web"); err == nil {
				t.Fatal("a cancelled checkpoint succeeded")
			}
			l.await("both nodes are told", func() bool {
				for _, a := range l.agents {
					if committed, told := a.Outcome("web", l.lastEpoch("web")); committed || !told {
						return false
					}
				}
				return true
			})
			if l.runningGuests("web") != 2 || len(l.committed("web")) != 0 {
				t.Errorf("%d guests run, committed %v", l.runningGuests("web"), l.committed("web"))
			}
			l.await("the cluster is free again", func() bool {
				ops, err := l.store.Operations(t.Context())
				return err == nil && len(ops) == 0
			})
			l.await("the next round commits", func() bool {
				_, err := c.checkpoint("web")
				return err == nil
			})
		})
	}
}

// A new leader finds a round in flight. It must end it, committed or aborted,
// exactly once, and whoever knew of the round must be told.
func TestCheckpoint_CoordinatorReplacedInMidRound(t *testing.T) {
	for _, call := range []coordinatortest.Call{coordinatortest.Prepare, coordinatortest.Cut, coordinatortest.Persist, coordinatortest.Finish} {
		t.Run(string(call), func(t *testing.T) {
			l := newLab(t, "n1", "n2")
			first := l.ready(0)
			first.running("web", "a", "b")
			second := l.start(1)
			arrived, never := make(chan struct{}), make(chan struct{})
			l.agents["n2"].Inject(call, coordinatortest.Park(arrived, never))
			ended := make(chan error, 1)
			go func() {
				_, err := first.checkpoint("web")
				ended <- err
			}()
			<-arrived
			l.election.Depose()
			err := <-ended
			if call == coordinatortest.Finish {
				// Decided before: the operator learns it.
				if err != nil {
					t.Errorf("the checkpoint was committed, but its caller reads %v", err)
				}
			} else if fault.ClassOf(err) != fault.Unknown {
				t.Errorf("the caller reads %v (%v), want an unknown outcome", err, fault.ClassOf(err))
			}
			epoch := l.lastEpoch("web")
			l.await("the round has been recovered", func() bool {
				ops, err := l.store.Operations(t.Context())
				return err == nil && len(ops) == 0
			})
			want := repository.OutcomeAborted
			if call == coordinatortest.Finish {
				want = repository.OutcomeCommitted
			}
			l.awaitOutcome("web", epoch, want)
			for name, a := range l.agents {
				if committed, told := a.Outcome("web", epoch); !told || committed != (want == repository.OutcomeCommitted) {
					t.Errorf("%s was told committed=%v, told=%v", name, committed, told)
				}
			}
			if l.runningGuests("web") != 2 {
				t.Errorf("%d guests run, want 2", l.runningGuests("web"))
			}
			l.await("the new leader takes checkpoints", func() bool {
				_, err := second.checkpoint("web")
				return err == nil
			})
		})
	}
}

// A leader that has been replaced and has not noticed changes nothing.
func TestCheckpoint_StaleFenceIsRefused(t *testing.T) {
	l := newLab(t, "n1")
	c := l.ready(0)
	c.running("web", "a")
	arrived, release := make(chan struct{}), make(chan struct{})
	l.agents["n1"].Inject(coordinatortest.Persist, coordinatortest.Park(arrived, release))
	ended := make(chan error, 1)
	go func() {
		_, err := c.checkpoint("web")
		ended <- err
	}()
	<-arrived
	l.election.Usurp()
	close(release)
	if err := <-ended; err == nil {
		t.Error("a round of a deposed leader succeeded")
	}
	if got := l.committed("web"); len(got) != 0 {
		t.Errorf("a deposed leader committed %v", got)
	}
	if outcome, err := l.repo.Outcome(t.Context(), "web", l.lastEpoch("web")); outcome != repository.OutcomeNone {
		t.Errorf("a deposed leader decided %v, %v", outcome, err)
	}
	_, err := c.CreateCluster(t.Context(), &api.CreateClusterRequest{SpecYaml: specOf("db", "a")})
	wantFault(t, err, fault.Stale)
	_, err = c.startCluster("web")
	if fault.ClassOf(err) != fault.Busy && fault.ClassOf(err) != fault.Stale {
		t.Errorf("start by a deposed leader: %v", err)
	}
}

func TestCheckpoint_FollowerNamesTheLeader(t *testing.T) {
	l := newLab(t, "n1")
	l.ready(0)
	follower := l.start(1)
	_, err := follower.checkpoint("web")
	wantFault(t, err, fault.Unavailable, l.address(0))
	// By this call clients find the leader, and it alone knows when nodes spoke last.
	_, err = follower.ListNodes(t.Context(), &api.ListNodesRequest{})
	wantFault(t, err, fault.Unavailable, l.address(0))
	if _, err := follower.ListClusters(t.Context(), &api.ListClustersRequest{}); err != nil {
		t.Errorf("a follower answers questions: %v", err)
	}
}

func TestCheckpoint_ShutdownAbortsTheRound(t *testing.T) {
	l := newLab(t, "n1")
	c := l.ready(0)
	c.running("web", "a")
	arrived, never := make(chan struct{}), make(chan struct{})
	l.agents["n1"].Inject(coordinatortest.Persist, coordinatortest.Park(arrived, never))
	ended := make(chan error, 1)
	go func() {
		_, err := c.checkpoint("web")
		ended <- err
	}()
	<-arrived
	c.stop()
	wantFault(t, <-ended, fault.Aborted, "the coordinator is ending")
	l.start(1) // records what the first one had no time for
	l.awaitOutcome("web", l.lastEpoch("web"), repository.OutcomeAborted)
	if committed, told := l.agents["n1"].Outcome("web", l.lastEpoch("web")); committed || !told {
		t.Errorf("n1 was told committed=%v, told=%v", committed, told)
	}
	if l.runningGuests("web") != 1 {
		t.Error("the guest does not run")
	}
}

func TestCheckpoint_WhatCannotBeTaken(t *testing.T) {
	l := newLab(t, "n1")
	c := l.ready(0)
	_, err := c.checkpoint("nobody")
	wantFault(t, err, fault.NotFound, "nobody")
	c.create("web", "a")
	_, err = c.checkpoint("web")
	wantFault(t, err, fault.Invalid, "is stopped")
	_, err = follow(c.TakeCheckpoint(t.Context(), &api.CheckpointRequest{Cluster: "web", Label: string(make([]byte, 257))}))
	wantFault(t, err, fault.Invalid, "label")
	if _, err := c.startCluster("web"); err != nil {
		t.Fatal(err)
	}
	fence := l.election.Usurp()
	if err := l.store.ForgetNode(t.Context(), fence, "n1"); err != nil {
		t.Fatal(err)
	}
	_, err = c.checkpoint("web")
	wantFault(t, err, fault.Unavailable, "node n1", "guests a")
	var _ store.Fence = fence
}

func TestDelete_RefusedDuringARound(t *testing.T) {
	l := newLab(t, "n1")
	c := l.ready(0)
	c.running("web", "a")
	c.running("db", "a")
	old := c.mustCheckpoint("web")
	arrived, release := make(chan struct{}), make(chan struct{})
	l.agents["n1"].Inject(coordinatortest.Cut, coordinatortest.Park(arrived, release))
	ended := make(chan error, 1)
	go func() {
		_, err := c.checkpoint("db")
		ended <- err
	}()
	<-arrived
	_, err := c.DeleteCheckpoint(t.Context(), &api.DeleteCheckpointRequest{Id: old.GetId()})
	wantFault(t, err, fault.Busy, "checkpoint of cluster db is in progress")
	close(release)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	reply, err := c.DeleteCheckpoint(t.Context(), &api.DeleteCheckpointRequest{Id: old.GetId()})
	if err != nil {
		t.Fatal(err)
	}
	if reply.GetFreedBytes() == 0 {
		t.Log("the other checkpoint shares its pages: nothing was freed")
	}
	_, err = c.GetCheckpoint(t.Context(), &api.GetCheckpointRequest{Id: old.GetId()})
	wantFault(t, err, fault.NotFound, old.GetId())
}

// The repository fails where the outcome is written. Whatever it holds in the
// end is what everybody is told.
func TestCheckpoint_RepositoryFailsAtTheCommit(t *testing.T) {
	full := func(func() error) error { return syscall.ENOSPC }
	doneButLost := func(link func() error) error { return errors.Join(link(), syscall.EIO) }
	for _, tc := range []struct {
		name      string
		faults    []coordinatortest.LinkFault
		committed bool
		class     fault.Class
	}{
		{"full once", []coordinatortest.LinkFault{full}, false, fault.NoSpace},
		{"full for the abort, too", []coordinatortest.LinkFault{full, full}, true, fault.None},
		{"committed, answer lost", []coordinatortest.LinkFault{doneButLost}, true, fault.None},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newLab(t, "n1", "n2")
			c := l.ready(0)
			c.running("web", "a", "b")
			for _, f := range tc.faults {
				l.disk.OnOutcome(f)
			}
			_, err := c.checkpoint("web")
			wantFault(t, err, tc.class)
			epoch := l.lastEpoch("web")
			want := repository.OutcomeAborted
			if tc.committed {
				want = repository.OutcomeCommitted
			}
			if got, err := l.repo.Outcome(t.Context(), "web", epoch); got != want {
				t.Errorf("the repository says %v, %v, want %v", got, err, want)
			}
			for name, a := range l.agents {
				if committed, told := a.Outcome("web", epoch); !told || committed != tc.committed {
					t.Errorf("%s was told committed=%v, told=%v", name, committed, told)
				}
			}
			c.mustCheckpoint("web")
		})
	}
}

// A store that is lost takes the knowledge of rounds in flight with it. Their
// packs are freed with the next deletion, and the epoch gets an outcome.
func TestDelete_FreesWhatAbandonedRoundsLeft(t *testing.T) {
	l := newLab(t, "n1")
	c := l.ready(0)
	c.running("web", "a")
	first := c.mustCheckpoint("web")
	arrived, never := make(chan struct{}), make(chan struct{})
	l.touch("web", "a", 200)
	l.agents["n1"].Inject(coordinatortest.Persist, func(ctx context.Context, work func() error) error {
		return errors.Join(work(), coordinatortest.Park(arrived, never)(ctx, func() error { return nil }))
	})
	ended := make(chan error, 1)
	go func() {
		_, err := c.checkpoint("web")
		ended <- err
	}()
	<-arrived
	l.election.Usurp() // so that nobody records an outcome
	c.stop()
	<-ended
	abandoned := first.GetEpoch() + 1
	if outcome, err := l.repo.Outcome(t.Context(), "web", abandoned); outcome != repository.OutcomeNone {
		t.Fatalf("epoch %d is %v, %v before", abandoned, outcome, err)
	}
	l.wipe()
	c = l.ready(0)
	if _, err := c.DeleteCheckpoint(t.Context(), &api.DeleteCheckpointRequest{Id: first.GetId()}); err != nil {
		t.Fatal(err)
	}
	if outcome, err := l.repo.Outcome(t.Context(), "web", abandoned); outcome != repository.OutcomeAborted {
		t.Errorf("epoch %d is %v, %v", abandoned, outcome, err)
	}
	report, err := l.repo.Sweep(t.Context())
	if err != nil || len(report.InFlight) != 0 || report.Packs != 0 {
		t.Errorf("something was left to sweep: %+v, %v", report, err)
	}
}

// TestDelete_LeavesACopyAlone: a copy into the repository is a round that no
// coordinator drives. A deletion meanwhile does not take it for one whose coordinator
// has died.
func TestDelete_LeavesACopyAlone(t *testing.T) {
	l := newLab(t, "n1")
	c := l.ready(0)
	c.running("web", "a")
	taken := c.mustCheckpoint("web")
	ctx := t.Context()
	from, err := repository.Create(ctx, repository.Config{Dir: t.TempDir() + "/from"})
	if err != nil {
		t.Fatal(err)
	}
	w, err := from.NewWriter(repository.WriterConfig{Cluster: "elsewhere", Epoch: 3, Node: "n9"})
	if err != nil {
		t.Fatal(err)
	}
	memory := make([]byte, 2<<20) // more than a run, so that a pack is begun before the end
	if _, err := rand.NewChaCha8([32]byte{1}).Read(memory); err != nil {
		t.Fatal(err)
	}
	ref, err := w.PutBytes(ctx, memory)
	if err != nil {
		t.Fatal(err)
	}
	res, err := w.Finish(ctx)
	if err != nil {
		t.Fatal(err)
	}
	err = from.Commit(ctx, &manifest.Manifest{Cluster: "elsewhere", Epoch: 3, CreatedUnixNS: 1, Packs: res.Packs,
		Guests: []manifest.Guest{{Name: "x", Node: "n9", Objects: []manifest.Object{
			{Kind: manifest.KindMemory, Name: "ram", ID: ref.ID, SizeBytes: uint64(ref.Size)}}}}})
	if err != nil {
		t.Fatal(err)
	}
	deleted := false
	_, err = from.Copy(ctx, l.repo, "elsewhere", 3, func(done, total int64) {
		if done == total && !deleted {
			deleted = true
			if _, err := c.DeleteCheckpoint(ctx, &api.DeleteCheckpointRequest{Id: taken.GetId()}); err != nil {
				t.Error(err)
			}
		}
	})
	if err != nil || !deleted {
		t.Fatalf("deleted %v, %v", deleted, err)
	}
	if outcome, err := l.repo.Outcome(ctx, "elsewhere", 3); outcome != repository.OutcomeCommitted {
		t.Errorf("the repository says %v, %v", outcome, err)
	}
}
