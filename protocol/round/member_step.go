package round

import (
	"fmt"
	"slices"
)

func (m *Member) stepPrepare(r Request) error {
	if r.Round.Epoch == m.epoch {
		if m.phase == MemberIdle {
			return ErrStaleEpoch // the guests were restored from this epoch
		}
		if r.Token != m.lead {
			return ErrFenced // an epoch has one coordinator that drives it
		}
		m.asked[CallPrepare] = true
		if m.phase != MemberPreparing {
			m.repeat(CallPrepare, m.preparePayload)
		}
		return nil
	}
	members, err := checkMembers(r.Members)
	if err != nil {
		return err
	}
	if !slices.Contains(members, m.cfg.Node) {
		return ErrNotMember
	}
	if r.Options.PauseBudget < m.cfg.Tick {
		return fmt.Errorf("pause budget %s is less than a tick of %s: %w", r.Options.PauseBudget, m.cfg.Tick, ErrInvalid)
	}
	if err := r.Options.Check(); err != nil {
		return fmt.Errorf("%w: %w", err, ErrInvalid)
	}
	if err := m.leave(r.Round.Epoch); err != nil {
		return err
	}
	m.begin(r, MemberPreparing)
	m.members, m.options = members, r.Options
	m.asked[CallPrepare] = true
	m.act(PrepareGuests)
	return nil
}

func (m *Member) stepCut(r Request) error {
	if err := m.checkForward(r); err != nil {
		return err
	}
	switch m.phase {
	case MemberPreparing:
		return ErrOutOfOrder
	case MemberPrepared:
		m.phase, m.ticks = MemberCutting, 0
		if m.broken == ruleMarkAfterStop {
			m.act(SendMarkers)
		}
		if m.options.Cut == CutColoured {
			m.act(CutGuests)
		} else {
			m.act(GateAndDrain)
			m.act(StopGuests)
		}
		m.asked[CallCut] = true
	case MemberCutting, MemberStopped, MemberClosed:
		m.asked[CallCut] = true
	default:
		if m.phase == MemberResumed {
			m.ticks = 0 // the coordinator is there; it is not this member's turn to write
		}
		m.asked[CallCut] = true
		m.repeat(CallCut, m.cutPayload)
	}
	return nil
}

func (m *Member) stepPersist(r Request) error {
	if err := m.checkForward(r); err != nil {
		return err
	}
	switch m.phase {
	case MemberPreparing, MemberPrepared, MemberCutting, MemberStopped, MemberClosed:
		return ErrOutOfOrder
	case MemberResumed:
		m.phase = MemberPersisting
		m.act(StartPersist)
		m.asked[CallPersist] = true
		if m.broken == rulePersistedMeansDurable {
			m.replyDone(CallPersist, nil)
		}
	case MemberPersisting:
		m.asked[CallPersist] = true
	default:
		m.asked[CallPersist] = true
		m.repeat(CallPersist, m.persistPayload)
	}
	return nil
}

// checkForward refuses calls that drive a round on and come from anybody but
// the coordinator that began it.
func (m *Member) checkForward(r Request) error {
	if r.Round.Epoch > m.epoch || m.phase == MemberIdle {
		return ErrOutOfOrder
	}
	if r.Token != m.lead && m.broken != ruleTokenGrows {
		return ErrFenced
	}
	return nil
}

// repeat answers a call whose work is behind us, well or not.
func (m *Member) repeat(call Call, payload []byte) {
	switch {
	case m.phase == MemberFailing, m.phase == MemberFailed:
		if m.broken == ruleFailedStaysFailed {
			m.replyDone(call, payload)
			return
		}
		m.replyFailed()
	case m.phase == MemberFinished && m.outcome != Committed:
		m.reason = "round was aborted"
		m.replyFailed()
	default:
		m.replyDone(call, payload)
	}
}

func (m *Member) stepFinish(r Request) error {
	if r.Outcome != Committed && r.Outcome != Aborted {
		return ErrInvalid
	}
	if r.Round.Epoch > m.epoch {
		// Never heard of the round; remember that it is over, for a Prepare
		// that is still under way.
		if err := m.leave(r.Round.Epoch); err != nil {
			return err
		}
		m.begin(r, MemberFinished)
		m.outcome = r.Outcome
		m.asked[CallFinish] = true
		m.replyDone(CallFinish, nil)
		return nil
	}
	switch {
	case m.phase == MemberIdle:
		return ErrStaleEpoch
	case m.phase == MemberFinished && m.outcome != r.Outcome:
		return ErrContradiction
	case m.phase != MemberFinished && r.Outcome == Committed && m.phase != MemberPersisted:
		return ErrContradiction
	}
	if r.Token > m.token {
		m.token, m.unsaved = r.Token, true
	}
	m.asked[CallFinish] = true
	switch {
	case m.phase == MemberFinished:
		m.replyDone(CallFinish, nil)
	case r.Outcome == Committed:
		if m.broken == ruleKeepCommitted {
			m.act(DiscardImage)
		} else {
			m.act(KeepImage)
		}
		m.finish(Committed)
	case m.phase == MemberFailing:
		m.abortAsked = true
	case m.holdsGuests():
		m.abortAsked = true
		m.fail("aborted by the coordinator")
	default:
		if m.phase != MemberFailed {
			m.fail("aborted by the coordinator")
		}
		m.finish(Aborted)
	}
	return nil
}

// finish remembers the outcome for good and answers.
func (m *Member) finish(o Outcome) {
	m.phase, m.outcome, m.unsaved = MemberFinished, o, true
	m.persistPayload = nil
	m.replyDone(CallFinish, nil)
}

// leave gives up a round that is not finished, because a newer one exists.
// The newer one is proof that this one has an outcome, but not which.
func (m *Member) leave(newer Epoch) error {
	reason := fmt.Sprintf("round %d has begun", newer)
	switch m.phase {
	case MemberIdle, MemberFinished, MemberFailed:
	case MemberFailing:
		return ErrBusy
	case MemberCutting, MemberStopped, MemberClosed:
		m.fail(reason)
		return ErrBusy
	case MemberPersisted:
		m.act(ForgetImage)
	default:
		m.fail(reason)
	}
	return nil
}

// begin starts the life of a newer epoch.
func (m *Member) begin(r Request, phase MemberPhase) {
	m.token, m.lead, m.epoch = max(m.token, r.Token), r.Token, r.Round.Epoch
	m.phase, m.outcome, m.reason = phase, OutcomeNone, ""
	m.members, m.options = nil, Options{}
	m.saved, m.abortAsked, m.resumeAgain, m.ticks = false, false, false, 0
	m.preparePayload, m.cutPayload, m.persistPayload = nil, nil, nil
	clear(m.markers)
	clear(m.asked)
	m.unsaved = true
}
