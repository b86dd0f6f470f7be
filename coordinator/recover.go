package coordinator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"fermata/coordinator/deploy"
	"fermata/coordinator/rounds"
	"fermata/coordinator/store"
	"fermata/protocol/api"
	"fermata/protocol/fault"
	"fermata/protocol/round"
)

// recoverRetry is the pause before a recovery that failed is tried again. What
// fails it is the repository or etcd, which somebody has to mend.
const recoverRetry = 5 * time.Second

// adopt takes over what an earlier leader left unfinished. It claims the
// clusters concerned before it returns, so that nothing begins on them, and
// recovers them beside whatever else the term does.
func (t *term) adopt(ctx context.Context) error {
	var ops []store.Operation
	err := t.surely(ctx, func(ctx context.Context) (err error) {
		ops, err = t.c.store.Operations(ctx)
		return err
	})
	if err != nil {
		return fmt.Errorf("list operations: %w", err)
	}
	for _, op := range ops {
		release, err := t.ops.begin(op.Cluster, "recovery of a "+string(op.Kind))
		if err != nil {
			return err // the store keeps one operation a cluster, so this is a defect
		}
		t.recoverInBackground(op.Cluster, op.ID, release)
	}
	return nil
}

// recoverInBackground brings an operation that this call does not carry on to
// its end, and then calls release.
func (t *term) recoverInBackground(cluster, id string, release func()) {
	if t.enter() != nil {
		release() // the successor recovers it
		return
	}
	go func() {
		defer t.work.Done()
		defer release()
		for t.ctx.Err() == nil {
			begun := time.Now()
			err := t.recoverOperation(t.ctx, cluster, id)
			if err == nil {
				t.c.log.Info("operation recovered", "cluster", cluster, "operation", id, "elapsed", time.Since(begun))
				return
			}
			if t.ctx.Err() != nil {
				return
			}
			t.c.log.Error("operation not recovered, trying again", "cluster", cluster, "operation", id, "error", err)
			select {
			case <-t.ctx.Done():
			case <-time.After(recoverRetry):
			}
		}
	}()
}

func (t *term) recoverOperation(ctx context.Context, cluster, id string) error {
	op, runs, err := t.operation(ctx, cluster, id)
	if err != nil || !runs {
		return err
	}
	t.c.log.Warn("recovering an operation that was left unfinished", "cluster", cluster, "operation", id, "epoch", op.Epoch)
	switch op.Kind {
	case store.Checkpoint:
		return t.recoverRound(ctx, op)
	case store.Start:
		req := &api.StartClusterRequest{}
		return t.carryOn(ctx, op, req, func(intent) (*raising, func(context.Context) error) {
			r := t.starting(req, func(*api.Event) {})
			return r, func(ctx context.Context) error {
				if err := r.boot(ctx); err != nil {
					return r.fail(err)
				}
				return nil
			}
		})
	case store.Restart:
		req := &api.RestartRequest{}
		return t.carryOn(ctx, op, req, func(in intent) (*raising, func(context.Context) error) {
			r := t.restarting(req, func(*api.Event) {})
			return &r.raising, func(ctx context.Context) error { return r.redo(ctx, in) }
		})
	default:
		return t.recoverStop(ctx, op)
	}
}

// operation finds an operation in the store; runs is false when it has ended.
func (t *term) operation(ctx context.Context, cluster, id string) (op store.Operation, runs bool, err error) {
	ops, err := t.c.store.Operations(ctx)
	if err != nil {
		return op, false, fmt.Errorf("list operations: %w", err)
	}
	i := slices.IndexFunc(ops, func(op store.Operation) bool { return op.Cluster == cluster && op.ID == id })
	if i < 0 {
		return op, false, nil
	}
	return ops[i], true, nil
}

// recoverRound brings a round that was left in flight to an outcome: aborted,
// unless the repository holds its commit.
func (t *term) recoverRound(ctx context.Context, op store.Operation) error {
	if len(op.Phase) == 0 {
		// Its record is stored before the first call, so no node has heard of it.
		return t.end(op.Cluster, op.ID, nil)
	}
	rec, err := decodeRound(op)
	if err != nil {
		return err
	}
	members, err := t.roundMembers(ctx, rec)
	if err != nil {
		return err
	}
	outcome, err := t.drive.Recover(ctx, rec, rounds.Job{
		Round: rec.Round, Fence: t.fence.API(), Members: members, Options: rec.Options,
		CheckImage: func(*api.NodeImage) error { return fault.New(fault.Internal, "a recovered round persists nothing") },
		Ledger:     &ledger{store: t.c.store, fence: t.fence, id: op.ID, aside: t.noteAside},
		Judge:      &judge{repo: t.c.repo, id: rec.Round},
		Progress:   func(*api.Event) {},
	})
	if t.ctx.Err() == nil && fault.ClassOf(err) == fault.Unknown {
		t.c.log.Warn("round set aside: the repository does not say how it ended", "cluster", op.Cluster, "epoch", op.Epoch, "error", err)
		return nil
	}
	if err != nil {
		return err
	}
	t.c.log.Info("round recovered", "cluster", op.Cluster, "epoch", op.Epoch, "outcome", outcome)
	return nil
}

// roundMembers are the nodes of a round that is in the store.
func (t *term) roundMembers(ctx context.Context, rec round.Record) ([]deploy.Node, error) {
	infos, err := t.c.store.Nodes(ctx)
	if err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	var members []deploy.Node
	for _, m := range rec.Members {
		member := deploy.Node{Name: string(m)}
		for _, info := range infos {
			if info.GetName() == member.Name {
				member = nodeOf(info)
			}
		}
		members = append(members, member)
	}
	return members, nil
}

// recoverStop ends what a stop that was interrupted has left.
func (t *term) recoverStop(ctx context.Context, op store.Operation) error {
	return t.endInterrupted(ctx, op, "")
}

// endInterrupted ends the guests of an operation that nobody can carry on.
func (t *term) endInterrupted(ctx context.Context, op store.Operation, why string) error {
	c, err := t.c.store.Cluster(ctx, op.Cluster)
	if err != nil {
		return err
	}
	err = t.endGuests(ctx, t.life(op.Cluster, c.Epoch), c)
	if ctx.Err() != nil {
		return errors.Join(context.Cause(ctx), err)
	}
	state := api.ClusterState_CLUSTER_STATE_STOPPED
	reason := fmt.Sprintf("%s was interrupted: its coordinator was lost%s; the guests were ended", op.Kind, why)
	if err != nil {
		state = api.ClusterState_CLUSTER_STATE_BROKEN
		reason = fmt.Sprintf("%s was interrupted: its coordinator was lost%s; ending the guests: %s", op.Kind, why, err)
	}
	return t.end(op.Cluster, op.ID, settle(state, reason))
}
