package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"fermata/nodeagent/journal"
	"fermata/protocol/api"
	"fermata/protocol/failpoint"
	"fermata/protocol/fault"
)

// releaseRetry spaces attempts to let guests run that could not be found
// running by an agent that started again.
const releaseRetry = 5 * time.Second

// ReleaseGuests lets the cluster's guests run and opens their ingress, so that
// frames held for them, recorded ones first, are delivered in order. It is
// idempotent: once all run, a call that comes again, or late, changes nothing.
func (a *Agent) ReleaseGuests(ctx context.Context, req *api.ReleaseGuestsRequest) error {
	c, leave, err := a.enter(ctx, req.GetCluster(), req.GetFence())
	if err != nil {
		return err
	}
	defer leave()
	guests := c.list()
	if len(guests) == 0 {
		return fault.New(fault.NotFound, "cluster %s has no guests on node %s", c.name, a.cfg.Name)
	}
	// Not after it is journalled: recorded frames are injected again before a release.
	if err := a.rewire(c); err != nil {
		return err
	}
	if err := failpoint.Inject(ctx, failpoint.AgentBeforeRelease); err != nil {
		return err
	}
	// Journalled first: an agent that dies below is followed by one that lets
	// all of them run.
	if err := a.update(c, func(rec *journal.Cluster) { rec.Released = true }); err != nil {
		return err
	}
	defer a.tell()
	return a.letRun(ctx, c)
}

// clockBudget bounds how long the guests' agents may take to set the clocks.
const clockBudget = 10 * time.Second

// StepClocks lets the cluster's guests run, their ingress still closed, and sets their
// clocks to this node's. A guest that cannot be told is listed in the reply, with the
// reason: it runs with the time that it has.
//
// Preconditions: the guests were created and not released.
func (a *Agent) StepClocks(ctx context.Context, req *api.StepClocksRequest) (*api.StepClocksReply, error) {
	c, leave, err := a.enter(ctx, req.GetCluster(), req.GetFence())
	if err != nil {
		return nil, err
	}
	defer leave()
	guests := c.list()
	switch {
	case len(guests) == 0:
		return nil, fault.New(fault.NotFound, "cluster %s has no guests on node %s", c.name, a.cfg.Name)
	case c.record().Released:
		return nil, fault.New(fault.Invalid, "cluster %s runs: its clocks are its own", c.name)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, clockBudget, fault.New(fault.Deadline, "no answer within %s", clockBudget))
	defer cancel()
	failed := make([]string, len(guests))
	var g errgroup.Group
	for i, guest := range guests {
		g.Go(func() error {
			if err := guest.machine.Continue(ctx); err != nil {
				return fmt.Errorf("continue guest %s: %w", guest.spec.Name, err)
			}
			if err := guest.machine.StepClock(ctx); err != nil {
				a.log.Warn("clock not stepped", "cluster", c.name, "guest", guest.spec.Name, "error", err)
				failed[i] = fmt.Sprintf("%s: %s", guest.spec.Name, err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return &api.StepClocksReply{Failed: slices.DeleteFunc(failed, func(s string) bool { return s == "" })}, nil
}

// letRun makes all guests of a released cluster run and opens their ingress. It
// tries all of them, whatever fails. When all run it does nothing any more: from
// then on a guest that stands still does so for a round.
//
// Preconditions: the caller has the cluster's turn.
func (a *Agent) letRun(ctx context.Context, c *cluster) error {
	if c.isRunning() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, resumeBudget)
	defer cancel()
	guests := c.list()
	errs := make([]error, len(guests))
	var wg sync.WaitGroup
	for i, g := range guests {
		wg.Go(func() {
			if err := a.continueGuest(ctx, g); err != nil {
				errs[i] = fmt.Errorf("continue guest %s: %w", g.spec.Name, err)
				return
			}
			errs[i] = a.ungate(g)
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	c.setRunning(true)
	for _, g := range guests {
		g.dropRecorded()
	}
	return nil
}

// finishReleases goes on letting the guests run of clusters that were released
// before this agent started, until all of them do or ctx ends.
func (a *Agent) finishReleases(ctx context.Context) {
	for left := true; left; {
		left = false
		for _, c := range a.allClusters() {
			if !c.record().Released || c.isRunning() || len(c.list()) == 0 {
				continue
			}
			if err := a.finishRelease(ctx, c); err != nil {
				left = true
				a.log.Error("guests that were released do not run", "cluster", c.name, "error", err)
			}
		}
		if left {
			select {
			case <-ctx.Done():
				return
			case <-time.After(releaseRetry):
			}
		}
	}
}

func (a *Agent) finishRelease(ctx context.Context, c *cluster) error {
	if err := c.begin(ctx); err != nil {
		return err
	}
	defer c.end()
	if !c.record().Released {
		return nil // destroyed meanwhile
	}
	return a.letRun(ctx, c)
}

// ungate opens the ingress of a guest.
func (a *Agent) ungate(g *guest) error {
	if len(g.nics) == 0 {
		return nil
	}
	return fabricFault(a.plane.Ungate(g.cluster, g.spec.Name))
}
