package round_test

import (
	"errors"
	"testing"

	"fermata/protocol/round"
)

func newLead(t *testing.T, members ...round.NodeID) *round.Lead {
	t.Helper()
	l, err := round.NewLead(round.LeadConfig{
		Round: round.ID{Cluster: "c", Epoch: 7}, Token: 1, Members: members, Budgets: scriptBudgets,
	})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestNewLead_Refuses(t *testing.T) {
	good := round.LeadConfig{Round: round.ID{Cluster: "c", Epoch: 7}, Token: 1, Members: []round.NodeID{"n1"}, Budgets: scriptBudgets}
	for name, change := range map[string]func(*round.LeadConfig){
		"no members":   func(c *round.LeadConfig) { c.Members = nil },
		"twice":        func(c *round.LeadConfig) { c.Members = []round.NodeID{"n1", "n1"} },
		"empty name":   func(c *round.LeadConfig) { c.Members = []round.NodeID{""} },
		"no epoch":     func(c *round.LeadConfig) { c.Round.Epoch = 0 },
		"no cluster":   func(c *round.LeadConfig) { c.Round.Cluster = "" },
		"empty budget": func(c *round.LeadConfig) { c.Budgets.Decide = 0 },
	} {
		cfg := good
		change(&cfg)
		if _, err := round.NewLead(cfg); !errors.Is(err, round.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
}

func TestLead_ForeignAnswers(t *testing.T) {
	l := newLead(t, "n1", "n2")
	l.Begin()
	l.Ready()
	done := round.Reply{Call: round.CallPrepare, Round: round.ID{Cluster: "c", Epoch: 7}, From: "n1", Result: round.ResultDone, Payload: []byte("p")}
	stranger, old := done, done
	stranger.From, old.Round.Epoch = "n9", 6
	if err := l.Step(stranger); !errors.Is(err, round.ErrNotMember) {
		t.Errorf("stranger: %v", err)
	}
	if err := l.Step(old); !errors.Is(err, round.ErrStaleEpoch) {
		t.Errorf("old round: %v", err)
	}
	for range 3 { // doubled answers count once
		if err := l.Step(done); err != nil {
			t.Fatal(err)
		}
	}
	if l.Phase() != round.PhasePrepare {
		t.Errorf("phase %s after one member's answers, want prepare", l.Phase())
	}
	if got := string(l.Payload(round.CallPrepare, "n1")); got != "p" {
		t.Errorf("payload %q", got)
	}
}

// TestLead_AbortNeedsNoRepository aborts in every phase before the commit is
// asked for: the outcome is known once it is stored, and nothing is asked of the
// repository.
func TestLead_AbortNeedsNoRepository(t *testing.T) {
	for _, phase := range []round.Phase{round.PhasePrepare, round.PhaseCut, round.PhasePersist} {
		l := newLead(t, "n1")
		l.Begin()
		for call := round.CallPrepare; l.Phase() != phase; call++ {
			if err := l.Step(round.Reply{Call: call, Round: round.ID{Cluster: "c", Epoch: 7}, From: "n1", Result: round.ResultDone}); err != nil {
				t.Fatal(err)
			}
		}
		l.Ready()
		l.Cancel("cancelled")
		r := l.Ready()
		if r.Done == nil || r.Done.Outcome != round.Aborted || r.Decide != round.OutcomeNone {
			t.Errorf("%s: %+v, want aborted without the repository", phase, r)
		}
		if r.Persist == nil || r.Persist.Phase != round.PhaseFinish || r.Persist.Outcome != round.Aborted || r.Persist.Recorded {
			t.Errorf("%s: stored %+v, want an abort that is not recorded yet", phase, r.Persist)
		}
		// Its successor needs no repository either.
		next, err := round.RecoverLead(*r.Persist, 2, scriptBudgets)
		if err != nil {
			t.Fatal(err)
		}
		if r := next.Ready(); r.Decide != round.OutcomeNone || r.Done == nil || r.Done.Outcome != round.Aborted {
			t.Errorf("%s: successor: %+v, want aborted without the repository", phase, r)
		}
	}
}

// TestLead_RefusedCommit tells a repository that surely took nothing from one
// that may have taken an earlier request.
func TestLead_RefusedCommit(t *testing.T) {
	for _, unheard := range []bool{false, true} {
		l := newLead(t, "n1")
		l.Begin()
		for call := round.CallPrepare; l.Phase() != round.PhaseCommit; call++ {
			if err := l.Step(round.Reply{Call: call, Round: round.ID{Cluster: "c", Epoch: 7}, From: "n1", Result: round.ResultDone}); err != nil {
				t.Fatal(err)
			}
		}
		l.Ready()
		if unheard {
			l.DecideFailed("no answer")
			l.Tick()
			l.Ready()
		}
		l.DecideRefused("read-only")
		if asks := l.Ready().Decide == round.Aborted; asks != unheard {
			t.Errorf("an earlier request unheard: %t; asks the repository for an abort: %t", unheard, asks)
		}
	}
}

func TestLead_CancelBeforeBegin(t *testing.T) {
	l := newLead(t, "n1")
	l.Cancel("cancelled")
	if r := l.Ready(); r.Done == nil || r.Done.Reason != "cancelled" || r.Persist != nil || !l.Over() {
		t.Errorf("%+v, want done and nothing stored", r)
	}
}
