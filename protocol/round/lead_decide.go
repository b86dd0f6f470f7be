package round

import "fmt"

// abort begins to give the round up. Members are told at once if nobody can
// have asked for a commit; otherwise only when the repository has spoken.
func (l *Lead) abort(reason string) {
	l.phase, l.ticks, l.reason, l.decideAgain = PhaseAbort, 0, reason, false
	l.out.Send = nil // calls of the phase that is over
	l.persist()
	l.out.Decide = Aborted
	l.event(Event{Step: StepAbort, Text: reason})
	for _, m := range l.members {
		m.done, m.again = !m.heard, false
	}
	if !l.askedCommit && !l.inherited || l.broken == ruleAskBeforeTelling {
		l.tellAll(Aborted)
	}
}

// tellAll sends Finish to every member that may know of the round and has not
// acknowledged it.
func (l *Lead) tellAll(o Outcome) {
	l.told = o
	for _, id := range l.cfg.Members {
		if !l.members[id].done {
			l.send(id, CallFinish)
		}
	}
}

// Decided tells the Lead which outcome the repository holds for the epoch. It
// may be the opposite of what was asked for: then another coordinator was first.
//
// On error: ErrContradiction when the repository holds a commit that this
// round cannot have made, as it told its members to abort. The epoch has been
// used before; the operator must look.
func (l *Lead) Decided(o Outcome) error {
	if l.phase != PhaseCommit && l.phase != PhaseAbort || o == OutcomeNone {
		return nil
	}
	if o == Committed && !l.askedCommit && !l.inherited {
		l.reason = ErrContradiction.Error()
		l.done()
		l.phase = PhaseOver
		return fmt.Errorf("round %s aborts, repository says committed: %w", l.cfg.Round, ErrContradiction)
	}
	if o == Aborted && l.phase == PhaseCommit {
		l.reason = "aborted by another coordinator"
	}
	step := StepCommit
	if o == Aborted {
		step = StepAbort
	} else {
		l.reason = ""
	}
	l.outcome = o
	l.phase, l.ticks = PhaseFinish, 0
	l.persist()
	l.event(Event{Step: step, Ended: true})
	l.event(Event{Step: StepFinish})
	l.done()
	if l.told != o {
		for _, m := range l.members {
			m.done = !m.heard
		}
		l.tellAll(o)
	}
	l.endIfAllTold()
	return nil
}

// DecideFailed tells the Lead that the repository gave no outcome: the record
// was not written, or it is not known whether it was. It is asked again at the
// next tick.
func (l *Lead) DecideFailed(reason string) {
	switch l.phase {
	case PhaseCommit:
		if l.broken == ruleNeverAssume {
			_ = l.Decided(Aborted)
			return
		}
		l.decideAgain = true
	case PhaseAbort:
		l.decideAgain = true
	default:
		return
	}
	l.event(Event{Step: l.decideStep(), Text: reason})
}

// DecideRefused tells the Lead that the repository cannot take the record, as
// when it is full. A commit is given up at once: an abort is asked for instead,
// which is safe even if the caller errs, as the repository holds one outcome.
func (l *Lead) DecideRefused(reason string) {
	if l.phase == PhaseCommit {
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
	if l.ticks >= l.cfg.Budgets.Decide {
		if l.phase == PhaseCommit {
			// Safe even if the commit was written: then the repository says so.
			l.abort("the repository did not record the commit in time")
			return
		}
		l.reason = "the repository did not answer: " + l.reason
		l.done()
		l.phase = PhaseOver // the stored record stays for a successor
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
	if l.told != OutcomeNone {
		l.sendAgain(CallFinish)
	}
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
