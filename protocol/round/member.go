package round

import (
	"fmt"
	"slices"
	"time"
)

// MemberConfig is what does not change from round to round.
type MemberConfig struct {
	Cluster string
	Node    NodeID

	// Epoch is that of the checkpoint the guests were restored from; rounds up
	// to it are over. Zero for guests that booted.
	Epoch Epoch

	// Tick is how far the calls of Tick are apart. Pause budgets are rounded
	// down to whole ticks, so that guests run early rather than late.
	Tick time.Duration

	// SilenceTicks bounds how long a member that waits for the next call, and hears
	// nothing of the coordinator that drives the round, keeps its guests' memory protected
	// and their pre-images buffered. See SilenceBudget. Zero: for ever.
	SilenceTicks int
}

const (
	// SilenceBudget is how long a member waits to hear of its coordinator. The coordinator's
	// prepare and cut budgets must be smaller: while some members take their time, it has
	// nothing to say to the others.
	SilenceBudget = 5 * time.Minute

	// KeepAlive is how often a coordinator repeats its last call to a member that waits for
	// its turn: some of these calls may be lost.
	KeepAlive = SilenceBudget / 10
)

// Member is a node's half of the rounds of one cluster, one round after the
// other. It does no I/O, starts no goroutine and reads no clock.
//
// Inputs are Step, the events that answer its actions, MarkerFrom, Tick and
// JournalFailed; all output comes from Ready. Events of an older round, or
// ones that no longer matter, are ignored.
//
// Concurrency: one goroutine at a time.
type Member struct {
	cfg   MemberConfig // immutable
	token Token        // largest seen; only grows
	epoch Epoch        // only grows

	// Of the round of epoch:
	phase          MemberPhase
	lead           Token // of the coordinator that began the round
	members        []NodeID
	options        Options
	saved          bool
	markers        map[NodeID]bool
	ticks          int // gated and stopped, or waiting for the coordinator
	outcome        Outcome
	reason         string // of a failure
	abortAsked     bool   // Finish(aborted) came while guests were stopped
	resumeAgain    bool   // guests could not be resumed; try again
	asked          map[Call]bool
	preparePayload []byte
	cutPayload     []byte
	persistPayload []byte

	unsaved       bool // the journal lags behind
	journalBroken bool // it could not be written since the last Tick
	actions       []Action
	replies       []Reply
	handed        MemberReady // the last one with a journal

	broken rule // tests only
}

// MemberReady is work for the driver. See the package comment for the order.
type MemberReady struct {
	Journal *Journal // nil: nothing to store
	Actions []Action // in order
	Replies []Reply  // each answers every open request of its call and round
}

// NewMember returns a Member that has not heard of any round.
func NewMember(cfg MemberConfig) (*Member, error) {
	if cfg.Cluster == "" || cfg.Node == "" || cfg.Tick <= 0 || cfg.SilenceTicks < 0 {
		return nil, fmt.Errorf("member %+v: %w", cfg, ErrInvalid)
	}
	return &Member{cfg: cfg, epoch: cfg.Epoch, asked: make(map[Call]bool), markers: make(map[NodeID]bool)}, nil
}

// RecoverMember returns a Member as it was journaled before the agent ended.
// Unless the image was durable, the round has failed: the first Ready lets the
// guests run and discards the image.
func RecoverMember(cfg MemberConfig, j Journal) (*Member, error) {
	m, err := NewMember(cfg)
	if err != nil {
		return nil, err
	}
	if j.Cluster != cfg.Cluster {
		return nil, fmt.Errorf("journal of cluster %q for %q: %w", j.Cluster, cfg.Cluster, ErrNotMember)
	}
	m.token, m.lead = j.Token, j.Lead
	if j.Epoch < m.epoch {
		return m, nil // restored since; that round is over
	}
	m.epoch, m.phase, m.outcome, m.persistPayload = j.Epoch, j.Phase, j.Outcome, j.Payload
	switch m.phase {
	case MemberIdle, MemberPersisted, MemberFinished:
	default:
		m.phase = MemberFailing
		m.reason = "agent restarted"
		m.act(ResumeGuests)
		m.act(DiscardImage)
	}
	return m, nil
}

// Phase returns where the member stands.
func (m *Member) Phase() MemberPhase { return m.phase }

// Epoch returns the epoch of the last round the member has heard of.
func (m *Member) Epoch() Epoch { return m.epoch }

// Reason returns why the round failed here; empty if it did not.
func (m *Member) Reason() string { return m.reason }

// HasReady reports whether Ready has work.
func (m *Member) HasReady() bool {
	if m.journalBroken {
		return m.urgent()
	}
	return len(m.actions) > 0 || len(m.replies) > 0 || m.journalDue()
}

// Ready returns the work that has come up since the last call. No journal comes
// while guests stand still, and none with the order to resume them: that must
// not wait for a disk (invariant I12). Call Ready until HasReady says no.
func (m *Member) Ready() MemberReady {
	if m.journalBroken && !m.urgent() {
		return MemberReady{}
	}
	r := MemberReady{Actions: m.actions}
	m.actions = nil
	if slices.ContainsFunc(r.Actions, isResume) && m.broken != ruleResumeFirst {
		return r
	}
	r.Replies, m.replies = m.replies, nil
	if m.journalDue() {
		j := m.Journal()
		r.Journal, m.unsaved = &j, false
		m.handed = r
	}
	return r
}

func (m *Member) journalDue() bool {
	return m.unsaved && (!m.holdsGuests() || m.broken == ruleResumeFirst)
}

// urgent reports whether guests are to be resumed.
func (m *Member) urgent() bool { return slices.ContainsFunc(m.actions, isResume) }

