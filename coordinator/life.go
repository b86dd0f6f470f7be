package coordinator

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"fermata/coordinator/deploy"
	"fermata/coordinator/store"
	"fermata/protocol/api"
	"fermata/protocol/failpoint"
	"fermata/protocol/fault"
)

// brought is how guests came up.
type brought struct {
	framesInjected  uint64
	clockNotStepped []string // guests whose clock could not be set, each with the reason
}

// bringUp makes the guests of every part and lets them run together, with their clocks
// set before any frame flows if that is asked for. On error guests may be left:
// tearDown ends them.
func (t *term) bringUp(ctx context.Context, life deploy.Life, parts []deploy.Part, stepClock bool, p progress) (b brought, err error) {
	p(&api.Event{Step: deploy.StepCreate})
	if b.framesInjected, err = t.c.deployer.Create(ctx, life, parts, p); err != nil {
		return b, err
	}
	if err := failpoint.Inject(ctx, failpoint.CoordinatorAfterCreate); err != nil {
		return b, err
	}
	if err := ctx.Err(); err != nil {
		return b, context.Cause(ctx)
	}
	nodes := partNodes(parts)
	if stepClock {
		p(&api.Event{Step: deploy.StepClocks})
		if b.clockNotStepped, err = t.c.deployer.StepClocks(ctx, life, nodes); err != nil {
			return b, err
		}
	}
	p(&api.Event{Step: deploy.StepRelease})
	return b, t.c.deployer.Release(ctx, life, nodes)
}

// tearDown ends the cluster's guests on the nodes after cause made a start or
// restart fail, and records how the cluster is left. It works as long as the
// term lasts, also when the caller has gone. It returns what the caller is told.
func (t *term) tearDown(life deploy.Life, id string, nodes []deploy.Node, cause error) error {
	if t.ctx.Err() != nil {
		// A successor finds the operation's record and cleans up.
		return fault.Wrap(fault.Unknown, errors.Join(errDeposed, cause), "")
	}
	t.c.log.Warn("guests are ended again", "cluster", life.Cluster, "epoch", life.Epoch, "reason", cause)
	state, reason := api.ClusterState_CLUSTER_STATE_STOPPED, cause.Error()
	destroyErr := t.c.deployer.Destroy(t.ctx, life, nodes)
	if destroyErr != nil {
		state = api.ClusterState_CLUSTER_STATE_BROKEN
		reason = fmt.Sprintf("%s; and afterwards: %s", cause, destroyErr)
	}
	err := t.end(life.Cluster, id, settle(state, reason))
	if destroyErr != nil || err != nil {
		// The class stays that of the cause.
		return fault.Wrap(fault.ClassOf(cause), errors.Join(cause, destroyErr, err), "")
	}
	return cause
}

// asked gives the error of an operation that the caller cancelled its class:
// what the nodes said then is only the echo.
func asked(ctx context.Context, err error) error {
	if err == nil || ctx.Err() == nil {
		return err
	}
	cause := context.Cause(ctx)
	if errors.Is(cause, errDeposed) {
		return fault.Wrap(fault.Unknown, cause, "")
	}
	return fault.Wrap(fault.Aborted, cause, "cancelled")
}

// start boots every guest of a cluster afresh.
func (t *term) start(ctx context.Context, req *api.StartClusterRequest, p progress) (*api.Event, error) {
	name := req.GetName()
	release, err := t.ops.begin(name, string(store.Start))
	if err != nil {
		return nil, err
	}
	defer release()
	c, err := t.c.store.Cluster(ctx, name)
	if err != nil {
		return nil, err
	}
	if c.State == api.ClusterState_CLUSTER_STATE_RUNNING {
		return nil, t.refuseStarted(ctx, c)
	}
	if newest := t.c.newestCheckpoint(ctx, name); newest != "" {
		p(&api.Event{Step: string(store.Start), Text: fmt.Sprintf(
			"cluster %s has checkpoints; start boots its guests afresh, `fermata restart %s` would go back to %s", name, name, newest)})
	}
	r := t.starting(req, p)
	if err := r.boot(ctx); err != nil {
		return nil, r.fail(asked(ctx, err))
	}
	return t.clusterEvent(ctx, name)
}

// refuseStarted is why a cluster that was started is not started again.
func (t *term) refuseStarted(ctx context.Context, c store.Cluster) error {
	shown, err := t.c.describeCluster(ctx, c.Name)
	if err != nil {
		return err
	}
	if shown.GetState() == api.ClusterState_CLUSTER_STATE_RUNNING {
		return fault.New(fault.Busy, "cluster %s is running", c.Name)
	}
	return fault.New(fault.Busy, "cluster %s was started, and now %s; %s", c.Name, shown.GetReason(), t.c.wayForward(ctx, c.Name))
}

