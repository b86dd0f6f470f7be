package rounds

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"fermata/coordinator/deploy"
	"fermata/protocol/api"
	"fermata/protocol/failpoint"
	"fermata/protocol/fault"
	"fermata/protocol/round"
)

// run is one round being driven. All fields but inbox belong to loop's goroutine.
type run struct {
	d    *Driver
	lead *round.Lead
	job  Job
	log  hclog.Logger

	nodes   map[round.NodeID]deploy.Node
	inbox   chan func()    // results, run by the owner
	calls   sync.WaitGroup // goroutines of calls and decisions
	begun   time.Time
	stepped time.Time // when the present step began

	forward       context.Context // of calls that drive the round on
	cancelForward context.CancelFunc

	deciding bool                       // a decision is under way
	toDecide []round.Outcome            // decisions that wait for it
	heard    map[round.NodeID]time.Time // when each node last reported persisting
	waiting  map[round.NodeID]bool      // for its turn to write
	resumed  time.Time                  // when the last node's guests ran again
	images   map[round.NodeID]*api.NodeImage
	last     map[round.NodeID]error      // the last error of each node
	done     map[round.NodeID]round.Call // what each node has answered last
	refused  map[round.NodeID]time.Time  // since when each node cannot be reached
	waited   time.Time                   // when the operator was last told for whom the round waits
	result   round.LeadResult
	cause    error // what made the round abort; has the class
}

func (d *Driver) newRun(lead *round.Lead, job Job) *run {
	r := &run{
		d: d, lead: lead, job: job,
		log:     d.cfg.Logger.With("cluster", job.Round.Cluster, "epoch", uint64(job.Round.Epoch)),
		nodes:   make(map[round.NodeID]deploy.Node, len(job.Members)),
		inbox:   make(chan func()),
		begun:   time.Now(),
		heard:   make(map[round.NodeID]time.Time),
		waiting: make(map[round.NodeID]bool),
		images:  make(map[round.NodeID]*api.NodeImage),
		last:    make(map[round.NodeID]error),
		done:    make(map[round.NodeID]round.Call),
		refused: make(map[round.NodeID]time.Time),
	}
	for _, n := range job.Members {
		r.nodes[round.NodeID(n.Name)] = n
	}
	return r
}

// loop drives the Lead until nothing more will come.
func (r *run) loop(ctx, asked context.Context) {
	over := make(chan struct{})
	work, cancelWork := context.WithCancel(ctx)
	r.forward, r.cancelForward = context.WithCancel(work)
	defer func() {
		close(over)
		cancelWork()
		r.calls.Wait()
	}()
	post := func(f func()) {
		select {
		case r.inbox <- f:
		case <-over:
		}
	}
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	ended, cancelled := ctx.Done(), asked.Done()
	r.stepped = r.begun
	for {
		r.perform(work, post)
		if r.lead.Over() && !r.lead.HasReady() {
			return
		}
		select {
		case f := <-r.inbox:
			f()
		case <-ticker.C:
			r.lead.Tick()
			r.watchMembers()
			r.watchPersist()
		case <-cancelled:
			cancelled = nil
			r.giveUp(fault.Wrap(fault.Aborted, context.Cause(asked), "cancelled"))
		case <-ended:
			ended = nil
			r.lead.Fenced()
		}
	}
}

// perform does what the Lead has ready, in the order that package round demands.
func (r *run) perform(ctx context.Context, post func(func())) {
	for r.lead.HasReady() {
		ready := r.lead.Ready()
		var failed error // of a point that tests make fail
		if ready.Persist != nil {
			failed = failpoint.Inject(ctx, reached(*ready.Persist))
			if !r.store(ctx, *ready.Persist) {
				r.lead.Fenced()
				continue
			}
			r.enter(*ready.Persist)
			failed = errors.Join(failed, failpoint.Inject(ctx, stored(*ready.Persist)))
		}
		if ready.Decide != round.OutcomeNone {
			r.toDecide = append(r.toDecide, ready.Decide)
			r.decideNext(ctx, post)
		}
		for _, req := range ready.Send {
			r.call(ctx, req, post)
		}
		for _, e := range ready.Events {
			r.report(e)
		}
		if ready.Done != nil {
			r.result = *ready.Done
			r.log.Info("round decided", "outcome", ready.Done.Outcome, "reason", ready.Done.Reason,
				"elapsed", time.Since(r.begun))
		}
		if failed != nil {
			r.giveUp(failed)
		}
	}
}

