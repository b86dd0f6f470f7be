package round

import (
	"fmt"
	"slices"
	"strings"
)

// Budgets bounds the phases of a Lead, in ticks. Every field must be positive.
type Budgets struct {
	Prepare int
	Cut     int // more than any member's pause budget
	Persist int // the only one that grows with the amount of data
	Decide  int // for each of commit and abort
	Finish  int
}

// LeadConfig is what a round is made of.
type LeadConfig struct {
	Round   ID
	Token   Token
	Members []NodeID
	Options Options
	Budgets Budgets
}

// Lead is the coordinator's half of one round. It does no I/O, starts no
// goroutine and reads no clock: the same inputs give the same outputs.
//
// Inputs are Begin (or RecoverLead), Step, Decided, DecideFailed, Tick, Cancel
// and Fenced; all output comes from Ready.
//
// Concurrency: one goroutine at a time.
type Lead struct {
	cfg     LeadConfig // immutable but for its own copies
	phase   Phase
	outcome Outcome
	reason  string
	ticks   int // since the phase began

	members map[NodeID]*leadMember

	// inDoubt is set once the repository may hold a commit. From then on nobody
	// may be told "aborted" before the repository has said so. Until then the
	// stored record alone decides an abort.
	inDoubt bool
	// unheard is set when an answer of the repository was lost: what it was asked
	// for may have been done, or may still be.
	unheard     bool
	recorded    bool // the repository is known to hold the outcome
	decideAgain bool // the last answer of the repository was lost
	hurried     bool // the operator waits no longer than he must

	out LeadReady

	broken rule // tests only
}

type leadMember struct {
	heard    bool // may know of the round
	done     bool // with the call of this phase
	again    bool // the last answer was lost
	payloads map[Call][]byte
}

// Event is one line of progress.
type Event struct {
	Step  Step
	Node  NodeID // empty: the whole cluster
	Ended bool   // false: begun
	Text  string
}

// LeadResult is what the operator is told.
type LeadResult struct {
	// Outcome is OutcomeNone when the coordinator was replaced or the
	// repository did not answer: the outcome is then unknown here, and the
	// stored Record lets somebody find it out later.
	Outcome Outcome
	Reason  string
}

// LeadReady is work for the driver. See the package comment for the order.
type LeadReady struct {
	Persist *Record     // nil: nothing to store
	Decide  Outcome     // OutcomeNone: nothing to decide
	Send    []Request   // each to be answered by exactly one Step
	Events  []Event     // progress
	Done    *LeadResult // set once, when the outcome is final
}

func (r LeadReady) empty() bool {
	return r.Persist == nil && r.Decide == OutcomeNone && len(r.Send) == 0 && len(r.Events) == 0 && r.Done == nil
}

// NewLead returns a Lead that waits for Begin.
//
// Preconditions: no outcome is recorded for the epoch, and it is larger than
// that of any round begun before.
func NewLead(cfg LeadConfig) (*Lead, error) {
	members, err := checkMembers(cfg.Members)
	if err != nil {
		return nil, err
	}
	b := cfg.Budgets
	if min(b.Prepare, b.Cut, b.Persist, b.Decide, b.Finish) <= 0 {
		return nil, fmt.Errorf("budgets %+v: not all positive: %w", b, ErrInvalid)
	}
	if cfg.Round.Cluster == "" || cfg.Round.Epoch == 0 {
		return nil, fmt.Errorf("round %q: no cluster or epoch: %w", cfg.Round, ErrInvalid)
	}
	cfg.Members = members
	l := &Lead{cfg: cfg, members: make(map[NodeID]*leadMember, len(members))}
	for _, id := range members {
		l.members[id] = &leadMember{payloads: make(map[Call][]byte)}
	}
	return l, nil
}

// RecoverLead takes over a round that another coordinator began, from the
// record it stored. It never carries the round on. Where nobody can have asked
// for a commit the round is aborted by storing that; else the repository is
// asked to record "aborted", unless it says "committed" already. Then the
// members are told which of the two it is.
func RecoverLead(rec Record, token Token, budgets Budgets) (*Lead, error) {
	l, err := NewLead(LeadConfig{
		Round: rec.Round, Token: token, Members: rec.Members, Options: rec.Options, Budgets: budgets,
	})
	if err != nil {
		return nil, err
	}
	if token < rec.Token {
		return nil, fmt.Errorf("recover %s with token %d, has %d: %w", rec.Round, token, rec.Token, ErrFenced)
	}
	for _, m := range l.members {
		m.heard = true
	}
	l.reason = rec.Reason
	if rec.Outcome != OutcomeNone {
		l.end(rec.Outcome, rec.Recorded)
		return l, nil
	}
	l.inDoubt, l.unheard = rec.MayBeCommitted(), true
	reason := rec.Reason
	if reason == "" {
		reason = fmt.Sprintf("coordinator lost in phase %s", rec.Phase)
	}
	l.abort(reason)
	return l, nil
}

// Begin starts the round.
func (l *Lead) Begin() {
	if l.phase == PhaseIdle {
		l.enter(PhasePrepare)
	}
}

// Phase returns where the round stands.
func (l *Lead) Phase() Phase { return l.phase }

// Over reports whether all is done: no input has an effect any more.
func (l *Lead) Over() bool { return l.phase == PhaseOver }

// Payload returns what the member's answer to the call carried. All answers to
// Persist are there when Ready says Decide: Committed.
func (l *Lead) Payload(call Call, node NodeID) []byte {
	m, ok := l.members[node]
	if !ok {
		return nil
	}
	return m.payloads[call]
}

// HasReady reports whether Ready has work.
func (l *Lead) HasReady() bool { return !l.out.empty() }

// Ready returns the work that has come up since the last call.
func (l *Lead) Ready() LeadReady {
	r := l.out
	l.out = LeadReady{}
	return r
}

// Step takes into account how a call ended. An answer that is late, doubled
// or of another phase does no harm.
func (l *Lead) Step(r Reply) error {
	if r.Round != l.cfg.Round {
		return fmt.Errorf("reply of round %s in round %s: %w", r.Round, l.cfg.Round, ErrStaleEpoch)
	}
	m, ok := l.members[r.From]
	if !ok {
		return fmt.Errorf("reply of %s in round %s: %w", r.From, r.Round, ErrNotMember)
	}
	switch l.phase {
	case PhasePrepare, PhaseCut, PhasePersist:
		l.stepForward(m, r)
	case PhaseAbort, PhaseFinish:
		l.stepFinish(m, r)
	}
	return nil
}

// stepForward handles answers while the round can still go on.
func (l *Lead) stepForward(m *leadMember, r Reply) {
	switch r.Result {
	case ResultFailed:
		// Of whatever call: a member that failed once fails for good.
		l.abort(fmt.Sprintf("%s: %s", r.From, r.Reason))
	case ResultUnanswered:
		m.again = m.again || r.Call == l.phase.call() && !m.done
	case ResultDone:
		if r.Call != l.phase.call() || m.done {
			return
		}
		m.done, m.again = true, false
		m.payloads[r.Call] = r.Payload
		l.event(Event{Step: l.phase.lastStep(), Node: r.From, Ended: true})
		if l.allDone() || l.broken == ruleCommitNeedsAll && l.phase == PhasePersist {
			l.event(Event{Step: l.phase.lastStep(), Ended: true})
			l.enter(l.phase + 1)
		}
	}
}

// Tick tells the Lead that one tick has passed.
func (l *Lead) Tick() {
	l.ticks++
	switch l.phase {
	case PhasePrepare, PhaseCut, PhasePersist:
		if l.ticks >= l.budget() {
			l.abort(fmt.Sprintf("%s: no answer from %s in time", l.phase, l.missing()))
			return
		}
		l.sendAgain(l.phase.call())
	case PhaseCommit, PhaseAbort:
		l.tickDecide()
	case PhaseFinish:
		if l.ticks >= l.cfg.Budgets.Finish {
			l.over()
			return
		}
		l.sendAgain(CallFinish)
	}
}

