package round

// Rule names a guard that a test may break.
type Rule = rule

const (
	RuleCommitNeedsAll        = ruleCommitNeedsAll
	RuleAskBeforeTelling      = ruleAskBeforeTelling
	RuleNeverAssume           = ruleNeverAssume
	RuleUnheardIsDoubt        = ruleUnheardIsDoubt
	RuleFencedStops           = ruleFencedStops
	RuleCloseNeedsMarkers     = ruleCloseNeedsMarkers
	RuleCloseNeedsState       = ruleCloseNeedsState
	RuleMarkAfterStop         = ruleMarkAfterStop
	RulePauseBudget           = rulePauseBudget
	RuleFailedStaysFailed     = ruleFailedStaysFailed
	RuleEpochGrows            = ruleEpochGrows
	RuleTokenGrows            = ruleTokenGrows
	RuleJournalPersisted      = ruleJournalPersisted
	RuleResumeFirst           = ruleResumeFirst
	RulePersistedMeansDurable = rulePersistedMeansDurable
	RuleKeepCommitted         = ruleKeepCommitted
)

// Break makes l ignore a guard.
func (l *Lead) Break(r Rule) { l.broken = r }

// Break makes m ignore a guard.
func (m *Member) Break(r Rule) { m.broken = r }

// RecoverLeadTelling recovers a Lead that tells the members that the round is
// aborted before the repository has said so.
func RecoverLeadTelling(rec Record, token Token, budgets Budgets) (*Lead, error) {
	if rec.Outcome == OutcomeNone {
		rec.Phase = PhasePersist // as if nobody had asked for a commit
	}
	return RecoverLead(rec, token, budgets)
}

// RecoverMemberAsIs recovers a Member that goes on where the agent ended.
func RecoverMemberAsIs(cfg MemberConfig, j Journal) (*Member, error) {
	m, err := RecoverMember(cfg, j)
	if err == nil {
		m.phase, m.actions, m.reason = j.Phase, nil, ""
	}
	return m, err
}

// RecoverMemberIdly recovers a Member that forgets to let its guests run.
func RecoverMemberIdly(cfg MemberConfig, j Journal) (*Member, error) {
	m, err := RecoverMember(cfg, j)
	if err == nil {
		m.actions = nil
	}
	return m, err
}
