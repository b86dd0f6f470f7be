package coordinator

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"fermata/coordinator/deploy"
	"fermata/coordinator/record"
	"fermata/coordinator/rounds"
	"fermata/coordinator/spec"
	"fermata/coordinator/store"
	"fermata/protocol/api"
	"fermata/protocol/fault"
	"fermata/protocol/round"
)

// checkpoint runs one round. The end of ctx aborts it; the guests run on.
func (t *term) checkpoint(ctx context.Context, req *api.CheckpointRequest, p progress) (*api.Event, error) {
	begun := time.Now()
	name := req.GetCluster()
	endUse, err := t.ops.usePacks(describe(string(store.Checkpoint), name))
	if err != nil {
		return nil, err
	}
	defer endUse()
	release, err := t.ops.begin(name, string(store.Checkpoint))
	if err != nil {
		return nil, err
	}
	defer release()
	ctx, forget := t.cancellable(ctx, name)
	defer forget()
	c, err := t.c.store.Cluster(ctx, name)
	if err != nil {
		return nil, err
	}
	switch c.State {
	case api.ClusterState_CLUSTER_STATE_RUNNING:
	case api.ClusterState_CLUSTER_STATE_STARTING, api.ClusterState_CLUSTER_STATE_STOPPING:
		return nil, fault.New(fault.Busy, "cluster %s is %s", name, stateWord(c.State))
	default:
		return nil, fault.New(fault.Invalid, "cluster %s is %s; only running clusters can be checkpointed", name, stateWord(c.State))
	}
	if err := t.refuseEnded(ctx, c); err != nil {
		return nil, err
	}
	s, err := specOf(c)
	if err != nil {
		return nil, err
	}
	options := round.Options{
		PauseBudget: s.Policies.PauseBudget, DiscardChannels: req.GetDiscardChannels(),
		Cut: cutFor(req, s), SkewBudget: s.Policies.SkewBudget,
		Mode: round.Mode(req.GetMode()), Full: req.GetFull(), Audit: req.GetAudit(),
	}
	if req.GetMode() < 0 || req.GetMode() > api.CaptureMode(round.ModeStop) {
		return nil, fault.New(fault.Invalid, "capture mode %d is unknown", req.GetMode())
	}
	if _, known := api.Cut_name[int32(req.GetCut())]; !known {
		return nil, fault.New(fault.Invalid, "cut %d is unknown", req.GetCut())
	}
	if err := options.Check(); err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "")
	}
	members, err := t.members(ctx, c)
	if err != nil {
		return nil, err
	}
	if err := t.settleBefore(ctx, name); err != nil {
		return nil, err
	}
	epoch, err := t.nextEpoch(ctx, name, nil)
	if err != nil {
		return nil, err
	}
	op, err := t.begin(ctx, store.Checkpoint, name, epoch, nil, nil)
	if err != nil {
		return nil, err
	}
	id := round.ID{Cluster: name, Epoch: round.Epoch(epoch)}
	skew := options.SkewBudget
	if options.Cut != round.CutColoured {
		skew = 0 // at a barrier all stand still at one instant, whatever the clocks say
	}
	verdict := &judge{repo: t.c.repo, id: id, skew: skew, taken: record.Taken{
		Cluster: name, Epoch: epoch, Label: req.GetLabel(), Spec: c.Spec, Fence: t.fence.API(),
		ChannelsRecorded: !req.GetDiscardChannels(), Cut: options.Cut, Networks: networksOf(s), Bypassed: bypassedOf(s), OffFabric: offFabric(s), Begun: begun,
	}}
	err = t.drive.Run(t.ctx, ctx, rounds.Job{
		Round: id, Fence: t.fence.API(), Members: members,
		Options:    options,
		Lost:       t.lostNode,
		CheckImage: func(image *api.NodeImage) error { return record.CheckImage(image, guestsOn(c, image.GetNode())) },
		Ledger:     &ledger{store: t.c.store, fence: t.fence, id: op, aside: t.noteAside},
		Judge:      verdict,
		Progress:   p,
	})
	if err != nil {
		return nil, err
	}
	done, err := record.Checkpoint(verdict.manifest)
	if err != nil {
		return nil, fault.Wrap(fault.Internal, err, "")
	}
	t.c.log.Info("checkpoint taken", "cluster", name, "epoch", epoch, "resumed", time.Duration(done.ResumedUs)*time.Microsecond,
		"stored-bytes", done.StoredBytes, "elapsed", time.Since(begun))
	return &api.Event{Result: &api.Event_Checkpoint{Checkpoint: done}}, nil
}

