package coordinator

import (
	"context"
	"fmt"

	"fermata/coordinator/store"
	"fermata/protocol/address"
	"fermata/protocol/api"
	"fermata/protocol/fault"
	"fermata/protocol/identity"
)

// register keeps what a node says of itself under a lease.
func (t *term) register(ctx context.Context, req *api.RegisterRequest) (*api.RegisterReply, error) {
	info := req.GetNode()
	if err := store.CheckName("node", info.GetName()); err != nil {
		return nil, err
	}
	// A node may speak for itself alone.
	if err := identity.RequireName(ctx, info.GetName()); err != nil {
		return nil, err
	}
	for _, a := range []struct{ what, address string }{
		{"address", info.GetAddress()}, {"fabric_address", info.GetFabricAddress()},
	} {
		if err := address.CheckDialled(a.address); err != nil {
			return nil, fault.Wrap(fault.Invalid, err, "register node %s: %s", info.GetName(), a.what)
		}
	}
	if err := t.checkTwin(ctx, info); err != nil {
		return nil, err
	}
	if err := t.checkHistory(ctx, info.GetName(), req.GetNewestFences()); err != nil {
		return nil, err
	}
	ttl := t.c.cfg.NodeLeaseTTL
	if err := t.c.store.PutNode(ctx, t.fence, info, ttl); err != nil {
		return nil, fmt.Errorf("register node %s: %w", info.GetName(), err)
	}
	t.noteIncarnation(info)
	superseded, err := t.superseded(ctx, info)
	if err != nil {
		return nil, fmt.Errorf("register node %s: %w", info.GetName(), err)
	}
	return &api.RegisterReply{LeaseTtlMs: uint64(ttl.Milliseconds()), Superseded: superseded}, nil
}

// noteIncarnation tells the log of nodes that are new or whose agent has
// restarted. Nothing else follows from it: a new agent finds the guests of the
// one before, and a round it was in has lost it and aborts by itself.
func (t *term) noteIncarnation(info *api.NodeInfo) {
	t.mu.Lock()
	before, known := t.incarnations[info.GetName()]
	t.incarnations[info.GetName()] = info.GetIncarnation()
	t.mu.Unlock()
	switch {
	case !known:
		t.c.log.Info("node registered", "node", info.GetName(), "address", info.GetAddress(), "incarnation", info.GetIncarnation())
	case before != info.GetIncarnation():
		t.c.log.Warn("agent of node has restarted", "node", info.GetName(), "address", info.GetAddress(),
			"incarnation", info.GetIncarnation(), "guests", len(info.GetGuests()))
	}
}
