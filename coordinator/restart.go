package coordinator

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"fermata/coordinator/record"
	"fermata/coordinator/spec"
	"fermata/coordinator/store"
	"fermata/imageio/manifest"
	"fermata/protocol/api"
	"fermata/protocol/fault"
)

// restart is one restart while it is made.
type restart struct {
	raising
	req     *api.RestartRequest
	skipped []string // newer checkpoints found damaged
}

// source is a checkpoint that looks intact, and where its guests would go.
type source struct {
	manifest *manifest.Manifest
	spec     *spec.Spec
	target   target
}

// restart puts a cluster back from a checkpoint. It needs nothing but the
// repository: a cluster that the store does not know is made anew from the
// specification in the manifest.
func (t *term) restart(ctx context.Context, req *api.RestartRequest, p progress) (*api.Event, error) {
	epoch, err := parseFrom(req.GetCluster(), req.GetFrom())
	if err != nil {
		return nil, err
	}
	endUse, err := t.ops.usePacks(describe(string(store.Restart), req.GetCluster()))
	if err != nil {
		return nil, err
	}
	defer endUse()
	release, err := t.ops.begin(req.GetCluster(), string(store.Restart))
	if err != nil {
		return nil, err
	}
	defer release()
	report, err := t.restarting(req, p).run(ctx, epoch, 0)
	if err != nil {
		return nil, err
	}
	return &api.Event{Result: &api.Event_Restart{Restart: report}}, nil
}

func (t *term) restarting(req *api.RestartRequest, p progress) *restart {
	return &restart{req: req, raising: raising{
		t: t, kind: store.Restart, cluster: req.GetCluster(), request: req, stepClock: req.GetStepClock(), p: p, begun: time.Now(),
	}}
}

// run tries the checkpoint of an epoch or, when that is zero, all of them from
// the newest on, until one proves intact. Of several it leaves out those newer than
// newest, unless that is zero.
func (r *restart) run(ctx context.Context, epoch, newest uint64) (*api.RestartReport, error) {
	report, err := r.attempt(ctx, epoch, newest)
	if err != nil {
		return nil, r.fail(asked(ctx, err))
	}
	return report, nil
}

func (r *restart) attempt(ctx context.Context, epoch, newest uint64) (*api.RestartReport, error) {
	candidates, err := r.candidates(ctx, epoch, newest)
	if err != nil {
		return nil, err
	}
	if r.seen, err = r.t.survey(ctx); err != nil {
		return nil, err
	}
	if err := r.checkIdle(ctx); err != nil {
		return nil, err
	}
	var lastDamage error
	for _, candidate := range candidates {
		report, err := r.try(ctx, candidate)
		if err == nil {
			return report, nil
		}
		if epoch != 0 || fault.ClassOf(err) != fault.Corrupt || ctx.Err() != nil {
			return nil, r.withSkipped(err)
		}
		id := record.ID(r.req.GetCluster(), candidate)
		r.skipped = append(r.skipped, fmt.Sprintf("%s: %s", id, oneLine(err)))
		r.t.c.log.Warn("checkpoint is damaged, going on with the one before", "cluster", r.req.GetCluster(), "epoch", candidate, "error", err)
		r.p(&api.Event{Step: string(store.Restart), Text: fmt.Sprintf("%s is damaged, going on with the one before: %s", id, oneLine(err))})
		lastDamage = err
	}
	return nil, r.withSkipped(fault.Wrap(fault.Corrupt, lastDamage, "no intact checkpoint of cluster %s among %d", r.req.GetCluster(), len(candidates)))
}

// withSkipped adds to an error the checkpoints that were passed over before it.
func (r *restart) withSkipped(err error) error {
	if len(r.skipped) == 0 {
		return err
	}
	return fmt.Errorf("%w (damaged and skipped: %s)", err, strings.Join(r.skipped, "; "))
}

// candidates lists the epochs to try, in order.
func (r *restart) candidates(ctx context.Context, epoch, newest uint64) ([]uint64, error) {
	if epoch != 0 {
		return []uint64{epoch}, nil
	}
	// Which checkpoint is the newest should not change afterwards.
	if err := r.t.settle(ctx, r.req.GetCluster()); err != nil {
		r.t.c.log.Warn("restart does not wait for a round that is not settled", "cluster", r.req.GetCluster(), "error", err)
	}
	entries, err := r.t.c.storage(ctx).Checkpoints(ctx, r.req.GetCluster())
	if err != nil {
		return nil, fmt.Errorf("list checkpoints: %w", RepositoryFault(err))
	}
	if len(entries) == 0 {
		return nil, fault.New(fault.NotFound, "cluster %s has no checkpoint", r.req.GetCluster())
	}
	var epochs []uint64
	for _, e := range entries {
		if newest == 0 || e.Epoch <= newest {
			epochs = append(epochs, e.Epoch)
		}
	}
	slices.SortFunc(epochs, func(a, b uint64) int { return cmp.Compare(b, a) })
	return epochs, nil
}

