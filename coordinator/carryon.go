package coordinator

import (
	"context"
	"errors"
	"time"

	"google.golang.org/protobuf/proto"

	"fermata/coordinator/deploy"
	"fermata/coordinator/store"
	"fermata/protocol/api"
	"fermata/protocol/fault"
)

// standing is how far the guests of a start or restart have come.
type standing int

const (
	notMade standing = iota // of some nobody knows
	allMade                 // every guest exists, and some do not run yet
	allRun
)

// standing asks the nodes how far the life of a cluster that began in an epoch has come.
// For as long as patience a node that holds its lease and does not answer is asked again.
func (t *term) standing(ctx context.Context, cluster string, epoch uint64, patience time.Duration) (standing, error) {
	c, err := t.c.store.Cluster(ctx, cluster)
	if err != nil {
		return notMade, err
	}
	deadline := time.Now().Add(patience)
	for {
		seen, err := t.survey(ctx)
		if err != nil {
			return notMade, err
		}
		now, sure := seen.standing(c, epoch)
		if sure || time.Now().After(deadline) {
			return now, nil
		}
		select {
		case <-ctx.Done():
			return notMade, context.Cause(ctx)
		case <-time.After(registerPause):
		}
	}
}

// standing is what the survey says of the guests; sure is false if a node that is believed
// alive has not answered.
func (s *survey) standing(c store.Cluster, epoch uint64) (now standing, sure bool) {
	now, sure = allRun, true
	for guest, node := range c.Assignments {
		if v := s.find(node); v != nil && v.alive && !v.answered {
			sure = false
		}
		at := notMade
		for _, g := range s.guests(c.Name) {
			if g.GetName() != guest || g.GetNode() != node || g.GetEpoch() != epoch {
				continue
			}
			switch g.GetState() {
			case api.GuestState_GUEST_STATE_RUNNING:
				at = allRun
			case api.GuestState_GUEST_STATE_PAUSED:
				at = allMade
			}
		}
		now = min(now, at)
	}
	if len(c.Assignments) == 0 {
		now = notMade
	}
	return now, sure
}

// carryOn takes up a start or restart that another coordinator has left: forward when the
// nodes have made every guest, else from its beginning. again makes the work that begins
// anew, from the request that was decoded into req.
func (t *term) carryOn(ctx context.Context, op store.Operation, req proto.Message, again func(intent) (*raising, func(context.Context) error)) error {
	in, err := decodeIntent(op, req)
	if err != nil {
		t.c.log.Error("operation cannot be carried on", "cluster", op.Cluster, "operation", op.ID, "error", err)
		return t.endInterrupted(ctx, op, ", and its record cannot be read")
	}
	endUse, err := t.ops.usePacks(describe("recovery of a "+string(op.Kind), op.Cluster))
	if err != nil {
		return err
	}
	defer endUse()
	// Guests must not be taken for lost because their node is slow to answer.
	now, err := t.standing(ctx, op.Cluster, in.Epoch, 2*t.c.cfg.NodeLeaseTTL)
	if err != nil {
		return err
	}
	r, redo := again(in)
	r.op, r.life, r.before, r.touched = op.ID, t.life(op.Cluster, in.Epoch), in.Before, in.Touched
	if now == allMade && !r.stepClock {
		if now, err = t.releaseMade(ctx, r); err != nil {
			t.c.log.Warn("guests that were made cannot be released, they are made again", "cluster", op.Cluster, "epoch", in.Epoch, "error", err)
		}
	}
	if now == allRun {
		t.c.log.Info("operation had made all guests, which run", "cluster", op.Cluster, "operation", op.ID, "epoch", in.Epoch)
		return r.succeed()
	}
	t.c.log.Warn("operation begins again", "cluster", op.Cluster, "operation", op.ID, "epoch", in.Epoch)
	if err := redo(ctx); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if _, runs, lookErr := t.operation(ctx, op.Cluster, op.ID); runs || lookErr != nil {
			return errors.Join(err, lookErr)
		}
		// What became of the cluster is in its record.
		t.c.log.Error("operation that was begun again has failed", "cluster", op.Cluster, "operation", op.ID, "error", err)
	}
	return nil
}

// releaseMade lets guests run that the coordinator before has made.
func (t *term) releaseMade(ctx context.Context, r *raising) (standing, error) {
	c, err := t.c.store.Cluster(ctx, r.cluster)
	if err != nil {
		return notMade, err
	}
	infos, err := t.c.store.Nodes(ctx)
	if err != nil {
		return notMade, err
	}
	var nodes []deploy.Node
	for _, info := range infos {
		if len(guestsOn(c, info.GetName())) > 0 {
			nodes = append(nodes, nodeOf(info))
		}
	}
	if err := t.c.deployer.Release(ctx, r.life, nodes); err != nil {
		return notMade, err
	}
	return allRun, nil
}

// redo makes a restart again that another coordinator has begun, from the checkpoint that
// it had chosen or, where that proves damaged and the operator named none, from an older one.
func (r *restart) redo(ctx context.Context, in intent) error {
	epoch, err := parseFrom(r.req.GetCluster(), r.req.GetFrom())
	if err != nil {
		return fault.Wrap(fault.Internal, err, "stored request")
	}
	_, err = r.run(ctx, epoch, in.Checkpoint)
	return err
}
