package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fermata/nodeagent/fabric"
	"fermata/protocol/api"
	"fermata/protocol/fault"
	"fermata/protocol/round"
	"fermata/vmm"
)

func TestRounds_CutStoreAndCutAgain(t *testing.T) {
	b := newBench(t, 2)
	for epoch := uint64(2); epoch < 5; epoch++ {
		if image := b.checkpoint(epoch); len(image.Guests) != 2 || len(image.Packs) == 0 {
			t.Errorf("image %v, want two guests in packs", image)
		}
		b.allRun()
		b.nothingCopied()
	}
}

func TestRounds_GuestThatDoesNotStopFailsTheRoundAndAllRun(t *testing.T) {
	b := newBench(t, 2)
	broken := fault.New(fault.NoSpace, "disk is full")
	b.machines[1].onStop = func(context.Context) error { return broken }
	if err := b.cut(2, stepBudget); fault.ClassOf(err) != fault.NoSpace {
		t.Errorf("cut: %v, want class no-space", err)
	}
	b.allRun()
	b.finish(2, false)
	b.machines[1].onStop = nil
	b.checkpoint(3)
}

func TestRounds_ResumeIsTriedUntilItSucceeds(t *testing.T) {
	b := newBench(t, 2)
	var left atomic.Int32
	left.Store(3)
	b.machines[0].onContinue = func(context.Context) error {
		if left.Add(-1) >= 0 {
			return errors.New("monitor is busy")
		}
		return nil
	}
	if err := b.cut(2, stepBudget); err == nil {
		t.Error("a cut whose guest could not be resumed succeeded")
	}
	b.allRun()
	b.finish(2, false)
	b.nothingCopied()
	b.checkpoint(3)
}

func TestRounds_GuestThatEndsWhileStoppedHoldsUpNobody(t *testing.T) {
	b := newBench(t, 2)
	b.machines[0].onSave = func(context.Context) error {
		b.machines[0].Crash()
		return nil
	}
	if err := b.cut(2, stepBudget); err == nil {
		t.Error("a cut whose guest ended succeeded")
	}
	b.await("the other guest to run", func() bool { return b.status(1) == vmm.StatusRunning })
	b.finish(2, false) // answered only when nothing stands still
	b.nothingCopied()
}

// TestRounds_HangingDiskDoesNotKeepGuestsFromRunning has the copying of a
// guest's memory hang in the kernel, where no context reaches it.
func TestRounds_HangingDiskDoesNotKeepGuestsFromRunning(t *testing.T) {
	b := newBench(t, 2)
	pipe := filepath.Join(t.TempDir(), "hangs")
	if err := unix.Mkfifo(pipe, 0o600); err != nil { // its opening waits for a writer
		t.Fatal(err)
	}
	b.machines[0].memoryPath = pipe
	if err := b.cut(2, 300*time.Millisecond); fault.ClassOf(err) != fault.Deadline {
		t.Errorf("cut: %v, want class deadline", err)
	}
	b.allRun()
	b.finish(2, false)
	w, err := os.OpenFile(pipe, os.O_WRONLY, 0) // the disk comes back
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	b.machines[0].memoryPath = ""
	b.checkpoint(3)
	b.nothingCopied()
}

func TestRounds_AbandonedSaveIsNotReported(t *testing.T) {
	b := newBench(t, 1)
	b.machines[0].onSave = func(ctx context.Context) error {
		<-ctx.Done() // and then the save succeeds, too late
		return nil
	}
	if err := b.cut(2, 200*time.Millisecond); fault.ClassOf(err) != fault.Deadline {
		t.Errorf("cut: %v, want class deadline", err)
	}
	b.allRun()
	b.finish(2, false)
}