// checkIdle refuses a cluster that runs, unless it is to be rolled back. What
// counts is what the nodes say: the store may know nothing of a cluster that
// runs, and may believe in one whose guests are long dead.
func (r *restart) checkIdle(ctx context.Context) error {
	if r.req.GetRollback() || r.op != "" {
		return nil
	}
	name := r.req.GetCluster()
	c, err := r.t.c.store.Cluster(ctx, name)
	switch {
	case err == nil && c.State != api.ClusterState_CLUSTER_STATE_RUNNING:
		return nil // guests of a broken cluster are leftovers
	case err != nil && !errors.Is(err, store.ErrNotFound):
		return err
	}
	for _, g := range r.seen.guests(name) {
		if mayRun(g) {
			return fault.New(fault.Busy, "cluster %s is running (guest %s on node %s); use rollback", name, g.GetName(), g.GetNode())
		}
	}
	for _, node := range c.Assignments {
		if v := r.seen.find(node); v != nil && v.alive && !v.answered {
			return fault.New(fault.Busy, "cluster %s may be running: node %s does not answer but holds its lease; use rollback", name, node)
		}
	}
	return nil
}

// maxRaises is how often a restart is tried that has ended guests and then met a node
// that was lost: the others may have room.
const maxRaises = 3

// try restarts from one checkpoint. On an error of class corrupt nothing of the
// attempt is left on the nodes, and another may follow.
func (r *restart) try(ctx context.Context, epoch uint64) (*api.RestartReport, error) {
	src, err := r.inspect(ctx, epoch)
	if err != nil {
		return nil, err
	}
	if err := r.check(ctx, src.target); err != nil {
		return nil, fmt.Errorf("restart from %s: %w", record.ID(r.cluster, epoch), err)
	}
	if r.req.GetDryRun() {
		return r.report(src), nil
	}
	if err := r.fitRecord(ctx, src); err != nil {
		return nil, err
	}
	up, err := r.raise(ctx, src.target)
	for n := 1; n < maxRaises && isUncertain(err) && r.replaces() && r.t.ctx.Err() == nil; n++ {
		again, lookErr := r.lookAgain(epoch)
		if lookErr != nil {
			return nil, errors.Join(err, lookErr)
		}
		r.t.c.log.Warn("restart begins again after its guests were ended", "cluster", r.cluster, "checkpoint", record.ID(r.cluster, epoch), "error", err)
		src = again
		up, err = r.raise(r.t.ctx, src.target)
	}
	if err != nil {
		err = fmt.Errorf("restart from %s: %w", record.ID(r.cluster, epoch), err)
		if fault.ClassOf(err) == fault.Corrupt && r.op != "" {
			err = errors.Join(err, r.t.c.deployer.Destroy(r.t.ctx, r.life, partNodes(src.target.parts)))
		}
		return nil, err
	}
	if err := r.succeed(); err != nil {
		return nil, err
	}
	report := r.report(src)
	report.RestartUs, report.FramesInjected = uint64(time.Since(r.begun).Microseconds()), up.framesInjected
	report.ClockStepped, report.ClockNotStepped = r.stepClock, up.clockNotStepped
	r.t.c.log.Info("cluster restarted", "cluster", r.cluster, "epoch", r.life.Epoch, "checkpoint", report.CheckpointId,
		"frames-injected", up.framesInjected, "elapsed", time.Since(r.begun))
	return report, nil
}

func (r *restart) report(src *source) *api.RestartReport {
	return &api.RestartReport{
		CheckpointId: record.ID(r.cluster, src.target.checkpoint), DryRun: r.req.GetDryRun(),
		Skipped: r.skipped, Plan: assignments(src), NotEnded: r.notEnded,
	}
}

// lookAgain plans anew with the nodes that answer now.
func (r *restart) lookAgain(epoch uint64) (src *source, err error) {
	seen, err := r.t.survey(r.t.ctx)
	if err != nil {
		return nil, err
	}
	r.seen = seen
	return r.inspect(r.t.ctx, epoch)
}

