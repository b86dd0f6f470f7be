package round

import "strings"

// GuestsPrepared answers PrepareGuests; payload goes into the answer to Prepare.
func (m *Member) GuestsPrepared(e Epoch, payload []byte) {
	if e != m.epoch || m.phase != MemberPreparing {
		return
	}
	m.phase, m.ticks = MemberPrepared, 0
	m.preparePayload = payload
	m.replyDone(CallPrepare, payload)
}

// GuestsStopped answers StopGuests: every guest stands still, and every frame
// it sent has been taken in.
func (m *Member) GuestsStopped(e Epoch) {
	if e != m.epoch || m.phase != MemberCutting {
		return
	}
	m.phase = MemberStopped
	if m.broken != ruleMarkAfterStop {
		m.act(SendMarkers)
	}
	m.act(SaveState)
	m.closeIfComplete()
}

// GuestsCut answers CutGuests: every guest has been cut on its own and runs again.
func (m *Member) GuestsCut(e Epoch) {
	if e != m.epoch || m.phase != MemberCutting {
		return
	}
	m.phase, m.saved = MemberStopped, true
	if m.broken != ruleMarkAfterStop {
		m.act(SendMarkers)
	}
	m.closeIfComplete()
}

// StateSaved answers SaveState.
func (m *Member) StateSaved(e Epoch) {
	if e != m.epoch || m.phase != MemberStopped {
		return
	}
	m.saved = true
	m.closeIfComplete()
}

// MarkerFrom tells that the node's marker for the epoch has come, so that no
// frame its guests sent before their cut will follow. Markers may come before
// the request to cut.
func (m *Member) MarkerFrom(e Epoch, node NodeID) {
	if e != m.epoch || m.phase > MemberStopped {
		return
	}
	m.markers[node] = true
	m.closeIfComplete()
}

// closeIfComplete lets the guests run when the image is whole: state saved, and
// a marker from every other member. In a barrier cut the markers are also the
// barrier: they prove that every guest of the cluster has stopped (invariant I9).
// In a coloured cut the guests run already.
func (m *Member) closeIfComplete() {
	if m.phase != MemberStopped {
		return
	}
	if !m.saved && m.broken != ruleCloseNeedsState {
		return
	}
	if m.unmarked() != "" && m.broken != ruleCloseNeedsMarkers {
		return
	}
	m.phase = MemberClosed
	m.act(RecordChannels)
	m.act(ResumeGuests)
}

// unmarked names the members whose marker is missing, as part of a sentence.
func (m *Member) unmarked() string {
	var names []string
	for _, id := range m.members {
		if id != m.cfg.Node && !m.markers[id] {
			names = append(names, string(id))
		}
	}
	if len(names) == 0 {
		return ""
	}
	return ", no marker from " + strings.Join(names, ", ")
}

// GuestsResumed answers ResumeGuests: every guest runs and its gates are open.
// The payload goes into the answer to Cut.
func (m *Member) GuestsResumed(e Epoch, payload []byte) {
	if e != m.epoch {
		return
	}
	switch m.phase {
	case MemberClosed:
		m.phase, m.ticks = MemberResumed, 0
		m.cutPayload = payload
		m.replyDone(CallCut, payload)
	case MemberFailing:
		m.phase = MemberFailed
		if m.abortAsked {
			m.finish(Aborted)
		}
	}
}

// PersistDone answers StartPersist: the image is durable in the repository.
// The payload goes into the journal and into the answer to Persist.
func (m *Member) PersistDone(e Epoch, payload []byte) {
	if e != m.epoch || m.phase != MemberPersisting {
		return
	}
	m.phase = MemberPersisted
	m.persistPayload = payload
	m.unsaved = m.broken != ruleJournalPersisted
	m.replyDone(CallPersist, payload)
}

// StepFailed tells that an action could not be done, or that something the
// round rests on was lost (a link between nodes, a guest, the capture).
func (m *Member) StepFailed(e Epoch, step Step, reason string) {
	if e != m.epoch {
		return
	}
	switch m.phase {
	case MemberPreparing, MemberPrepared, MemberCutting, MemberStopped, MemberClosed, MemberResumed, MemberPersisting:
		m.fail(string(step) + ": " + reason)
	case MemberFailing:
		m.resumeAgain = m.resumeAgain || step == StepResume
	}
}
