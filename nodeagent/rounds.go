package nodeagent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"fermata/protocol/failpoint"
	"fermata/protocol/fault"
	"fermata/protocol/round"
)

const (
	// roundTick gives the state machine its sense of time. Pause budgets are
	// rounded down to it.
	roundTick = 50 * time.Millisecond

	// leaveBudget bounds the wait for a round to let its guests run when the
	// cluster or the agent ends.
	leaveBudget = 15 * time.Second

	// exitBudget bounds a clean exit: leaveBudget, a call that still has the turn
	// of a cluster, and where guests are ended, the freeing of their memory.
	exitBudget = time.Minute
)

// errLeaving ends a round because its cluster or agent ends.
var errLeaving = errors.New("the node's agent or the cluster ends")

// roundRun drives the round.Member of one cluster: one goroutine owns the state
// machine, another carries its actions out.
type roundRun struct {
	agent   *Agent
	cluster *cluster
	inputs  chan func(*round.Member) // run by the owner
	stopped chan struct{}            // closed when the owner has ended
	cancel  context.CancelFunc       // ends the owner
	worker  *worker

	// Persist progress, for whoever waits for the call.
	done, total atomic.Uint64

	// Owned by the owner goroutine:
	member  *round.Member
	waiting map[callKey][]chan answer
	class   map[round.Epoch]fault.Class // of the failure of a round
}

type callKey struct {
	call  round.Call
	epoch round.Epoch
}

// answer is how one call ended.
type answer struct {
	payload []byte
	err     error
}

// startRounds begins to take part in the cluster's rounds. record is the
// newest journal record of its member, or nil for a life that has just begun.
func (a *Agent) startRounds(c *cluster, record []byte) error {
	if record == nil {
		if err := a.journal.DeleteRound(c.name); err != nil { // of an earlier life
			return err
		}
	}
	rec := c.record()
	cfg := round.MemberConfig{
		Cluster: c.name, Node: round.NodeID(a.cfg.Name), Epoch: round.Epoch(rec.Epoch),
		Tick: roundTick, SilenceTicks: int(round.SilenceBudget / roundTick),
	}
	m, err := newMember(cfg, record)
	if err != nil {
		return fmt.Errorf("rounds of cluster %s: %w", c.name, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &roundRun{
		agent: a, cluster: c,
		inputs: make(chan func(*round.Member)), stopped: make(chan struct{}), cancel: cancel,
		member: m, waiting: map[callKey][]chan answer{}, class: map[round.Epoch]fault.Class{},
	}
	r.worker = newWorker(r)
	c.mu.Lock()
	c.round = r
	c.mu.Unlock()
	go func() {
		defer close(r.stopped)
		r.run(ctx)
	}()
	return nil
}

func newMember(cfg round.MemberConfig, record []byte) (*round.Member, error) {
	if record == nil {
		return round.NewMember(cfg)
	}
	var j round.Journal
	if err := json.Unmarshal(record, &j); err != nil {
		return nil, fmt.Errorf("decode journal: %w", err)
	}
	return round.RecoverMember(cfg, j)
}

// recoverRounds takes up the rounds of the clusters that still have guests
// here. A round that was cut short lets its guests run.
func (a *Agent) recoverRounds() error {
	records, err := a.journal.Rounds()
	if err != nil {
		return err
	}
	for _, c := range a.allClusters() {
		if len(c.list()) == 0 {
			continue
		}
		if err := a.startRounds(c, records[c.name]); err != nil {
			return err
		}
	}
	return nil
}

// run owns the member until ctx ends.
func (r *roundRun) run(ctx context.Context) {
	work, stopWork := context.WithCancel(context.WithoutCancel(ctx))
	workDone := make(chan struct{})
	go func() {
		defer close(workDone)
		r.worker.run(work)
	}()
	defer func() {
		stopWork()
		r.drainInputs(workDone)
	}()
	ticker := time.NewTicker(roundTick)
	defer ticker.Stop()
	for {
		r.flush(ctx)
		select {
		case in := <-r.inputs:
			in(r.member)
		case <-ticker.C:
			r.tick()
		case <-ctx.Done():
			return
		}
	}
}

// drainInputs lets the worker hand back its last events until it has ended.
func (r *roundRun) drainInputs(workDone <-chan struct{}) {
	for {
		select {
		case in := <-r.inputs:
			in(r.member)
		case <-workDone:
			return
		}
	}
}

// tick passes time on. What it ends has used up its budget.
func (r *roundRun) tick() {
	before := r.member.Phase()
	r.member.Tick()
	switch after := r.member.Phase(); {
	case after == before:
	case after == round.MemberFailing, after == round.MemberFailed:
		r.agent.log.Warn("budget used up", "cluster", r.cluster.name, "epoch", r.member.Epoch(), "reason", r.member.Reason())
		r.classify(r.member.Epoch(), fault.Deadline)
	}
}

// flush does what the member asks for, in the order that package round demands.
func (r *roundRun) flush(ctx context.Context) {
	for r.member.HasReady() {
		ready := r.member.Ready()
		if ready.Journal != nil {
			if err := r.store(ctx, *ready.Journal); err != nil {
				r.agent.log.Error("round cannot be journalled", "cluster", r.cluster.name, "epoch", r.member.Epoch(), "error", err)
				r.member.JournalFailed()
				continue
			}
		}
		r.worker.hand(ready.Actions)
		for _, reply := range ready.Replies {
			r.answer(reply)
		}
	}
}

func (r *roundRun) store(ctx context.Context, j round.Journal) error {
	if err := failpoint.Inject(ctx, failpoint.AgentBeforeJournal); err != nil {
		return err
	}
	b, err := json.Marshal(j)
	if err != nil {
		return fmt.Errorf("encode round: %w", err)
	}
	if err := r.agent.journal.PutRound(r.cluster.name, b); err != nil {
		return err
	}
	return failpoint.Inject(ctx, failpoint.AgentAfterJournal)
}

func (r *roundRun) answer(reply round.Reply) {
	key := callKey{reply.Call, reply.Round.Epoch}
	a := answer{payload: reply.Payload}
	if reply.Result == round.ResultFailed {
		class := r.class[reply.Round.Epoch]
		switch class {
		case fault.None, fault.Unavailable, fault.Busy, fault.Unknown:
			class = fault.Aborted // the others would have the coordinator ask again
		}
		a.err = fault.New(class, "%s", reply.Reason)
	}
	for _, w := range r.waiting[key] {
		w <- a // buffered
	}
	delete(r.waiting, key)
}

// post hands an input to the owner. It gives up when the owner has ended.
func (r *roundRun) post(in func(*round.Member)) {
	_ = r.ask(context.Background(), in)
}

// ask is post that also gives up with ctx. When it returns nil, the owner runs
// in before anything that is asked later.
func (r *roundRun) ask(ctx context.Context, in func(*round.Member)) error {
	select {
	case r.inputs <- in:
		return nil
	case <-r.stopped:
		return fault.Wrap(fault.Unavailable, errLeaving, "rounds of cluster %s", r.cluster.name)
	case <-ctx.Done():
		return fmt.Errorf("rounds of cluster %s are busy: %w", r.cluster.name, context.Cause(ctx))
	}
}

// fence makes a newer coordinator's token known to the member.
func (r *roundRun) fence(ctx context.Context, t round.Token) error {
	refused := make(chan error, 1)
	if err := r.ask(ctx, func(m *round.Member) { refused <- m.Fence(t) }); err != nil {
		return err
	}
	if err := <-refused; err != nil {
		return roundFault(err)
	}
	return nil
}

// failed hands the failure of a step to the owner and remembers its class, so
// that the coordinator can tell a full disk from a slow guest.
func (r *roundRun) failed(e round.Epoch, step round.Step, err error) {
	r.agent.log.Warn("step failed", "cluster", r.cluster.name, "epoch", e, "step", step, "error", err)
	r.post(func(m *round.Member) {
		r.classify(e, fault.ClassOf(err))
		m.StepFailed(e, step, err.Error())
	})
}

// classify remembers the class of a round's first failure.
func (r *roundRun) classify(e round.Epoch, class fault.Class) {
	if _, ok := r.class[e]; !ok {
		clear(r.class) // older rounds are over
		r.class[e] = class
	}
}

// call gives a request to the member and waits for its answer.
func (r *roundRun) call(ctx context.Context, req round.Request) ([]byte, error) {
	wait := make(chan answer, 1)
	err := r.ask(ctx, func(m *round.Member) {
		if err := m.Step(req); err != nil {
			wait <- answer{err: roundFault(err)}
			return
		}
		r.forsake(m.Epoch())
		key := callKey{req.Call, req.Round.Epoch}
		r.waiting[key] = append(r.waiting[key], wait)
	})
	if err != nil {
		return nil, err
	}
	select {
	case a := <-wait:
		return a.payload, a.err
	case <-r.stopped:
		return nil, fault.Wrap(fault.Unavailable, errLeaving, "%s", req)
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// forsake answers who waits for a round that the member has left: no reply comes.
func (r *roundRun) forsake(newest round.Epoch) {
	for key, waits := range r.waiting {
		if key.epoch >= newest {
			continue
		}
		for _, w := range waits {
			w <- answer{err: fault.New(fault.Stale, "round %d has begun", newest)} // buffered
		}
		delete(r.waiting, key)
	}
}

// roundFault gives a refusal of the state machine its class.
func roundFault(err error) error {
	class := fault.Invalid
	switch {
	case errors.Is(err, round.ErrFenced), errors.Is(err, round.ErrStaleEpoch):
		class = fault.Stale
	case errors.Is(err, round.ErrBusy):
		class = fault.Busy
	}
	return fault.Wrap(class, err, "round")
}

// rounds returns the driver of the cluster's rounds; nil: it takes part in none.
func (c *cluster) rounds() *roundRun {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.round
}

// endRound gives up a round in progress, lets its guests run and stops taking
// part in further ones. It waits no longer than leaveBudget.
//
// On error: a guest may stand still; the attempts to let it run go on.
func (c *cluster) endRound(ctx context.Context) error {
	c.mu.Lock()
	r := c.round
	c.round = nil
	c.mu.Unlock()
	if r == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, leaveBudget)
	defer cancel()
	err := r.awaitRunning(ctx)
	r.cancel()
	select {
	case <-r.stopped:
		return err
	case <-ctx.Done():
		return errors.Join(err, fmt.Errorf("rounds of cluster %s do not end: %w", c.name, ctx.Err()))
	}
}

// awaitRunning fails the round in progress and waits until no guest stands
// still for it.
func (r *roundRun) awaitRunning(ctx context.Context) error {
	fail := func(m *round.Member) { m.StepFailed(m.Epoch(), round.StepAbort, errLeaving.Error()) }
	if err := r.ask(ctx, fail); err != nil {
		return err
	}
	ticker := time.NewTicker(roundTick / 5)
	defer ticker.Stop()
	for {
		phase := make(chan round.MemberPhase, 1)
		if err := r.ask(ctx, func(m *round.Member) { phase <- m.Phase() }); err != nil {
			return err
		}
		if <-phase != round.MemberFailing {
			return nil
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return fmt.Errorf("round of cluster %s does not let its guests run: %w", r.cluster.name, ctx.Err())
		}
	}
}
