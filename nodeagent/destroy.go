package nodeagent

import (
	"context"
	"errors"
	"fmt"

	"fermata/nodeagent/journal"
	"fermata/protocol/api"
	"fermata/vmm"
)

// DestroyGuests ends every guest of the cluster on this node and removes what
// they left: processes, memory, files, ports. It is idempotent, and also cleans
// up after guests that were never completed.
func (a *Agent) DestroyGuests(ctx context.Context, req *api.DestroyGuestsRequest) error {
	c, leave, err := a.enter(ctx, req.GetCluster(), req.GetFence())
	if err != nil {
		return err
	}
	defer leave()
	defer a.tell()
	return a.destroy(ctx, c)
}

// destroy ends the cluster's guests and its part in rounds.
//
// Preconditions: the caller has the cluster's turn.
func (a *Agent) destroy(ctx context.Context, c *cluster) error {
	if err := c.endRound(ctx); err != nil {
		// Its guests end now, whatever they did; those of somebody else must run.
		a.log.Warn("round did not end in time", "cluster", c.name, "error", err)
		for _, g := range c.list() {
			if !adopted(g) {
				continue
			}
			if err := g.machine.Continue(ctx); err != nil {
				a.log.Error("adopted guest cannot be let run", "cluster", c.name, "guest", g.spec.Name, "error", err)
			}
		}
	}
	if err := a.update(c, func(rec *journal.Cluster) { rec.Released = false }); err != nil {
		return err
	}
	c.setRunning(false)
	var errs []error
	for _, g := range append(c.list(), c.leftovers()...) {
		if err := a.destroyGuest(ctx, c, g); err != nil {
			errs = append(errs, fmt.Errorf("destroy guest %s: %w", g.spec.Name, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return ignoreClosed(a.plane.RemoveCluster(c.name))
}

// destroyGuest removes a guest, complete or not, or lets go of an adopted one. The journal names it until
// nothing else of it is left, and after an error it can be called again.
//
// Preconditions: the caller has the cluster's turn.
func (a *Agent) destroyGuest(ctx context.Context, c *cluster, g *guest) error {
	g.unwatch()
	c.setAside(g, api.GuestState_GUEST_STATE_UNKNOWN)
	g.closeTool()
	if g.machine == nil && g.process != nil {
		m, err := attach(ctx, *g.process)
		if err != nil && !errors.Is(err, vmm.ErrGone) {
			return fmt.Errorf("find machine: %w", err)
		}
		if err == nil {
			g.machine = m
		}
	}
	if g.machine != nil && !adopted(g) {
		if err := g.machine.Kill(ctx); err != nil {
			return err
		}
	}
	if err := ignoreClosed(a.plane.Leave(c.name, g.spec.Name)); err != nil {
		return err
	}
	if err := a.removeFiles(c.name, g.spec.Name); err != nil {
		return err
	}
	if err := a.journal.DeleteGuest(c.name, g.spec.Name); err != nil {
		return err
	}
	c.forget(g)
	if g.machine != nil {
		return g.machine.Detach()
	}
	return nil
}

// detach lets go of the guests without harming them.
func (a *Agent) detach(c *cluster) error {
	var errs []error
	for _, g := range append(c.list(), c.leftovers()...) {
		g.unwatch()
		g.closeTool()
		if g.machine != nil {
			errs = append(errs, g.machine.Detach())
		}
	}
	return errors.Join(errs...)
}