// reached is the point at which a round is when it is about to store rec.
func reached(rec round.Record) failpoint.Point {
	switch {
	case rec.Phase == round.PhaseCut:
		return failpoint.CoordinatorAfterPrepare
	case rec.Phase == round.PhasePersist:
		return failpoint.CoordinatorAfterCut
	case rec.Phase == round.PhaseCommit:
		return failpoint.CoordinatorAfterPersist
	case rec.Outcome == round.Aborted && rec.Phase == round.PhaseFinish && !rec.Recorded:
		return failpoint.CoordinatorBeforeAbort
	default:
		return failpoint.None
	}
}

// stored is the point at which a round is when it has stored rec.
func stored(rec round.Record) failpoint.Point {
	if rec.Outcome == round.Aborted && rec.Phase == round.PhaseFinish && !rec.Recorded {
		return failpoint.CoordinatorAfterAbort
	}
	return failpoint.CoordinatorAfterStore
}

// store makes rec durable, trying again as long as this coordinator leads. It
// returns false when it does not any more: ctx ends with its lease, so the
// wait is bounded by that.
func (r *run) store(ctx context.Context, rec round.Record) bool {
	for {
		err := failpoint.Inject(ctx, failpoint.CoordinatorBeforeStore)
		if err != nil {
			// as if the store had not been reached
		} else if rec.Phase == round.PhaseOver {
			err = r.job.Ledger.EndRound(ctx, rec)
		} else {
			err = r.job.Ledger.PutRound(ctx, rec)
		}
		switch {
		case err == nil:
			return true
		case ctx.Err() != nil || fault.ClassOf(err) == fault.Stale:
			return false
		}
		r.log.Warn("record of the round not stored, trying again", "phase", rec.Phase, "error", err)
		select {
		case <-ctx.Done():
			return false
		case <-time.After(tick):
		}
	}
}

// enter notes that a phase has begun.
func (r *run) enter(rec round.Record) {
	now := time.Now()
	if rec.Phase == round.PhasePersist {
		for id := range r.nodes {
			r.heard[id] = now
		}
	}
	if r.cause == nil && (rec.Phase == round.PhaseAbort || rec.Outcome == round.Aborted) {
		r.cause = r.timeUp(rec.Reason)
	}
	if rec.Phase >= round.PhaseCommit {
		// Whoever still works on an earlier phase need not any more.
		r.cancelForward()
	}
	r.log.Debug("phase begun", "phase", rec.Phase, "elapsed", now.Sub(r.begun))
}

// timeUp is the cause of an abort for which no answer is to blame: the Lead's
// patience ended, or its predecessor's life. What was last heard of the nodes
// tells why they did not answer.
func (r *run) timeUp(reason string) error {
	var errs []error
	for _, n := range r.job.Members {
		if err := r.last[round.NodeID(n.Name)]; err != nil {
			errs = append(errs, err)
		}
	}
	if len(errs) == 0 {
		return fault.New(fault.Deadline, "%s", reason)
	}
	return fault.New(fault.Deadline, "%s: %w", reason, errors.Join(errs...))
}

// giveUp cancels the round because of err.
func (r *run) giveUp(err error) {
	r.noteCause(func() { r.lead.Cancel(err.Error()) }, err)
}

// noteCause runs an input of the Lead, and keeps err if that made it abort.
func (r *run) noteCause(input func(), err error) {
	before := r.lead.Phase()
	input()
	if before < round.PhaseCommit && r.lead.Phase() >= round.PhaseAbort {
		r.cause = err
	}
}

// watchPersist gives up on a node that has not moved for too long.
func (r *run) watchPersist() {
	if r.lead.Phase() != round.PhasePersist {
		return
	}
	for id, last := range r.heard {
		if r.waiting[id] {
			continue
		}
		if silence := time.Since(last); silence > r.d.cfg.Persist && r.images[id] == nil {
			r.giveUp(fault.New(fault.Deadline, "%s: %s: no progress for %s", id, round.StepPersist, silence.Round(time.Millisecond)))
			return
		}
	}
}

// callOf is the call that a phase waits for; false: for none of a member that may be
// given up.
func callOf(p round.Phase) (round.Call, bool) {
	switch p {
	case round.PhasePrepare:
		return round.CallPrepare, true
	case round.PhaseCut:
		return round.CallCut, true
	case round.PhasePersist:
		return round.CallPersist, true
	case round.PhaseFinish:
		return round.CallFinish, true
	default:
		return round.CallNone, false
	}
}

