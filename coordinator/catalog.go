package coordinator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"fermata/coordinator/record"
	"fermata/coordinator/store"
	"fermata/imageio/manifest"
	"fermata/imageio/object"
	"fermata/imageio/repository"
	"fermata/protocol/api"
	"fermata/protocol/fault"
)

// stepVerify is the one step of a verification, in events.
const stepVerify = "verify"

// listCheckpoints lists the checkpoints of one cluster, or of all, oldest
// first. One whose manifest cannot be read is listed with what is wrong.
func (c *Coordinator) listCheckpoints(ctx context.Context, cluster string) (*api.ListCheckpointsReply, error) {
	clusters := []string{cluster}
	if cluster == "" {
		var err error
		if clusters, err = c.storage(ctx).Clusters(ctx); err != nil {
			return nil, fmt.Errorf("list checkpoints: %w", RepositoryFault(err))
		}
	}
	reply := &api.ListCheckpointsReply{}
	for _, name := range clusters {
		entries, err := c.storage(ctx).Checkpoints(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("list checkpoints of cluster %s: %w", name, RepositoryFault(err))
		}
		for _, e := range entries {
			reply.Checkpoints = append(reply.Checkpoints, entryOf(name, e))
		}
	}
	if cluster != "" && len(reply.Checkpoints) == 0 {
		if err := c.requireCluster(ctx, cluster); err != nil {
			return nil, err
		}
	}
	slices.SortStableFunc(reply.Checkpoints, func(a, b *api.Checkpoint) int {
		if a.GetCluster() == b.GetCluster() {
			return cmp.Compare(a.GetEpoch(), b.GetEpoch())
		}
		return cmp.Compare(a.GetCreatedUnixNs(), b.GetCreatedUnixNs())
	})
	return reply, nil
}

func entryOf(cluster string, e repository.Entry) *api.Checkpoint {
	err := e.Err
	if err == nil {
		var out *api.Checkpoint
		if out, err = record.Checkpoint(e.Manifest); err == nil {
			if e.Damage != nil {
				out.Damage = oneLine(errors.New(e.Damage.String()))
			}
			return out
		}
	}
	return &api.Checkpoint{
		Id: record.ID(cluster, e.Epoch), Cluster: cluster, Epoch: e.Epoch, Damage: oneLine(err),
	}
}

// showCheckpoint is one checkpoint as it was reported when it was taken, with
// its distinct pages counted. One whose manifest or packs are damaged says so.
func (c *Coordinator) showCheckpoint(ctx context.Context, cluster string, epoch uint64) (*api.Checkpoint, error) {
	m, err := c.storage(ctx).Manifest(ctx, cluster, epoch)
	switch {
	case errors.Is(err, repository.ErrCorrupt):
		return entryOf(cluster, repository.Entry{Epoch: epoch, Err: err}), nil
	case err != nil:
		return nil, fmt.Errorf("show checkpoint %s: %w", record.ID(cluster, epoch), RepositoryFault(err))
	}
	known, err := c.storage(ctx).KnownDamage(ctx, cluster, epoch)
	if err != nil {
		return nil, fmt.Errorf("show checkpoint %s: %w", record.ID(cluster, epoch), RepositoryFault(err))
	}
	out := entryOf(cluster, repository.Entry{Epoch: epoch, Manifest: m, Damage: known})
	switch out.UniqueBytes, err = uniqueBytes(ctx, c.storage(ctx), m); {
	case errors.Is(err, repository.ErrCorrupt):
		if known == nil {
			out.Damage = oneLine(err)
		}
	case err != nil:
		return nil, fmt.Errorf("show checkpoint %s: %w", record.ID(cluster, epoch), RepositoryFault(err))
	}
	return out, nil
}

// intactManifest reads the manifest of a checkpoint and looks whether its packs
// are there and describe themselves, or others have what they held. It does not read the
// pages, but refuses a checkpoint of which a verification has found pages lost.
func (c *Coordinator) intactManifest(ctx context.Context, cluster string, epoch uint64) (*manifest.Manifest, error) {
	m, err := c.storage(ctx).Manifest(ctx, cluster, epoch)
	if err == nil {
		err = c.storage(ctx).CheckReadable(ctx, m)
	}
	var known *repository.KnownDamage
	if err == nil {
		known, err = c.storage(ctx).KnownDamage(ctx, cluster, epoch)
	}
	if known != nil {
		id := record.ID(cluster, epoch)
		return nil, fault.New(fault.Corrupt, "checkpoint %s: %s (once it is repaired, verify it: fermata checkpoints verify %s)", id, oneLine(errors.New(known.String())), id)
	}
	if err != nil {
		return nil, fmt.Errorf("checkpoint %s: %w", record.ID(cluster, epoch), RepositoryFault(err))
	}
	return m, nil
}

