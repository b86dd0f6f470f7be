package nodeagent

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"

	"fermata/nodeagent/journal"
	"fermata/protocol/api"
	"fermata/protocol/fault"
)

// ReleaseGuests lets the cluster's guests run and opens their ingress, so that
// frames held for them, recorded ones first, are delivered in order. It is
// idempotent.
func (a *Agent) ReleaseGuests(ctx context.Context, req *api.ReleaseGuestsRequest) error {
	c, err := a.fence(req.GetCluster(), req.GetFence())
	if err != nil {
		return err
	}
	c.op.Lock()
	defer c.op.Unlock()
	guests := c.list()
	if len(guests) == 0 {
		return fault.New(fault.NotFound, "cluster %s has no guests on node %s", c.name, a.cfg.Name)
	}
	// Journalled first: an agent that dies below is followed by one that lets
	// all of them run.
	if err := a.update(c, func(rec *journal.Cluster) { rec.Released = true }); err != nil {
		return err
	}
	return runGuests(ctx, guests)
}

// runGuests makes all guests run and opens their ingress. It tries all of them,
// whatever fails.
func runGuests(ctx context.Context, guests []*guest) error {
	var g errgroup.Group
	errs := make([]error, len(guests))
	for i, guest := range guests {
		g.Go(func() error {
			if err := guest.machine.Continue(ctx); err != nil {
				errs[i] = fmt.Errorf("continue guest %s: %w", guest.spec.Name, err)
				return nil
			}
			guest.ungate()
			return nil
		})
	}
	_ = g.Wait()
	return errors.Join(errs...)
}

func (g *guest) ungate() {
	for _, n := range g.nics {
		n.port.Ungate()
	}
}