// inspect looks at what is cheap to see of a checkpoint, and plans. It changes
// nothing.
func (r *restart) inspect(ctx context.Context, epoch uint64) (*source, error) {
	name := r.req.GetCluster()
	m, err := r.t.c.intactManifest(ctx, name, epoch)
	if err != nil {
		return nil, err
	}
	s, err := spec.Decode("specification of "+record.ID(name, epoch), m.Spec)
	if err != nil {
		return nil, fault.Wrap(fault.Corrupt, err, "")
	}
	if err := r.checkMachines(ctx, s); err != nil {
		return nil, err
	}
	if err := r.checkClocks(s); err != nil {
		return nil, err
	}
	tg := target{checkpoint: epoch}
	tg.parts, tg.where, err = plan(s, r.seen, restriction{on: r.req.GetOn(), nodes: r.req.GetNodes(), replaces: name})
	if err != nil {
		return nil, err
	}
	images := make(map[string]*api.GuestImage, len(m.Guests))
	for _, g := range m.Guests {
		images[g.Name] = record.Image(g)
	}
	for i := range tg.parts {
		for _, g := range tg.parts[i].Guests {
			image := images[g.GetName()]
			if image == nil {
				return nil, fault.New(fault.Corrupt, "checkpoint %s has no image of guest %s", record.ID(name, epoch), g.GetName())
			}
			tg.parts[i].Images = append(tg.parts[i].Images, image)
		}
		tg.parts[i].Packs = m.Packs
	}
	return &source{manifest: m, spec: s, target: tg}, nil
}

// checkClocks refuses to step clocks of guests that cannot be told.
func (r *restart) checkClocks(s *spec.Spec) error {
	if !r.req.GetStepClock() {
		return nil
	}
	var mute []string
	for _, g := range s.Guests {
		if !g.GuestAgent {
			mute = append(mute, g.Name)
		}
	}
	if len(mute) == 0 {
		return nil
	}
	return fault.New(fault.Invalid, "clocks are stepped by QEMU's guest agent, which %s did not say to run (guest_agent: true) when the checkpoint was taken; without it have chrony (makestep 1 -1) or phc2sys set the clock in the guest",
		strings.Join(mute, ", "))
}

// checkMachines compares the checkpoint's machines with those that the cluster,
// if it is known, is specified with.
func (r *restart) checkMachines(ctx context.Context, then *spec.Spec) error {
	c, err := r.t.c.store.Cluster(ctx, r.req.GetCluster())
	switch {
	case errors.Is(err, store.ErrNotFound):
		return nil
	case err != nil:
		return err
	}
	now, err := spec.Decode("specification of cluster "+c.Name, c.Spec)
	if err != nil {
		return err
	}
	return sameMachines(now, then)
}

// fitRecord makes the cluster's record fit the checkpoint. Where that takes a new record,
// there is no way back to the one before.
func (r *restart) fitRecord(ctx context.Context, src *source) error {
	c, err := r.t.c.store.Cluster(ctx, r.cluster)
	known := err == nil
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return err
	}
	if r.op == "" {
		r.noteUnreachable(c)
	}
	if known && bytes.Equal(c.Spec, src.manifest.Spec) {
		if r.op == "" {
			r.before = formerOf(c)
		}
		return nil
	}
	r.before = nil
	if !known {
		return r.t.storeCluster(ctx, r.cluster, src.manifest.Spec, time.Now())
	}
	if r.op != "" {
		// An older checkpoint of a cluster that had another specification.
		if err := r.t.end(r.cluster, r.op, settle(api.ClusterState_CLUSTER_STATE_STOPPED, "")); err != nil {
			return err
		}
		r.op = ""
	}
	r.t.c.log.Warn("the cluster's specification becomes that of the checkpoint", "cluster", r.cluster, "epoch", src.manifest.Epoch)
	if err := r.t.surely(ctx, func(ctx context.Context) error { return r.t.c.store.DeleteCluster(ctx, r.t.fence, r.cluster) }); err != nil {
		return err
	}
	return r.t.storeCluster(ctx, r.cluster, src.manifest.Spec, c.Created)
}

func assignments(src *source) []*api.Assignment {
	var plan []*api.Assignment
	for _, g := range src.spec.GuestSpecs() {
		plan = append(plan, &api.Assignment{
			Guest: g.GetName(), Node: src.target.where[g.GetName()], MemoryBytes: g.GetMemoryBytes(), Vcpus: g.GetVcpus(),
		})
	}
	return plan
}

// oneLine makes an error fit one line of a report.
func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }
