//go:build failpoints

package nodeagent

import (
	"testing"
	"time"

	"fermata/protocol/api"
	"fermata/protocol/failpoint"
	"fermata/protocol/fault"
	"fermata/protocol/round"
)

// TestFailpoints_NoneKeepsAGuestFromRunning meets an error, and where that is
// possible a hang, at every point of a round. Afterwards all guests run, all
// memory is free, and the next round works.
func TestFailpoints_NoneKeepsAGuestFromRunning(t *testing.T) {
	for _, cut := range []api.Cut{api.Cut_CUT_COLOURED, api.Cut_CUT_BARRIER} {
		t.Run(round.Cut(cut).String(), func(t *testing.T) { testFailpoints(t, cut) })
	}
}

func testFailpoints(t *testing.T, cut api.Cut) {
	b := newBench(t, 2)
	epoch := uint64(1)
	for _, tc := range []struct {
		point   failpoint.Point
		action  string
		commits bool // the round goes on all the same
	}{
		{failpoint.AgentAfterPrepare, "error@1", false},
		{failpoint.AgentBeforeCut, "error@1", false},
		{failpoint.AgentBeforeCut, "hang@1", false},
		{failpoint.AgentAfterGate, "error@1", false},
		{failpoint.AgentAfterGate, "hang@1", false},
		{failpoint.AgentAfterDrain, "error@1", false},
		{failpoint.AgentAfterStop, "error@1", false},
		{failpoint.AgentAfterStop, "hang@1", false},
		{failpoint.AgentAfterSaveDevices, "error@2", false}, // of the second guest
		{failpoint.AgentAfterSaveDevices, "hang@1", false},
		{failpoint.AgentAfterSaveMemory, "error@1", false},
		{failpoint.AgentAfterSaveMemory, "hang@1", false},
		{failpoint.AgentBeforeMark, "error@1", false},
		{failpoint.AgentBeforeMark, "hang@1", false},
		{failpoint.AgentAfterMark, "error@1", false},
		{failpoint.AgentAfterCloseChannels, "error@1", false},
		{failpoint.AgentAfterCloseChannels, "hang@1", false},
		{failpoint.AgentAfterRecordChannels, "error@1", false},
		{failpoint.AgentBeforeResume, "error@1", false},
		{failpoint.AgentBeforeResume, "hang@1", false},
		{failpoint.AgentAfterResume, "error@1", false},
		{failpoint.AgentBeforePersist, "error@1", false},
		{failpoint.AgentAfterPersist, "error@1", false},
		{failpoint.AgentBeforeJournal, "error@1", true},
		{failpoint.AgentAfterJournal, "error@1", true},
		{failpoint.AgentBeforeFinish, "error@1", true},
		{failpoint.AgentAfterFinish, "error@1", true},
	} {
		t.Run(string(tc.point)+"="+tc.action, func(t *testing.T) {
			b.t = t
			epoch++
			disarm, err := failpoint.Arm(tc.point, tc.action)
			if err != nil {
				t.Fatal(err)
			}
			committed := b.attempt(epoch, cut)
			disarm()
			if committed != tc.commits {
				t.Errorf("committed %t, want %t", committed, tc.commits)
			}
			b.allRun()
			b.nothingCopied()
			epoch++
			b.checkpoint(epoch)
		})
	}
}

// attempt runs a round whatever happens, as a coordinator does, and returns
// whether it could be committed.
func (b *bench) attempt(epoch uint64, cut api.Cut) bool {
	b.t.Helper()
	ctx := b.t.Context()
	id := b.round(epoch)
	_, err := b.agent.PrepareRound(ctx, &api.PrepareRoundRequest{Round: id, Nodes: []string{"n1"}, PauseBudgetMs: 500, Cut: cut})
	if err == nil {
		begun := time.Now()
		_, err = b.agent.CutRound(ctx, &api.CutRoundRequest{Round: id})
		if took := time.Since(begun); took > stepBudget {
			b.t.Errorf("cut took %s", took)
		}
	}
	if err == nil {
		err = b.agent.PersistRound(ctx, &api.PersistRoundRequest{Round: id}, func(*api.PersistRoundUpdate) error { return nil })
	}
	for range 2 { // an answer that is lost is asked for again
		finishErr := b.agent.FinishRound(ctx, &api.FinishRoundRequest{Round: id, Committed: err == nil})
		if finishErr == nil {
			return err == nil
		}
		if fault.ClassOf(finishErr) != fault.Internal {
			b.t.Errorf("finish: %v", finishErr)
		}
	}
	b.t.Error("round does not finish")
	return false
}