func (t *term) starting(req *api.StartClusterRequest, p progress) *raising {
	return &raising{t: t, kind: store.Start, cluster: req.GetName(), request: req, p: p, begun: time.Now()}
}

// boot plans, checks and does what a start is asked for.
func (r *raising) boot(ctx context.Context) error {
	c, err := r.t.c.store.Cluster(ctx, r.cluster)
	if err != nil {
		return err
	}
	s, err := specOf(c)
	if err != nil {
		return err
	}
	if r.seen, err = r.t.survey(ctx); err != nil {
		return err
	}
	if r.op == "" {
		r.before = formerOf(c)
	}
	var tg target
	on := r.request.(*api.StartClusterRequest).GetOn()
	if tg.parts, tg.where, err = plan(s, r.seen, restriction{on: on, replaces: r.cluster}); err != nil {
		return err
	}
	if err := r.check(ctx, tg); err != nil {
		return err
	}
	if r.op == "" {
		r.noteUnreachable(c)
	}
	if _, err := r.raise(ctx, tg); err != nil {
		return err
	}
	if err := r.succeed(); err != nil {
		return err
	}
	r.t.c.log.Info("cluster runs", "cluster", r.cluster, "epoch", r.life.Epoch, "guests", len(s.Guests), "elapsed", time.Since(r.begun))
	return nil
}

func partNodes(parts []deploy.Part) []deploy.Node {
	nodes := make([]deploy.Node, 0, len(parts))
	for _, p := range parts {
		nodes = append(nodes, p.Node)
	}
	return nodes
}

// stop ends every guest of a cluster. Once begun it goes on when the caller
// has gone: a cluster stopped by half is of no use to anybody.
func (t *term) stop(ctx context.Context, req *api.StopClusterRequest, p progress) (*api.Event, error) {
	begun := time.Now()
	name := req.GetName()
	release, err := t.ops.begin(name, string(store.Stop))
	if err != nil {
		return nil, err
	}
	defer release()
	c, err := t.c.store.Cluster(ctx, name)
	if err != nil {
		return nil, err
	}
	id, err := t.begin(ctx, store.Stop, name, 0, nil, func(c *store.Cluster) error {
		c.State, c.Reason = api.ClusterState_CLUSTER_STATE_STOPPING, ""
		return nil
	})
	if err != nil {
		return nil, err
	}
	p(&api.Event{Step: deploy.StepDestroy})
	if err = failpoint.Inject(t.ctx, failpoint.CoordinatorAfterRecord); err == nil {
		err = t.endGuests(t.ctx, t.life(name, c.Epoch), c)
	}
	if err == nil {
		err = failpoint.Inject(t.ctx, failpoint.CoordinatorAfterDestroy)
	}
	state, reason := api.ClusterState_CLUSTER_STATE_STOPPED, ""
	if err != nil {
		state, reason = api.ClusterState_CLUSTER_STATE_BROKEN, err.Error()
	}
	if t.ctx.Err() != nil {
		return nil, fault.Wrap(fault.Unknown, errDeposed, "")
	}
	if err == nil {
		err = failpoint.Inject(t.ctx, failpoint.CoordinatorBeforeEnd)
	}
	if endErr := t.end(name, id, settle(state, reason)); endErr != nil {
		return nil, errors.Join(err, endErr)
	}
	if err != nil {
		return nil, err
	}
	t.c.log.Info("cluster stopped", "cluster", name, "elapsed", time.Since(begun))
	return t.clusterEvent(t.ctx, name)
}

// endGuests ends the guests of a cluster wherever they may be: where its record
// says, and on every node that is alive.
func (t *term) endGuests(ctx context.Context, life deploy.Life, c store.Cluster) error {
	infos, err := t.c.store.Nodes(ctx)
	if err != nil {
		return fmt.Errorf("list nodes: %w", err)
	}
	seen := &survey{}
	for _, info := range infos {
		seen.nodes = append(seen.nodes, &nodeView{info: info, alive: info.GetAlive()})
	}
	assigned := slices.Collect(maps.Values(c.Assignments))
	targets, unknown := seen.named(assigned)
	for _, v := range seen.nodes {
		if v.alive && !slices.Contains(targets, v) {
			targets = append(targets, v)
		}
	}
	return errors.Join(unknown, t.c.deployer.Destroy(ctx, life, nodesOf(targets)))
}

// clusterEvent is the last event of an operation whose result is the cluster.
func (t *term) clusterEvent(ctx context.Context, name string) (*api.Event, error) {
	c, err := t.c.describeCluster(context.WithoutCancel(ctx), name)
	if err != nil {
		return nil, err
	}
	return &api.Event{Result: &api.Event_Cluster{Cluster: c}}, nil
}
