package coordinator

import (
	"context"
	"errors"
	"fmt"

	"fermata/coordinator/record"
	"fermata/imageio/repository"
	"fermata/protocol/fault"
)

// hold keeps the packs of a checkpoint from whoever prunes, until the restart that is
// about to read them has ended: those who prune may be on any node and ask no coordinator.
//
// On error the checkpoint has just been deleted. A repository that cannot take the claim,
// because it is full or can only be read, does not keep a cluster from its restart.
func (r *raising) hold(ctx context.Context, checkpoint uint64) error {
	if checkpoint == 0 {
		return nil
	}
	ctx, cancel := r.t.c.glance(ctx)
	defer cancel()
	m, err := r.t.c.storage(ctx).Manifest(ctx, r.cluster, checkpoint)
	if err == nil {
		err = r.t.c.storage(ctx).Hold(ctx, m, r.life.Epoch)
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, repository.ErrNotFound):
		return fmt.Errorf("checkpoint %s: %w", record.ID(r.cluster, checkpoint), RepositoryFault(err))
	}
	r.t.c.log.Warn("restart goes on without a claim on its checkpoint: do not prune until it is done",
		"cluster", r.cluster, "checkpoint", record.ID(r.cluster, checkpoint), "error", err)
	return nil
}

// letGo ends what hold began. What it cannot end, the next deletion of a checkpoint does.
func (r *raising) letGo() {
	ctx, cancel := r.t.c.glance(context.WithoutCancel(r.t.ctx))
	defer cancel()
	if err := r.t.c.storage(ctx).Release(ctx, r.cluster, r.life.Epoch); err != nil {
		r.t.c.log.Warn("claim of a restart on its checkpoint stays", "cluster", r.cluster, "epoch", r.life.Epoch, "error", err)
	}
}

// own makes sure that no other installation uses the repository: their clusters of one
// name would be mixed. Installations are told apart by their authority; one in plain text
// has none, and stays on one machine.
func (c *Coordinator) own(ctx context.Context) error {
	if c.cfg.Identity == nil {
		return nil
	}
	ctx, cancel := c.glance(ctx)
	defer cancel()
	err := c.storage(ctx).Own(ctx, c.cfg.Identity.Installation(), c.advertised())
	var other *repository.OwnedError
	switch {
	case errors.As(err, &other):
		return fault.New(fault.Mismatch, "repository %s belongs to installation %s; this one is %.16s: give each installation a repository of its own, or, once the other no longer uses it, release it with fermata repo release --repository %s",
			c.cfg.Repository.Dir, other.Owner, c.cfg.Identity.Installation(), c.cfg.Repository.Dir)
	case errors.Is(err, repository.ErrCorrupt), errors.Is(err, repository.ErrNewerFormat):
		return RepositoryFault(err)
	case err != nil: // full, or read-only: nothing can be mixed that is not already
		c.log.Warn("the repository cannot be marked as this installation's", "repository", c.cfg.Repository.Dir, "error", err)
	}
	if err := c.storage(ctx).KeepReserve(ctx); err != nil {
		c.log.Warn("the repository has no reserve: a full file system may keep checkpoints from being deleted", "repository", c.cfg.Repository.Dir, "error", err)
	}
	return nil
}