// watchMembers gives up on a node that is lost, and tells the operator for whom the
// round waits.
func (r *run) watchMembers() {
	call, waits := callOf(r.lead.Phase())
	if !waits {
		return
	}
	tell := time.Since(r.stepped) > waitingEvery && time.Since(r.waited) > waitingEvery
	for _, n := range r.job.Members {
		id := round.NodeID(n.Name)
		if r.done[id] == call {
			continue
		}
		since, refuses := r.refused[id]
		err := r.lost(id)
		switch {
		case err == nil:
		case call == round.CallFinish: // it learns the outcome from its next round
			r.done[id] = call
			r.answer(round.Request{Call: call, Round: r.job.Round, To: id}, fault.New(fault.Aborted, "not told: %w", err))
			continue
		default:
			r.giveUp(fault.Wrap(fault.Unavailable, err, "%s", stepOf(call)))
			return
		}
		if tell && call != round.CallPersist { // that one reports by itself
			r.waited = time.Now()
			text := fmt.Sprintf("waiting for an answer for %s", time.Since(r.stepped).Round(time.Second))
			if refuses {
				text = fmt.Sprintf("not reached for %s: %s", time.Since(since).Round(time.Second), r.last[id])
			}
			r.job.Progress(&api.Event{Step: stepOf(call), Node: n.Name, Text: text})
		}
	}
}

// lost says why a node is believed dead; nil while it is not.
func (r *run) lost(id round.NodeID) error {
	if r.job.Lost != nil {
		if err := r.job.Lost(string(id)); err != nil {
			return err
		}
	}
	if since, refuses := r.refused[id]; refuses && time.Since(since) > unreachableBudget {
		return fmt.Errorf("not reached for %s: %w", unreachableBudget, r.last[id])
	}
	return nil
}

// noteReached remembers since when a node cannot be reached.
func (r *run) noteReached(id round.NodeID, err error) {
	if fault.ClassOf(err) != fault.Unavailable {
		delete(r.refused, id)
	} else if _, already := r.refused[id]; !already {
		r.refused[id] = time.Now()
	}
}

// report turns an event of the Lead into a line of progress and of the log.
func (r *run) report(e round.Event) {
	p := &api.Event{Step: string(e.Step), Node: string(e.Node), Text: e.Text}
	switch {
	case !e.Ended && e.Node == "":
		r.stepped = time.Now()
	case e.Ended && e.Node != "":
		p.Text = "done"
		r.log.Info("step done", "step", e.Step, "node", e.Node, "elapsed", time.Since(r.stepped))
	case e.Ended:
		r.log.Info("step done everywhere", "step", e.Step, "elapsed", time.Since(r.stepped))
		return
	}
	r.job.Progress(p)
}

// decideNext begins the next decision unless one is under way.
func (r *run) decideNext(ctx context.Context, post func(func())) {
	if r.deciding || len(r.toDecide) == 0 {
		return
	}
	want := r.toDecide[0]
	r.toDecide = r.toDecide[1:]
	r.deciding = true
	evidence := Evidence{Images: r.imagesInOrder(), Resumed: r.resumed}
	reason := "unknown"
	if r.cause != nil {
		reason = r.cause.Error()
	}
	r.d.decisions.Go(func() {
		d := r.decide(ctx, want, evidence, reason)
		post(func() {
			r.decided(d)
			r.decideNext(ctx, post)
		})
	})
}

// decision is how a decision ended.
type decision struct {
	got     round.Outcome // none: not known
	cause   error         // why it is not a commit, or not known
	refused bool          // nothing was recorded nor will be
}

// decide asks the repository. A commit of which it is not known whether it was
// made is followed by the request to abort, whose answer tells.
func (r *run) decide(ctx context.Context, want round.Outcome, e Evidence, reason string) decision {
	var commitErr error
	if want == round.Committed {
		got, err := r.commit(ctx, e)
		if err == nil {
			return decision{got: got}
		}
		commitErr = fmt.Errorf("%s: %w", round.StepCommit, err)
		if !errors.Is(err, ErrUnheard) {
			return decision{cause: commitErr, refused: true}
		}
		reason = commitErr.Error()
	}
	err := failpoint.Inject(ctx, failpoint.CoordinatorBeforeAbort)
	got := round.OutcomeNone
	if err == nil {
		got, err = r.job.Judge.Abort(ctx, reason)
	}
	if err == nil {
		err = failpoint.Inject(ctx, failpoint.CoordinatorAfterAbort)
	}
	if err == nil {
		return decision{got: got, cause: commitErr}
	}
	pause(ctx) // the Lead asks again at its next tick; the repository gets longer
	return decision{cause: errors.Join(commitErr, fmt.Errorf("%s: %w", round.StepAbort, err))}
}