// Cancel aborts the round if it can still be aborted. While the repository is
// asked for the outcome it shortens the wait for a repository that does not
// answer.
func (l *Lead) Cancel(reason string) {
	switch l.phase {
	case PhaseIdle:
		l.reason = reason
		l.done()
		l.phase = PhaseOver
	case PhasePrepare, PhaseCut, PhasePersist:
		l.abort(reason)
	case PhaseCommit, PhaseAbort:
		if !l.hurried {
			l.hurried, l.ticks = true, 0
		}
	}
}

// Fenced tells the Lead that another coordinator leads the cluster. Work not
// yet taken by Ready is dropped, and none comes any more (invariant I5).
func (l *Lead) Fenced() {
	if l.phase == PhaseOver || l.broken == ruleFencedStops {
		return
	}
	outcomeTold := l.phase == PhaseFinish && l.out.Done == nil
	if l.phase != PhaseFinish {
		l.outcome, l.reason = OutcomeNone, ErrFenced.Error()
	}
	l.out = LeadReady{}
	l.phase = PhaseOver
	if !outcomeTold {
		l.done()
	}
}

// enter begins a phase in which the round goes on.
func (l *Lead) enter(p Phase) {
	l.phase, l.ticks = p, 0
	l.persist()
	if p == PhaseCommit {
		l.inDoubt = true
		l.out.Decide = Committed
		l.event(Event{Step: StepCommit})
		return
	}
	l.event(Event{Step: p.firstStep()})
	for _, id := range l.cfg.Members {
		l.members[id].done = false
		l.send(id, p.call())
	}
}

func (l *Lead) send(to NodeID, call Call) {
	m := l.members[to]
	m.heard, m.again = true, false
	r := Request{Call: call, Round: l.cfg.Round, Token: l.cfg.Token, To: to}
	switch call {
	case CallPrepare:
		r.Members, r.Options = slices.Clone(l.cfg.Members), l.cfg.Options
	case CallFinish:
		r.Outcome = l.outcome
	}
	l.out.Send = append(l.out.Send, r)
}

// sendAgain repeats the call to those whose answer was lost.
func (l *Lead) sendAgain(call Call) {
	for _, id := range l.cfg.Members {
		if m := l.members[id]; m.again && !m.done {
			l.send(id, call)
		}
	}
}

func (l *Lead) persist() {
	l.out.Persist = &Record{
		Round: l.cfg.Round, Token: l.cfg.Token, Members: slices.Clone(l.cfg.Members),
		Options: l.cfg.Options, Phase: l.phase, Outcome: l.outcome, Reason: l.reason,
		Recorded: l.recorded,
	}
}

func (l *Lead) event(e Event) { l.out.Events = append(l.out.Events, e) }

func (l *Lead) allDone() bool { return l.missing() == "" }

// missing names the members that have not answered.
func (l *Lead) missing() string {
	var names []string
	for _, id := range l.cfg.Members {
		if !l.members[id].done {
			names = append(names, string(id))
		}
	}
	return strings.Join(names, ", ")
}

func (l *Lead) budget() int {
	switch l.phase {
	case PhasePrepare:
		return l.cfg.Budgets.Prepare
	case PhaseCut:
		return l.cfg.Budgets.Cut
	default:
		return l.cfg.Budgets.Persist
	}
}

func (p Phase) call() Call {
	switch p {
	case PhasePrepare:
		return CallPrepare
	case PhaseCut:
		return CallCut
	case PhasePersist:
		return CallPersist
	case PhaseAbort, PhaseFinish:
		return CallFinish
	default:
		return CallNone
	}
}

// firstStep and lastStep name what begins and what ends the phase.
func (p Phase) firstStep() Step {
	switch p {
	case PhasePrepare:
		return StepPrepare
	case PhaseCut:
		return StepGate
	default:
		return StepPersist
	}
}

func (p Phase) lastStep() Step {
	switch p {
	case PhasePrepare:
		return StepPrepare
	case PhaseCut:
		return StepResume
	default:
		return StepPersist
	}
}
