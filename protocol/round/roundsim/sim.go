// Package roundsim runs checkpoint rounds in a simulated cluster: coordinators
// that replace each other, node agents, guests that exchange frames, a network
// that loses, doubles and reorders calls, processes that crash between any two
// steps, an etcd and a repository. The round's logic is not simulated: it is the
// very code of package round, driven as its documentation demands.
//
// A run is determined by its Config. After every step a Checker compares the
// world with the numbered invariants of PROTOCOL.md; the first breach ends the
// run.
package roundsim

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"strings"

	"fermata/protocol/round"
)

// Config determines a run. Chances are per mille.
type Config struct {
	Seed         uint64
	Nodes        int
	Coordinators int
	Rounds       int // to begin, at most; also ends the chaos
	Chaos        Time

	CallLoss, CallDouble    int // per message
	LinkBreak               int // per frame or marker between nodes
	MemberCrash, LeadCrash  int // per time unit, for one of them
	Election, Cancellation  int // per time unit
	StepFailure             int // per action
	StoreLoss, JournalBreak int // per write: answer lost; not written
	SlowStep                int // per action: takes longer than the pause budget

	// ForgetChannels leaves held frames out of the image: the control that
	// shows that the check of consistency can fail.
	ForgetChannels bool
	// DeliverEarly takes the colour rule out, and the check of it: the control that
	// shows that a cut without it is found out.
	DeliverEarly bool

	// Tests that break the logic on purpose see every Lead and Member here
	// before it is used, and substitute the two that recover.
	OnLead        func(*round.Lead)
	OnMember      func(*round.Member)
	RecoverLead   func(round.Record, round.Token, round.Budgets) (*round.Lead, error)
	RecoverMember func(round.MemberConfig, round.Journal) (*round.Member, error)
}

// Storm returns a Config in which everything goes wrong now and then, derived
// from the seed.
func Storm(seed uint64) Config {
	rng := rand.New(rand.NewPCG(seed, 1))
	some := func(most int) int { // often none at all, so that each ill is also met alone
		if rng.IntN(2) == 0 {
			return 0
		}
		return rng.IntN(most + 1)
	}
	return Config{
		Seed: seed, Nodes: 1 + rng.IntN(4), Coordinators: 1 + rng.IntN(3), Rounds: 2 + rng.IntN(4), Chaos: 3000,
		CallLoss: some(200), CallDouble: some(200), LinkBreak: some(15),
		MemberCrash: some(8), LeadCrash: some(6), Election: some(6), Cancellation: some(4),
		StepFailure: some(30), StoreLoss: some(700), JournalBreak: some(200), SlowStep: some(30),
	}
}

// Calm returns a Config in which nothing goes wrong.
func Calm(seed uint64, nodes int) Config {
	return Config{Seed: seed, Nodes: nodes, Coordinators: 1, Rounds: 3, Chaos: 3000}
}

// Time is simulated time.
type Time int64

// The lengths of things. A tick is longer than most steps, as in life; a pause
// budget leaves room for a cut without mishap.
const (
	tick         Time = 10
	pauseTicks        = 12
	skewTicks         = 15
	patience     Time = 60 // shorter than in life, so that it ends now and then
	silenceTicks      = 200
	callTimeout  Time = 60
	restartAfter Time = 50
	healedFor    Time = 60000 // bound for the end of every round once all is well
)

var budgets = round.Budgets{Prepare: 30, Cut: 40, Persist: 60, Decide: 30, Finish: 30}

// Stats counts what happened in a run, so that a test can see that the storm
// was one.
type Stats struct {
	Steps, Committed, Aborted, Undecided, Recovered, Fenced     int
	SelfResumed, MemberCrashes, LeadCrashes, Refused, Contended int
	FramesRecorded, JournalBreaks, BarrierCuts, CommitsFollowed int
	ColouredCuts, EarlyFrames, Orphans                          int
	AbortsStored, SettledCommits, SettledAborts                 int
}

// Add adds o to s.
func (s *Stats) Add(o Stats) {
	s.Steps += o.Steps
	s.Committed += o.Committed
	s.Aborted += o.Aborted
	s.Undecided += o.Undecided
	s.Recovered += o.Recovered
	s.Fenced += o.Fenced
	s.SelfResumed += o.SelfResumed
	s.MemberCrashes += o.MemberCrashes
	s.LeadCrashes += o.LeadCrashes
	s.Refused += o.Refused
	s.Contended += o.Contended
	s.FramesRecorded += o.FramesRecorded
	s.JournalBreaks += o.JournalBreaks
	s.BarrierCuts += o.BarrierCuts
	s.CommitsFollowed += o.CommitsFollowed
	s.ColouredCuts += o.ColouredCuts
	s.EarlyFrames += o.EarlyFrames
	s.Orphans += o.Orphans
	s.AbortsStored += o.AbortsStored
	s.SettledCommits += o.SettledCommits
	s.SettledAborts += o.SettledAborts
}

// Run runs one schedule. The error is the first breach of an invariant, with
// the end of the log.
func Run(cfg Config) (Stats, error) {
	w := newWorld(cfg)
	for w.err == nil && w.step() {
	}
	if w.err == nil {
		w.checkEnd()
	}
	if w.err != nil {
		return w.stats, fmt.Errorf("seed %d, time %d: %w\n%s", cfg.Seed, w.now, w.err, w.tail())
	}
	return w.stats, nil
}

type world struct {
	cfg   Config
	rng   *rand.Rand
	now   Time
	queue happenings
	seq   int
	calm  bool // the chaos is over
	err   error
	log   []string
	stats Stats

	names []round.NodeID
	nodes map[round.NodeID]*node
	leads []*coordinator
	links map[linkID]*link
	etcd  etcd
	repo  repository
	check *Checker
}

func newWorld(cfg Config) *world {
	if cfg.RecoverLead == nil {
		cfg.RecoverLead = round.RecoverLead
	}
	if cfg.RecoverMember == nil {
		cfg.RecoverMember = round.RecoverMember
	}
	w := &world{
		cfg: cfg, rng: rand.New(rand.NewPCG(cfg.Seed, 2)),
		nodes: make(map[round.NodeID]*node), links: make(map[linkID]*link),
		repo: repository{outcomes: make(map[round.Epoch]round.Outcome)}, check: NewChecker(),
	}
	w.etcd.w = w
	for i := range cfg.Nodes {
		w.names = append(w.names, round.NodeID(fmt.Sprintf("n%d", i+1)))
	}
	for _, from := range w.names {
		n := newNode(w, from)
		w.nodes[from] = n
		for _, to := range w.names {
			if from != to {
				w.links[linkID{from, to}] = &link{}
			}
		}
	}
	for i := range cfg.Coordinators {
		w.leads = append(w.leads, &coordinator{w: w, name: fmt.Sprintf("c%d", i+1), up: true})
	}
	for _, id := range w.names {
		w.nodes[id].boot()
		w.traffic(id)
	}
	w.elect()
	w.mishaps()
	w.after(cfg.Chaos, w.heal)
	return w
}

// step lets the next thing happen.
func (w *world) step() bool {
	if w.queue.Len() == 0 || w.calm && (w.quiet() || w.now > w.cfg.Chaos+healedFor) {
		return false
	}
	h := heap.Pop(&w.queue).(happening)
	w.now = h.at
	w.stats.Steps++
	h.do()
	if w.err == nil {
		w.fail(w.check.Err())
	}
	if w.err == nil {
		w.fail(w.checkPauses())
	}
	return w.err == nil
}

// heal ends the chaos: everybody is up, nothing gets lost any more.
func (w *world) heal() {
	w.calm = true
	w.logf("the storm is over")
	for _, id := range w.names {
		w.nodes[id].boot()
	}
	for _, c := range w.leads {
		c.up = true
	}
	w.elect()
}

// quiet reports whether every round is over and settled, and every guest runs.
func (w *world) quiet() bool {
	for _, id := range w.names {
		if n := w.nodes[id]; !n.up || n.guest.stopped || n.guest.gated || len(n.guest.held) > 0 {
			return false
		}
	}
	return w.etcd.inFlight == nil && len(w.etcd.aside) == 0 && w.leader() != nil && w.leader().lead == nil
}

// checkEnd is invariant I14: when the faults end, every round ends and every
// guest runs.
func (w *world) checkEnd() {
	if !w.quiet() {
		w.fail(fmt.Errorf("I14: not quiet long after the last fault: in flight %+v, set aside %+v", w.etcd.inFlight, w.etcd.aside))
	}
}

// mishaps draws the faults of one time unit.
func (w *world) mishaps() {
	if w.calm {
		return
	}
	if w.chance(w.cfg.MemberCrash) {
		w.nodes[w.names[w.rng.IntN(len(w.names))]].crash()
	}
	if w.chance(w.cfg.LeadCrash) {
		w.leads[w.rng.IntN(len(w.leads))].crash()
	}
	if w.chance(w.cfg.Election) {
		w.elect()
	}
	if c := w.leads[w.rng.IntN(len(w.leads))]; w.chance(w.cfg.Cancellation) {
		c.cancel()
	}
	w.after(10, w.mishaps)
}

func (w *world) chance(perMille int) bool {
	return !w.calm && perMille > 0 && w.rng.IntN(1000) < perMille
}

// some returns a time between 1 and most.
func (w *world) some(most Time) Time { return 1 + Time(w.rng.Int64N(int64(most))) }

func (w *world) after(d Time, do func()) {
	w.seq++
	heap.Push(&w.queue, happening{at: w.now + d, seq: w.seq, do: do})
}

func (w *world) fail(err error) {
	if w.err == nil && err != nil {
		w.err = err
	}
}

func (w *world) logf(format string, args ...any) {
	w.log = append(w.log, fmt.Sprintf("%6d ", w.now)+fmt.Sprintf(format, args...))
	if len(w.log) > 2000 {
		w.log = append(w.log[:0], w.log[1000:]...)
	}
}

func (w *world) tail() string {
	return strings.Join(w.log[max(0, len(w.log)-80):], "\n")
}

type happening struct {
	at  Time
	seq int // order of those at the same time
	do  func()
}

type happenings []happening

func (h happenings) Len() int { return len(h) }
func (h happenings) Less(i, j int) bool {
	if h[i].at != h[j].at {
		return h[i].at < h[j].at
	}
	return h[i].seq < h[j].seq
}
func (h happenings) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *happenings) Push(x any)   { *h = append(*h, x.(happening)) }
func (h *happenings) Pop() any {
	old := *h
	last := old[len(old)-1]
	*h = old[:len(old)-1]
	return last
}
