package round

// rule names a guard that the invariants rest on. Tests break one at a time,
// through a field that nothing else sets, to see that the checker notices.
type rule uint8

const (
	ruleNone rule = iota
	ruleCommitNeedsAll
	ruleAskBeforeTelling
	ruleNeverAssume
	ruleUnheardIsDoubt
	ruleFencedStops
	ruleCloseNeedsMarkers
	ruleCloseNeedsState
	ruleMarkAfterStop
	rulePauseBudget
	ruleFailedStaysFailed
	ruleEpochGrows
	ruleTokenGrows
	ruleJournalPersisted
	ruleResumeFirst
	rulePersistedMeansDurable
	ruleKeepCommitted
)