// commit asks for a commit, again if the reason of a refusal may pass.
func (r *run) commit(ctx context.Context, e Evidence) (round.Outcome, error) {
	begun := time.Now()
	for {
		err := failpoint.Inject(ctx, failpoint.CoordinatorBeforeCommit)
		got := round.OutcomeNone
		if err == nil {
			got, err = r.job.Judge.Commit(ctx, e)
		}
		if failErr := failpoint.Inject(ctx, failpoint.CoordinatorAfterCommit); err == nil && failErr != nil {
			got, err = round.OutcomeNone, fmt.Errorf("%w: %w", ErrUnheard, failErr)
		}
		if err == nil || errors.Is(err, ErrUnheard) || !mayPass(err) || time.Since(begun) > commitPatience || !pause(ctx) {
			return got, err
		}
		r.log.Warn("commit refused, trying again", "error", err)
	}
}

// mayPass reports whether the reason of an error may go away by itself soon: an
// error without a class of its own is what a file system says while it fails over.
func mayPass(err error) bool {
	switch fault.ClassOf(err) {
	case fault.Unavailable, fault.Unknown, fault.Busy, fault.Internal:
		return !errors.Is(err, unix.EROFS)
	default:
		return false
	}
}

// pause waits a little, and returns false when ctx ends.
func pause(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(decidePause):
		return true
	}
}

func (r *run) decided(d decision) {
	r.deciding = false
	if r.cause == nil {
		r.cause = d.cause
	}
	switch {
	case d.got != round.OutcomeNone:
		r.lead.Decided(d.got)
	case d.refused:
		r.log.Warn("the repository did not take the commit", "error", d.cause)
		r.lead.DecideRefused(d.cause.Error())
	default:
		r.log.Warn("outcome not recorded", "error", d.cause)
		r.lead.DecideFailed(d.cause.Error())
	}
}

func (r *run) imagesInOrder() []*api.NodeImage {
	var images []*api.NodeImage
	for _, n := range r.job.Members {
		if image := r.images[round.NodeID(n.Name)]; image != nil {
			images = append(images, image)
		}
	}
	return images
}

// failure is the error of a round that did not commit.
func (r *run) failure() error {
	switch {
	case r.result.Outcome == round.OutcomeNone:
		const said = "round %s: it is not known yet whether the checkpoint was made: %s; the guests run on, and the coordinator finds out when the repository answers"
		if r.cause != nil {
			return fault.Wrap(fault.Unknown, r.cause, said, r.job.Round, r.result.Reason)
		}
		return fault.New(fault.Unknown, said, r.job.Round, r.result.Reason)
	case r.cause != nil:
		return fmt.Errorf("round %s aborted: %w", r.job.Round, r.cause)
	}
	return fault.New(fault.Aborted, "round %s aborted: %s", r.job.Round, r.result.Reason)
}

// answer hands the end of a call to the Lead.
func (r *run) answer(req round.Request, err error) {
	reply := round.Reply{Call: req.Call, Round: req.Round, From: req.To, Result: round.ResultDone}
	if err != nil {
		reply.Result, reply.Reason = resultOf(err), fmt.Sprintf("%s: %s", stepOf(req.Call), err)
		r.log.Debug("call ended", "node", req.To, "step", stepOf(req.Call), "result", reply.Result, "error", err)
		err = fmt.Errorf("node %s: %s: %w", req.To, stepOf(req.Call), err)
		r.last[req.To] = err
	}
	r.noteReached(req.To, err)
	if err == nil {
		r.done[req.To] = req.Call
	}
	before := r.lead.Phase()
	r.noteCause(func() {
		if stepErr := r.lead.Step(reply); stepErr != nil {
			r.log.Error("answer of another round", "error", stepErr)
		}
	}, err)
	if before == round.PhaseCut && r.lead.Phase() == round.PhasePersist {
		r.resumed = time.Now()
	}
}

// resultOf says what the class of an error means for the round.
func resultOf(err error) round.Result {
	switch fault.ClassOf(err) {
	case fault.Unknown, fault.Unavailable, fault.Busy:
		return round.ResultUnanswered
	default:
		return round.ResultFailed
	}
}
