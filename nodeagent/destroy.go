package nodeagent

import (
	"context"
	"errors"
	"fmt"

	"fermata/nodeagent/journal"
	"fermata/protocol/api"
)

// DestroyGuests ends every guest of the cluster on this node and removes what
// they left: processes, memory, files, ports. It is idempotent, and also cleans
// up after guests that were never completed.
func (a *Agent) DestroyGuests(ctx context.Context, req *api.DestroyGuestsRequest) error {
	c, err := a.fence(req.GetCluster(), req.GetFence())
	if err != nil {
		return err
	}
	return errors.Join(c.endRound(ctx), a.destroy(ctx, c))
}

func (a *Agent) destroy(ctx context.Context, c *cluster) error {
	c.op.Lock()
	defer c.op.Unlock()
	if err := a.update(c, func(rec *journal.Cluster) { rec.Released = false }); err != nil {
		return err
	}
	var errs []error
	for _, g := range c.list() {
		if err := a.destroyGuest(ctx, c, g); err != nil {
			errs = append(errs, fmt.Errorf("destroy guest %s: %w", g.spec.Name, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return a.fabric.RemoveCluster(c.name)
}

// destroyGuest keeps the journal entry until nothing of the guest is left.
func (a *Agent) destroyGuest(ctx context.Context, c *cluster, g *guest) error {
	if err := g.machine.Kill(ctx); err != nil {
		return err
	}
	for _, n := range g.nics {
		if err := n.port.Detach(); err != nil {
			return err
		}
	}
	if err := a.removeFiles(c.name, g.spec.Name); err != nil {
		return err
	}
	c.mu.Lock()
	delete(c.guests, g.spec.Name)
	c.mu.Unlock()
	return a.journal.DeleteGuest(c.name, g.spec.Name)
}

// detach lets go of the guests without harming them.
func (a *Agent) detach(c *cluster) error {
	var errs []error
	for _, g := range c.list() {
		for _, n := range g.nics {
			errs = append(errs, n.port.Detach())
		}
		errs = append(errs, g.machine.Detach())
	}
	return errors.Join(errs...)
}