func TestEndRound_LetsGuestsRunInTheMiddleOfACut(t *testing.T) {
	b := newBench(t, 2)
	saving := make(chan struct{}, 2)
	for _, m := range b.machines {
		m.onSave = func(ctx context.Context) error {
			saving <- struct{}{}
			<-ctx.Done()
			return ctx.Err()
		}
	}
	cut := make(chan error, 1)
	go func() { cut <- b.cut(2, stepBudget) }()
	<-saving
	if err := b.cluster.endRound(t.Context()); err != nil {
		t.Error(err)
	}
	for i := range b.machines {
		if s := b.status(i); s != vmm.StatusRunning {
			t.Errorf("guest %d is %s after the end of its rounds", i, s)
		}
	}
	if err := <-cut; err == nil {
		t.Error("a cut that was ended succeeded")
	}
	b.nothingCopied()
}

// TestRecordChannels_RefusesAGuestThatTheGuardMayHaveResumed is an agent that
// was stopped (SIGSTOP) for longer than the pause budget: no tick has passed.
func TestRecordChannels_RefusesAGuestThatTheGuardMayHaveResumed(t *testing.T) {
	s := &saving{budget: time.Second, guests: []*savedGuest{{
		guest:  &guest{spec: &api.GuestSpec{Name: "g1"}},
		stopAt: time.Now().Add(-2 * time.Second), held: true,
	}}}
	if err := s.recordChannels(t.Context()); fault.ClassOf(err) != fault.Deadline {
		t.Errorf("error = %v, want class deadline", err)
	}
}

func TestReleaseGuests_LateRepetitionDoesNotDisturbACut(t *testing.T) {
	b := newBench(t, 1)
	saving, goOn := make(chan struct{}), make(chan struct{})
	b.machines[0].onSave = func(context.Context) error {
		close(saving)
		<-goOn
		return nil
	}
	cut := make(chan error, 1)
	go func() { cut <- b.cut(2, stepBudget) }()
	<-saving
	if err := b.agent.ReleaseGuests(t.Context(), &api.ReleaseGuestsRequest{Fence: b.fence, Cluster: "c"}); err != nil {
		t.Error(err)
	}
	if s := b.status(0); s != vmm.StatusPaused {
		t.Errorf("guest is %s in the middle of a cut", s)
	}
	close(goOn)
	if err := <-cut; err != nil {
		t.Error(err)
	}
	b.finish(2, false)
}

func TestFence_NewerCoordinatorIsKnownToTheRounds(t *testing.T) {
	b := newBench(t, 1)
	if _, err := b.agent.fence(t.Context(), "c", &api.Fence{Store: 1, Token: 5}); err != nil {
		t.Fatal(err)
	}
	// A call of the old one that had passed the fence before.
	_, err := b.cluster.rounds().call(t.Context(), round.Request{
		Call: round.CallPrepare, Round: round.ID{Cluster: "c", Epoch: 2}, Token: 4, To: "n1",
		Members: []round.NodeID{"n1"}, Options: round.Options{PauseBudget: time.Second},
	})
	if fault.ClassOf(err) != fault.Stale {
		t.Errorf("error = %v, want class stale", err)
	}
}

func TestCall_OfARoundThatWasLeftIsAnswered(t *testing.T) {
	b := newBench(t, 1)
	r := b.cluster.rounds()
	wait := make(chan answer, 1)
	r.post(func(*round.Member) {
		key := callKey{round.CallCut, 2}
		r.waiting[key] = append(r.waiting[key], wait)
	})
	b.checkpoint(3)
	select {
	case a := <-wait:
		if fault.ClassOf(a.err) != fault.Stale {
			t.Errorf("answer %v, want class stale", a.err)
		}
	default:
		t.Error("a call of round 2 still waits in round 3")
	}
}

// What a later round may do without is no internal error.
func TestFabricFault(t *testing.T) {
	for err, want := range map[error]fault.Class{
		fabric.ErrOrphan:         fault.Aborted,
		fabric.ErrChannelFull:    fault.Aborted,
		fabric.ErrNotDrained:     fault.Deadline,
		fabric.ErrUnknownCluster: fault.NotFound,
		fabric.ErrNotCut:         fault.Internal,
	} {
		if got := fault.ClassOf(fabricFault(fmt.Errorf("nic g/n: %w", err))); got != want {
			t.Errorf("%v is of class %s, want %s", err, got, want)
		}
	}
	if err := fabricFault(nil); err != nil {
		t.Error(err)
	}
}
