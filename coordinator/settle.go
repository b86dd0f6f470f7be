package coordinator

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"fermata/coordinator/rounds"
	"fermata/coordinator/store"
	"fermata/protocol/fault"
	"fermata/protocol/round"
)

// settleEvery is the pause between two attempts to settle the rounds that were
// set aside, while the repository does not take it.
const settleEvery = 5 * time.Second

// settleInBackground has the repository record, as long as the term lasts, what
// rounds that are over have left to it.
func (t *term) settleInBackground() {
	if t.enter() != nil {
		return
	}
	go func() {
		defer t.work.Done()
		var said string
		for t.ctx.Err() == nil {
			err := t.settle(t.ctx, "")
			switch {
			case err == nil:
				said = ""
			case t.ctx.Err() == nil && err.Error() != said: // once, not every five seconds
				said = err.Error()
				t.c.log.Warn("the repository has not recorded how a round ended, trying again", "error", err)
			}
			var retry <-chan time.Time
			if err != nil {
				retry = time.After(settleEvery)
			}
			select {
			case <-retry:
			case <-t.aside:
			case <-t.ctx.Done():
			}
		}
	}()
}

// noteAside has the rounds that were set aside looked at.
func (t *term) noteAside() {
	select {
	case t.aside <- struct{}{}:
	default:
	}
}

// settle settles the rounds of a cluster, or of all if it is empty, that were set
// aside. On error some are left.
func (t *term) settle(ctx context.Context, cluster string) error {
	ops, err := t.c.store.Unsettled(ctx)
	if err != nil {
		return fmt.Errorf("list rounds that are not settled: %w", err)
	}
	var errs []error
	for _, op := range ops {
		if cluster == "" || op.Cluster == cluster {
			errs = append(errs, t.settleRound(ctx, op))
		}
	}
	return errors.Join(errs...)
}

// settleRound has the abort of a round recorded. If it was not known how the
// round ended, the repository's answer tells, and the nodes are told. A node
// that does not hear it frees what it holds with its next round.
func (t *term) settleRound(ctx context.Context, op store.Operation) error {
	var rec round.Record
	if err := json.Unmarshal(op.Phase, &rec); err != nil {
		return fault.Wrap(fault.Corrupt, err, "record of round %s@%d", op.Cluster, op.Epoch)
	}
	glance, cancel := t.c.glance(ctx)
	defer cancel()
	verdict := &judge{repo: t.c.repo, id: rec.Round}
	outcome, err := verdict.Abort(glance, rec.Reason)
	if err != nil {
		return fmt.Errorf("round %s: %w", rec.Round, err)
	}
	switch {
	case rec.Outcome == round.OutcomeNone:
		t.c.log.Info("it is known now how a round ended", "cluster", op.Cluster, "epoch", op.Epoch, "outcome", outcome)
		t.tellOutcome(ctx, rec, outcome)
	case rec.Outcome != outcome:
		// Only a store that was put back to an older state makes this possible.
		t.c.log.Error("a round that was aborted has a checkpoint", "cluster", op.Cluster, "epoch", op.Epoch)
	}
	return t.surely(ctx, func(ctx context.Context) error { return t.c.store.Settle(ctx, t.fence, op.Cluster, op.Epoch) })
}

// tellOutcome tells the nodes of a round how it ended, once.
func (t *term) tellOutcome(ctx context.Context, rec round.Record, outcome round.Outcome) {
	members, err := t.roundMembers(ctx, rec)
	if err != nil {
		t.c.log.Warn("nodes not told how a round ended", "cluster", rec.Round.Cluster, "epoch", uint64(rec.Round.Epoch), "error", err)
		return
	}
	t.drive.Tell(ctx, rounds.Job{Round: rec.Round, Fence: t.fence.API(), Members: members}, outcome)
}

// settleBefore settles what earlier rounds of a cluster left to the repository,
// before another operation on it begins.
func (t *term) settleBefore(ctx context.Context, cluster string) error {
	err := t.settle(ctx, cluster)
	if err == nil {
		return nil
	}
	class := fault.ClassOf(err)
	if class == fault.Internal {
		class = fault.Unavailable // of the repository; nothing was done
	}
	return fault.Wrap(class, err, "the repository cannot take a checkpoint at present: it has not recorded how an earlier one ended")
}
