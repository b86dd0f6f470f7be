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

// TestLead_ReusedEpoch is a repository that holds a commit this round cannot
// have made: etcd was lost, and epochs begin anew.
func TestLead_ReusedEpoch(t *testing.T) {
	l := newLead(t, "n1")
	l.Begin()
	l.Cancel("cancelled")
	l.Ready()
	if err := l.Decided(round.Committed); !errors.Is(err, round.ErrContradiction) {
		t.Errorf("%v, want ErrContradiction", err)
	}
	if r := l.Ready(); r.Done == nil || r.Done.Outcome != round.OutcomeNone || !l.Over() {
		t.Errorf("%+v, want done without an outcome", r)
	}
}

func TestLead_CancelBeforeBegin(t *testing.T) {
	l := newLead(t, "n1")
	l.Cancel("cancelled")
	if r := l.Ready(); r.Done == nil || r.Done.Reason != "cancelled" || r.Persist != nil || !l.Over() {
		t.Errorf("%+v, want done and nothing stored", r)
	}
}
