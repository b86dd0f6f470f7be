package round

// abort gives the round up. Where nobody can have asked for a commit it is
// decided as soon as it is stored, whatever the repository does: a coordinator
// stores that it will ask before it asks, and is refused once this is stored.
// Otherwise the repository has to speak first.
func (l *Lead) abort(reason string) {
	l.reason, l.decideAgain = reason, false
	l.out.Send = nil // calls of the phase that is over
	l.event(Event{Step: StepAbort, Text: reason})
	if !l.inDoubt || l.broken == ruleAskBeforeTelling {
		l.end(Aborted, false)
		return
	}
	l.phase, l.ticks = PhaseAbort, 0
	l.persist()
	l.out.Decide = Aborted
}

// end begins to tell the members the outcome, which is final once this is stored.
func (l *Lead) end(o Outcome, recorded bool) {
	step := StepCommit
	if o == Aborted {
		step = StepAbort
	} else {
		l.reason = ""
	}
	l.outcome, l.recorded = o, recorded
	l.phase, l.ticks = PhaseFinish, 0
	l.persist()
	l.event(Event{Step: step, Ended: true})
	l.event(Event{Step: StepFinish})
	l.done()
	for _, m := range l.members {
		m.done, m.again = !m.heard, false
	}
	l.tellAll()
	l.endIfAllTold()
}

// tellAll sends Finish to every member that may know of the round.
func (l *Lead) tellAll() {
	for _, id := range l.cfg.Members {
		if !l.members[id].done {
			l.send(id, CallFinish)
		}
	}
}

// Decided tells the Lead which outcome the repository holds for the epoch. It
// may be the opposite of what was asked for: then somebody else was first.
func (l *Lead) Decided(o Outcome) {
	if l.phase != PhaseCommit && l.phase != PhaseAbort || o == OutcomeNone {
		return
	}
	if o == Aborted && l.phase == PhaseCommit {
		l.reason = "aborted by another coordinator"
	}
	l.end(o, true)
}

// DecideFailed tells the Lead that the repository gave no outcome: the record
// was not written, or it is not known whether it was. It is asked again at the
// next tick.
func (l *Lead) DecideFailed(reason string) {
	switch l.phase {
	case PhaseCommit:
		if l.broken == ruleNeverAssume {
			l.Decided(Aborted)
			return
		}
		l.unheard, l.decideAgain = true, true
	case PhaseAbort:
		l.decideAgain = true
	default:
		return
	}
	l.event(Event{Step: l.decideStep(), Text: reason})
}

// DecideRefused tells the Lead that the repository cannot take the record, as
// when it is full or read-only, and that nothing was written of it nor will be.
// A commit is given up at once. If every earlier request was answered, too,
// nobody has asked for a commit that could still be made, and the stored record
// decides.
func (l *Lead) DecideRefused(reason string) {
	if l.phase == PhaseCommit {
		l.inDoubt = l.unheard && l.broken != ruleUnheardIsDoubt
		l.abort(reason)
		return
	}
	l.DecideFailed(reason)
}

func (l *Lead) decideStep() Step {
	if l.phase == PhaseCommit {
		return StepCommit
	}
	return StepAbort
}

func (l *Lead) tickDecide() {
	if l.ticks >= l.decideBudget() {
		if l.phase == PhaseCommit {
			// Safe even if the commit was written: then the repository says so.
			l.abort("the repository did not record the commit in time")
			return
		}
		l.reason = "the repository did not answer: " + l.reason
		l.done()
		l.over() // the round is set aside, and its outcome found out later
		return
	}
	if l.decideAgain {
		l.decideAgain = false
		if l.phase == PhaseCommit {
			l.out.Decide = Committed
		} else {
			l.out.Decide = Aborted
		}
	}
}

// decideBudget is how long the repository may be silent in this phase.
func (l *Lead) decideBudget() int {
	if l.hurried {
		return min(l.cfg.Budgets.Decide, l.cfg.Budgets.Finish)
	}
	return l.cfg.Budgets.Decide
}

// stepFinish handles the acknowledgements of the outcome.
func (l *Lead) stepFinish(m *leadMember, r Reply) {
	if r.Call != CallFinish || m.done {
		return
	}
	switch r.Result {
	case ResultUnanswered:
		m.again = true
		return
	case ResultDone, ResultFailed:
		// Who refuses has gone on to another round or coordinator, and needs no
		// word of this one.
		m.done, m.again = true, false
		l.event(Event{Step: StepFinish, Node: r.From, Ended: true, Text: r.Reason})
	}
	l.endIfAllTold()
}

func (l *Lead) endIfAllTold() {
	if l.phase == PhaseFinish && l.allDone() {
		l.event(Event{Step: StepFinish, Ended: true})
		l.over()
	}
}

func (l *Lead) over() {
	l.phase = PhaseOver
	l.persist()
}

func (l *Lead) done() {
	l.out.Done = &LeadResult{Outcome: l.outcome, Reason: l.reason}
}
