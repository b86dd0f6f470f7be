package nodeagent

import (
	"context"
	"errors"

	"fermata/protocol/api"
	"fermata/protocol/fault"
)

// maxOrders is how many orders wait to be carried out. What finds no room comes again
// with the next heartbeat.
const maxOrders = 64

// order hands on what a coordinator has answered to a registration. It does not wait: the
// node's lease must not run out because guests end slowly.
func (a *Agent) order(superseded []*api.SupersededLife) {
	for _, s := range superseded {
		select {
		case a.orders <- s:
		default:
		}
	}
}

// endSuperseded carries out orders until ctx ends.
func (a *Agent) endSuperseded(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case s := <-a.orders:
			if err := a.endOlder(ctx, s); err != nil && ctx.Err() == nil {
				a.log.Error("guests of an earlier life of a cluster cannot be ended", "cluster", s.GetCluster(), "before-epoch", s.GetBeforeEpoch(), "error", err)
			}
		}
	}
}

// endOlder ends the guests of a cluster if their life began before an epoch: the cluster
// lives elsewhere by now, and there must not be two of it. An order that was carried out
// already finds nothing.
func (a *Agent) endOlder(ctx context.Context, s *api.SupersededLife) error {
	if s.GetBeforeEpoch() == 0 {
		return fault.New(fault.Invalid, "order to end guests of cluster %s: epoch missing", s.GetCluster())
	}
	c, leave, err := a.enter(ctx, s.GetCluster(), s.GetFence())
	if err != nil {
		return err
	}
	defer leave()
	guests := append(c.list(), c.leftovers()...)
	older := 0
	for _, g := range guests {
		if g.epoch < s.BeforeEpoch {
			older++
			a.log.Warn("guest belongs to an earlier life of its cluster and is ended", "cluster", c.name, "guest", g.spec.Name,
				"epoch", g.epoch, "cluster-epoch", s.BeforeEpoch)
		}
	}
	switch {
	case older == 0:
		return nil
	case older == len(guests):
		defer a.tell()
		return a.destroy(ctx, c)
	}
	// A life begins when all of the one before is gone, so only what could not be removed is left.
	var errs []error
	for _, g := range guests {
		if g.epoch < s.BeforeEpoch {
			errs = append(errs, a.destroyGuest(ctx, c, g))
		}
	}
	a.tell()
	return errors.Join(errs...)
}