// cancellable is ctx, which cancelCheckpoint also ends until forget is called.
//
// Preconditions: the caller has claimed the cluster.
func (t *term) cancellable(ctx context.Context, cluster string) (_ context.Context, forget func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.cancels[cluster] = cancel
	return ctx, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.cancels, cluster)
		cancel(nil)
	}
}

// cancelCheckpoint has the round that runs on a cluster aborted, if that is still
// possible. Its own caller is told how it ended.
func (t *term) cancelCheckpoint(cluster string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	cancel := t.cancels[cluster]
	if cancel == nil {
		return fault.New(fault.NotFound, "no checkpoint of cluster %s is in progress", cluster)
	}
	cancel(fault.New(fault.Aborted, "at the operator's request"))
	return nil
}

// members are the nodes with guests of the cluster. A node whose lease has run
// out is refused at once: the round could only wait for it.
func (t *term) members(ctx context.Context, c store.Cluster) ([]deploy.Node, error) {
	names := slices.Compact(slices.Sorted(maps.Values(c.Assignments)))
	infos, err := t.registeredOf(ctx, names)
	if err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	var members []deploy.Node
	for _, name := range names {
		i := slices.IndexFunc(infos, func(n *api.NodeInfo) bool { return n.GetName() == name })
		switch {
		case i < 0:
			return nil, fault.New(fault.Unavailable, "node %s, which has guests %s, is not registered", name, strings.Join(guestsOn(c, name), ", "))
		case !infos[i].GetAlive():
			return nil, fault.New(fault.Unavailable, "node %s, which has guests %s, has not been heard of since %s",
				name, strings.Join(guestsOn(c, name), ", "), time.Unix(0, infos[i].GetLastSeenUnixNs()).UTC().Format(time.RFC3339))
		}
		members = append(members, nodeOf(infos[i]))
	}
	if len(members) == 0 {
		return nil, fault.New(fault.Internal, "cluster %s runs but has no nodes", c.Name)
	}
	return members, nil
}

// guestsOn lists the guests that the cluster's record assigns to a node.
func guestsOn(c store.Cluster, node string) []string {
	var guests []string
	for guest, on := range c.Assignments {
		if on == node {
			guests = append(guests, guest)
		}
	}
	slices.Sort(guests)
	return guests
}

// cutFor is the kind of cut asked for, or the one that suits the cluster: frames that
// go past the fabric carry no colour.
func cutFor(req *api.CheckpointRequest, s *spec.Spec) round.Cut {
	if req.Cut != nil {
		return round.Cut(req.GetCut())
	}
	if len(offFabric(s)) > 0 {
		return round.CutBarrier
	}
	return round.CutColoured
}

// networksOf are the cluster's networks on the fabric.
func networksOf(s *spec.Spec) (names []string) {
	for _, n := range s.Networks {
		if n.Bridge == "" {
			names = append(names, n.Name)
		}
	}
	return names
}

// bypassedOf are the cluster's networks that are bridges of the nodes.
func bypassedOf(s *spec.Spec) (names []string) {
	for _, n := range s.Networks {
		if n.Bridge != "" {
			names = append(names, n.Name)
		}
	}
	return names
}

// offFabric are the guests that are, or may be, on networks that are not the fabric's.
func offFabric(s *spec.Spec) (names []string) {
	for _, g := range s.GuestSpecs() {
		if g.GetAdopt() != "" || slices.ContainsFunc(g.GetNics(), func(n *api.NICSpec) bool { return n.GetBridge() != "" }) {
			names = append(names, g.GetName())
		}
	}
	return names
}