// uniqueBytes counts the distinct pages of memory and disks in a checkpoint.
func uniqueBytes(ctx context.Context, repo *repository.Repository, m *manifest.Manifest) (uint64, error) {
	reader, err := repo.NewReader(ctx, m.Packs)
	if err != nil {
		return 0, err
	}
	var refs []repository.Ref
	for _, o := range record.Contents(m, manifest.KindMemory, manifest.KindDisk) {
		refs = append(refs, repository.RefOf(o))
	}
	pages, err := reader.UniquePages(ctx, refs)
	return pages * object.PageBytes, err
}

// verifyCheckpoint reads back and verifies every byte of a checkpoint. Damage
// is in the report and no error.
func (t *term) verifyCheckpoint(ctx context.Context, cluster string, epoch uint64, p progress) (*api.Event, error) {
	id := record.ID(cluster, epoch)
	end, err := t.ops.usePacks("verification of checkpoint " + id)
	if err != nil {
		return nil, err
	}
	defer end()
	p(&api.Event{Step: stepVerify})
	out := &api.VerifyReport{CheckpointId: id}
	m, err := t.c.storage(ctx).Manifest(ctx, cluster, epoch)
	switch {
	case errors.Is(err, repository.ErrCorrupt):
		out.Damage = append(out.Damage, &api.Damage{Object: "manifest " + id, Reason: oneLine(err)})
		return &api.Event{Result: &api.Event_Verify{Verify: out}}, nil
	case err != nil:
		return nil, fmt.Errorf("verify checkpoint %s: %w", id, RepositoryFault(err))
	}
	report, err := t.c.storage(ctx).Verify(ctx, m, repository.VerifyOptions{Progress: func(done, total int64) {
		p(&api.Event{Step: stepVerify, DoneBytes: uint64(done), TotalBytes: uint64(total)})
	}})
	if err != nil {
		return nil, asked(ctx, RepositoryFault(err))
	}
	out.Bytes, out.Unrecorded = report.Bytes, report.Unrecorded
	for _, d := range report.Damage {
		out.Damage = append(out.Damage, &api.Damage{Object: d.Object, Reason: d.Reason, Guests: d.Guests})
	}
	if out.Unrecorded != "" {
		t.c.log.Warn("damage not recorded in the repository", "cluster", cluster, "epoch", epoch, "reason", out.Unrecorded)
	}
	if len(out.Damage) > 0 {
		t.c.log.Error("checkpoint is damaged", "cluster", cluster, "epoch", epoch, "objects", len(out.Damage), "first", out.Damage[0].Object)
	}
	return &api.Event{Result: &api.Event_Verify{Verify: out}}, nil
}

// deleteCheckpoint takes a checkpoint back and frees what only it needed.
func (t *term) deleteCheckpoint(ctx context.Context, cluster string, epoch uint64) (*api.DeleteCheckpointReply, error) {
	id := record.ID(cluster, epoch)
	end, err := t.ops.beginDeletion(id)
	if err != nil {
		return nil, err
	}
	defer end()
	freed, err := t.c.storage(ctx).Delete(ctx, cluster, epoch)
	if err != nil {
		return nil, asked(ctx, RepositoryFault(err))
	}
	more, err := t.sweepAbandoned(ctx)
	if err != nil {
		return nil, fmt.Errorf("checkpoint %s is deleted, but not all its space is free: %w", id, err)
	}
	if err := t.c.storage(ctx).KeepReserve(ctx); err != nil {
		t.c.log.Warn("the repository has no reserve", "error", err)
	}
	t.c.log.Info("checkpoint deleted", "cluster", cluster, "epoch", epoch, "freed-bytes", freed+more)
	return &api.DeleteCheckpointReply{FreedBytes: freed + more}, nil
}

// sweepAbandoned frees the packs of rounds that nobody will ever end, because
// the store that knew of them was lost. A round that some coordinator drives is
// in the store before its first pack is written, so asking the store after the
// repository misses none.
func (t *term) sweepAbandoned(ctx context.Context) (freed uint64, err error) {
	report, err := t.c.storage(ctx).Sweep(ctx)
	if err != nil {
		return 0, RepositoryFault(err)
	}
	freed = report.FreedBytes
	ops, err := t.c.store.Operations(ctx)
	if err != nil {
		return freed, err
	}
	abandoned := 0
	for _, r := range report.InFlight {
		if r.Copied {
			continue
		}
		driven := slices.ContainsFunc(ops, func(op store.Operation) bool { return op.Cluster == r.Cluster && op.Epoch == r.Epoch })
		if driven {
			continue
		}
		err := t.c.storage(ctx).Abort(ctx, r.Cluster, r.Epoch, "abandoned: no coordinator knows of the round any more")
		if err != nil && !errors.Is(err, repository.ErrOutcomeDecided) {
			return freed, RepositoryFault(err)
		}
		t.c.log.Warn("abandoned round aborted", "cluster", r.Cluster, "epoch", r.Epoch)
		abandoned++
	}
	if abandoned == 0 {
		return freed, nil
	}
	report, err = t.c.storage(ctx).Sweep(ctx)
	return freed + report.FreedBytes, RepositoryFault(err)
}
