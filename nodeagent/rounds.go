package nodeagent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"

	"fermata/protocol/api"
	"fermata/protocol/fault"
	"fermata/protocol/round"
)

const (
	// roundTick gives the state machine its sense of time. Pause budgets are
	// rounded down to it.
	roundTick = 50 * time.Millisecond

	// silenceBudget bounds how long a prepared or resumed round waits for its
	// coordinator while it holds copies of memory.
	silenceBudget = 5 * time.Minute

	// leaveBudget bounds the wait for a round to let its guests run when the
	// cluster or the agent ends.
	leaveBudget = 15 * time.Second
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
// newest journal record of its member, or nil for guests that were just made.
func (a *Agent) startRounds(c *cluster, record []byte) error {
	rec := c.record()
	cfg := round.MemberConfig{
		Cluster: c.name, Node: round.NodeID(a.cfg.Name), Epoch: round.Epoch(rec.Epoch),
		Tick: roundTick, SilenceTicks: int(silenceBudget / roundTick),
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
func (a *Agent) recoverRounds(context.Context) error {
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
		r.flush()
		select {
		case in := <-r.inputs:
			in(r.member)
		case <-ticker.C:
			r.member.Tick()
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

// flush does what the member asks for, in the order that package round demands.
func (r *roundRun) flush() {
	for r.member.HasReady() {
		ready := r.member.Ready()
		if ready.Journal != nil {
			if err := r.store(*ready.Journal); err != nil {
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

func (r *roundRun) store(j round.Journal) error {
	b, err := json.Marshal(j)
	if err != nil {
		return fmt.Errorf("encode round: %w", err)
	}
	return r.agent.journal.PutRound(r.cluster.name, b)
}

func (r *roundRun) answer(reply round.Reply) {
	key := callKey{reply.Call, reply.Round.Epoch}
	a := answer{payload: reply.Payload}
	if reply.Result == round.ResultFailed {
		class, ok := r.class[reply.Round.Epoch]
		if !ok {
			class = fault.Aborted
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
	select {
	case r.inputs <- in:
	case <-r.stopped:
	}
}

// failed hands the failure of a step to the owner and remembers its class, so
// that the coordinator can tell a full disk from a slow guest.
func (r *roundRun) failed(e round.Epoch, step round.Step, err error) {
	r.agent.log.Warn("step failed", "cluster", r.cluster.name, "epoch", e, "step", step, "error", err)
	r.post(func(m *round.Member) {
		if _, ok := r.class[e]; !ok {
			clear(r.class) // older rounds are over
			r.class[e] = fault.ClassOf(err)
		}
		m.StepFailed(e, step, err.Error())
	})
}

// call gives a request to the member and waits for its answer.
func (r *roundRun) call(ctx context.Context, req round.Request) ([]byte, error) {
	wait := make(chan answer, 1)
	refused := make(chan error, 1)
	r.post(func(m *round.Member) {
		if err := m.Step(req); err != nil {
			refused <- roundFault(err)
			return
		}
		key := callKey{req.Call, req.Round.Epoch}
		r.waiting[key] = append(r.waiting[key], wait)
	})
	select {
	case err := <-refused:
		return nil, err
	case a := <-wait:
		return a.payload, a.err
	case <-r.stopped:
		return nil, fault.Wrap(fault.Unavailable, errLeaving, "%s", req)
	case <-ctx.Done():
		return nil, ctx.Err()
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

// endRound gives up a round in progress, lets its guests run and stops taking
// part in further ones.
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
	r.post(func(m *round.Member) { m.StepFailed(m.Epoch(), round.StepAbort, errLeaving.Error()) })
	err := r.awaitFree(ctx)
	r.cancel()
	<-r.stopped
	return err
}

// awaitFree waits until no guest stands still for the round.
func (r *roundRun) awaitFree(ctx context.Context) error {
	ticker := time.NewTicker(roundTick / 5)
	defer ticker.Stop()
	for {
		free := make(chan bool, 1)
		r.post(func(m *round.Member) { free <- m.Phase() != round.MemberFailing && !m.HasReady() && r.worker.idle() })
		select {
		case ok := <-free:
			if ok {
				return nil
			}
		case <-r.stopped:
			return nil
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return fmt.Errorf("round of cluster %s does not let its guests run: %w", r.cluster.name, ctx.Err())
		}
	}
}

// member returns the driver of the cluster's rounds and the token by which its
// caller is known to it.
func (a *Agent) member(id *api.Round) (*roundRun, round.Request, error) {
	c, err := a.fence(id.GetCluster(), id.GetFence())
	if err != nil {
		return nil, round.Request{}, err
	}
	if id.GetEpoch() == 0 {
		return nil, round.Request{}, fault.New(fault.Invalid, "round: epoch missing")
	}
	c.mu.Lock()
	r, rec := c.round, c.rec
	c.mu.Unlock()
	if r == nil {
		return nil, round.Request{}, fault.New(fault.NotFound, "cluster %s has no guests on node %s", c.name, a.cfg.Name)
	}
	return r, round.Request{
		Round: round.ID{Cluster: c.name, Epoch: round.Epoch(id.Epoch)},
		Token: memberToken(len(rec.RetiredStores), id.Fence.Token),
		To:    round.NodeID(a.cfg.Name),
	}, nil
}

// memberToken makes tokens of successive stores comparable: those of a later
// store are larger. etcd revisions stay far below 2^48.
func memberToken(retired int, token uint64) round.Token {
	return round.Token(uint64(retired)<<48 | token&(1<<48-1))
}

// PrepareRound answers when the node's guests are ready to be cut.
func (a *Agent) PrepareRound(ctx context.Context, in *api.PrepareRoundRequest) (*api.PrepareRoundReply, error) {
	r, req, err := a.member(in.GetRound())
	if err != nil {
		return nil, err
	}
	if len(in.Nodes) > maxGuests {
		return nil, fault.New(fault.Invalid, "round of %d nodes, limit %d", len(in.Nodes), maxGuests)
	}
	for _, n := range in.Nodes {
		req.Members = append(req.Members, round.NodeID(n))
	}
	req.Call = round.CallPrepare
	req.Options = round.Options{
		PauseBudget:     time.Duration(min(in.PauseBudgetMs, uint64(time.Hour.Milliseconds()))) * time.Millisecond,
		DiscardChannels: in.DiscardChannels,
	}
	return callFor(ctx, r, req, &api.PrepareRoundReply{})
}

// CutRound answers when the node's guests run again.
func (a *Agent) CutRound(ctx context.Context, in *api.CutRoundRequest) (*api.CutRoundReply, error) {
	r, req, err := a.member(in.GetRound())
	if err != nil {
		return nil, err
	}
	req.Call = round.CallCut
	return callFor(ctx, r, req, &api.CutRoundReply{})
}

// PersistRound answers when the node's image is durable, and reports progress
// until then.
func (a *Agent) PersistRound(ctx context.Context, in *api.PersistRoundRequest, report func(*api.PersistRoundUpdate) error) error {
	r, req, err := a.member(in.GetRound())
	if err != nil {
		return err
	}
	req.Call = round.CallPersist
	ended := make(chan struct{})
	var image *api.NodeImage
	go func() {
		defer close(ended)
		image, err = callFor(ctx, r, req, &api.NodeImage{})
	}()
	ticker := time.NewTicker(reportEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ended:
			if err != nil {
				return err
			}
			return report(&api.PersistRoundUpdate{Image: image})
		case <-ticker.C:
			// A reader that left shows in ctx, too; the call then ends by itself.
			_ = report(&api.PersistRoundUpdate{DoneBytes: r.done.Load(), TotalBytes: r.total.Load()})
		}
	}
}

// FinishRound answers when the node knows the outcome durably.
func (a *Agent) FinishRound(ctx context.Context, in *api.FinishRoundRequest) error {
	r, req, err := a.member(in.GetRound())
	if err != nil {
		return err
	}
	req.Call, req.Outcome = round.CallFinish, round.Aborted
	if in.Committed {
		req.Outcome = round.Committed
	}
	_, err = r.call(ctx, req)
	return err
}

// callFor makes a call whose answer is the message into.
func callFor[M proto.Message](ctx context.Context, r *roundRun, req round.Request, into M) (M, error) {
	payload, err := r.call(ctx, req)
	if err != nil {
		return into, err
	}
	if err := proto.Unmarshal(payload, into); err != nil {
		return into, fmt.Errorf("decode answer to %s: %w", req.Call, err)
	}
	return into, nil
}
