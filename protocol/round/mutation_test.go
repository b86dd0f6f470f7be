//go:build !race

// The simulator has one goroutine and nothing for the race detector to watch,
// but becomes thirty times slower under it.

package round_test

import (
	"slices"
	"strings"
	"testing"

	"fermata/protocol/round"
	"fermata/protocol/round/roundsim"
)

// TestChecker_NoticesBrokenRules breaks one guard at a time and expects the
// simulator's checker to notice: an invariant that no defect can breach is not
// being checked.
func TestChecker_NoticesBrokenRules(t *testing.T) {
	lead := func(r round.Rule) func(*roundsim.Config) {
		return func(c *roundsim.Config) { c.OnLead = func(l *round.Lead) { l.Break(r) } }
	}
	member := func(r round.Rule) func(*roundsim.Config) {
		return func(c *roundsim.Config) { c.OnMember = func(m *round.Member) { m.Break(r) } }
	}
	for _, tc := range []struct {
		name string
		do   func(*roundsim.Config)
		want []string // invariants, any of which may notice first
	}{
		{"commit when one member has persisted", lead(round.RuleCommitNeedsAll), []string{"I7"}},
		{"give up a commit without asking for it", lead(round.RuleAskBeforeTelling), []string{"I1", "I3"}},
		{"take over and abort without asking",
			func(c *roundsim.Config) { c.RecoverLead = round.RecoverLeadTelling }, []string{"I1", "I3", "I7"}},
		{"take a refused commit for an abort after a lost one", lead(round.RuleUnheardIsDoubt), []string{"I1", "I3", "I7"}},
		{"take a lost commit for an abort", lead(round.RuleNeverAssume), []string{"I1"}},
		{"go on after being fenced", lead(round.RuleFencedStops), []string{"I5"}},
		{"resume before all markers", member(round.RuleCloseNeedsMarkers), []string{"I9", "I11"}},
		{"resume before the state is saved", member(round.RuleCloseNeedsState), []string{"I10"}},
		{"send markers before the guests have stopped", member(round.RuleMarkAfterStop), []string{"I8"}},
		{"wait for markers for ever", member(round.RulePauseBudget), []string{"I6"}},
		{"report a cut that failed as done", member(round.RuleFailedStaysFailed), []string{"I2", "I7", "I10"}},
		{"go back to an older epoch", member(round.RuleEpochGrows), []string{"I1", "I4"}},
		{"obey a coordinator that was replaced", member(round.RuleTokenGrows), []string{"I5"}},
		{"report an image before it is journaled", member(round.RuleJournalPersisted), []string{"I2"}},
		{"write the journal before guests are resumed", member(round.RuleResumeFirst), []string{"I12"}},
		{"report an image before it is durable", member(round.RulePersistedMeansDurable), []string{"I2", "I7"}},
		{"discard a committed image", member(round.RuleKeepCommitted), []string{"I3"}},
		{"go on after a restart as if nothing was lost",
			func(c *roundsim.Config) { c.RecoverMember = round.RecoverMemberAsIs }, []string{"I6", "I10", "I12"}},
		{"leave guests stopped after a restart",
			func(c *roundsim.Config) { c.RecoverMember = round.RecoverMemberIdly }, []string{"I6"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			const schedules = 1500
			for seed := range uint64(schedules) {
				cfg := roundsim.Storm(seed + 1)
				tc.do(&cfg)
				_, err := roundsim.Run(cfg)
				if err == nil {
					continue
				}
				if !slices.ContainsFunc(tc.want, func(i string) bool { return strings.Contains(err.Error(), ": "+i+":") }) {
					t.Fatalf("noticed as something else than %v: %v", tc.want, err)
				}
				t.Logf("noticed with seed %d: %s", seed+1, strings.SplitN(err.Error(), "\n", 2)[0])
				return
			}
			t.Errorf("not noticed in %d schedules", schedules)
		})
	}
}