func isResume(a Action) bool { return a.Kind == ResumeGuests }

// Journal returns what must be known after a restart now.
func (m *Member) Journal() Journal {
	return Journal{
		Cluster: m.cfg.Cluster, Token: m.token, Epoch: m.epoch, Lead: m.lead,
		Phase: m.phase, Outcome: m.outcome, Payload: m.persistPayload,
	}
}

// JournalFailed tells that the journal of the last Ready could not be made
// durable, and that the driver has therefore done nothing of that Ready. After
// the next Tick a Ready asks for all of it again; until then only work that
// lets guests run comes.
func (m *Member) JournalFailed() {
	m.actions = append(m.handed.Actions, m.actions...)
	m.replies = append(m.handed.Replies, m.replies...)
	m.handed = MemberReady{}
	m.unsaved, m.journalBroken = true, true
}

// Fence checks the token of a call that is not part of a round, such as one
// that creates or ends guests, and remembers it if it is the largest so far.
// The driver does what Ready says before it acts on the call.
//
// On error: ErrFenced, and the call must be refused.
func (m *Member) Fence(t Token) error {
	if t < m.token {
		return fmt.Errorf("token %d, have seen %d: %w", t, m.token, ErrFenced)
	}
	if t > m.token {
		m.token, m.unsaved = t, true
	}
	return nil
}

// Step takes a request of the coordinator into account. The answer comes from
// Ready, perhaps much later.
//
// On error: the request is refused and no answer comes. Only ErrBusy is worth
// asking again: the member has begun to leave the older round it is in.
func (m *Member) Step(r Request) error {
	if err := m.step(r); err != nil {
		return fmt.Errorf("%s at %s in round %d (%s): %w", r, m.cfg.Node, m.epoch, m.phase, err)
	}
	return nil
}

func (m *Member) step(r Request) error {
	switch {
	case r.Round.Cluster != m.cfg.Cluster || r.To != m.cfg.Node:
		return ErrNotMember
	case r.Token < m.token && m.broken != ruleTokenGrows:
		return ErrFenced
	case r.Round.Epoch < m.epoch && m.broken != ruleEpochGrows:
		return ErrStaleEpoch
	}
	switch r.Call {
	case CallPrepare:
		return m.stepPrepare(r)
	case CallCut:
		return m.stepCut(r)
	case CallPersist:
		return m.stepPersist(r)
	case CallFinish:
		return m.stepFinish(r)
	default:
		return ErrInvalid
	}
}

// Tick tells the Member that one tick has passed. It must not wait for actions
// in progress.
func (m *Member) Tick() {
	m.journalBroken = false
	switch m.phase {
	case MemberCutting, MemberStopped, MemberClosed:
		m.ticks++
		if budget := m.options.CutBudget(); m.ticks >= int(budget/m.cfg.Tick) && m.broken != rulePauseBudget {
			name := "pause budget"
			if m.options.Cut == CutColoured {
				name = "pause and skew budget"
			}
			m.fail(fmt.Sprintf("%s of %s ended in phase %s%s", name, budget, m.phase, m.unmarked()))
		}
	case MemberFailing:
		if m.resumeAgain {
			m.resumeAgain = false
			m.act(ResumeGuests)
		}
	case MemberPrepared, MemberResumed:
		m.ticks++
		if m.cfg.SilenceTicks > 0 && m.ticks >= m.cfg.SilenceTicks {
			m.fail("coordinator is silent")
		}
	}
}

// fail gives the round up: guests that may be gated or stopped run again, and
// whoever waits for an answer gets it. The outcome can only be "aborted" now,
// because this member never answers Done to what it was asked (invariant I10).
func (m *Member) fail(reason string) {
	m.act(Abandon)
	if m.holdsGuests() {
		m.phase = MemberFailing
		m.act(ResumeGuests)
	} else {
		m.phase = MemberFailed
	}
	m.reason, m.resumeAgain = reason, false
	m.act(DiscardImage)
	m.replyFailed()
}

// holdsGuests reports whether a guest may be gated or stopped, or frames to it wait
// for its cut.
func (m *Member) holdsGuests() bool {
	switch m.phase {
	case MemberCutting, MemberStopped, MemberClosed, MemberFailing:
		return true
	default:
		return false
	}
}

func (m *Member) round() ID { return ID{Cluster: m.cfg.Cluster, Epoch: m.epoch} }

func (m *Member) act(kind ActionKind) {
	a := Action{Kind: kind, Round: m.round()}
	switch kind {
	case PrepareGuests:
		a.Members, a.Options = slices.Clone(m.members), m.options
	case CutGuests, RecordChannels:
		a.Options = m.options
	case SendMarkers:
		a.Members = slices.DeleteFunc(slices.Clone(m.members), func(id NodeID) bool { return id == m.cfg.Node })
	}
	m.actions = append(m.actions, a)
}

// replyDone answers a call that was asked for.
func (m *Member) replyDone(call Call, payload []byte) {
	if m.asked[call] {
		delete(m.asked, call)
		m.replies = append(m.replies, Reply{
			Call: call, Round: m.round(), From: m.cfg.Node, Result: ResultDone, Payload: payload,
		})
	}
}

// replyFailed answers every open call but Finish.
func (m *Member) replyFailed() {
	for call := CallPrepare; call <= CallPersist; call++ {
		if m.asked[call] {
			delete(m.asked, call)
			m.replies = append(m.replies, Reply{
				Call: call, Round: m.round(), From: m.cfg.Node, Result: ResultFailed, Reason: m.reason,
			})
		}
	}
}
