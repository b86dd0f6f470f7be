package coordinator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"fermata/coordinator/deploy"
	"fermata/protocol/api"
	"fermata/protocol/fault"
)

// survey is what the nodes said of themselves at one moment.
type survey struct {
	nodes []*nodeView // by name
}

// nodeView is one node in a survey.
type nodeView struct {
	info *api.NodeInfo // fresh if answered, else as registered
	// alive says that the node holds its lease, answered that it was asked
	// just now and said what runs on it.
	alive, answered bool
}

func (v *nodeView) node() deploy.Node { return nodeOf(v.info) }

// silence says in words that the node does not answer, and since when.
func (v *nodeView) silence() string {
	if v.alive {
		return "does not answer"
	}
	return "has not been heard of since " + time.Unix(0, v.info.GetLastSeenUnixNs()).UTC().Format(time.RFC3339)
}

// survey asks every node that is alive for its present state. A node that does
// not answer is in the result, as registered.
func (t *term) survey(ctx context.Context) (*survey, error) {
	infos, err := t.registered(ctx)
	if err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	s := &survey{nodes: make([]*nodeView, len(infos))}
	var wg sync.WaitGroup
	for i, info := range infos {
		v := &nodeView{info: info, alive: info.GetAlive()}
		s.nodes[i] = v
		if !v.alive {
			continue
		}
		wg.Go(func() {
			fresh, err := t.c.deployer.Describe(ctx, v.node())
			if err != nil {
				t.c.log.Warn("node does not answer", "node", info.GetName(), "error", err)
				return
			}
			// Where the node is reached is what it registered, which is how it was
			// just reached.
			fresh.Address, fresh.FabricAddress = info.GetAddress(), info.GetFabricAddress()
			fresh.LastSeenUnixNs, fresh.Alive = info.GetLastSeenUnixNs(), true
			v.info, v.answered = fresh, true
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return s, nil
}

// registerPause is how often a term that has just begun looks whether all nodes have
// registered.
const registerPause = 100 * time.Millisecond

// registered lists the nodes. After all coordinators were gone, nodes register within
// moments of each other: as long as a term is younger than a node may be silent, it
// waits for those that registered in earlier terms, or for any at all. Else a restart
// in that moment would crowd all guests on the node that was first.
func (t *term) registered(ctx context.Context) ([]*api.NodeInfo, error) {
	return t.registeredOf(ctx, nil)
}

// registeredOf is registered that waits for these nodes alone; nil: for all.
func (t *term) registeredOf(ctx context.Context, names []string) ([]*api.NodeInfo, error) {
	for {
		infos, err := t.c.store.Nodes(ctx)
		missing := len(infos) == 0 || slices.ContainsFunc(infos, func(n *api.NodeInfo) bool {
			return !n.GetAlive() && (names == nil || slices.Contains(names, n.GetName()))
		})
		if err != nil || !missing || time.Since(t.begun) > t.c.cfg.NodeLeaseTTL {
			return infos, err
		}
		select {
		case <-time.After(registerPause):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// find returns the node, or nil.
func (s *survey) find(name string) *nodeView {
	i, found := slices.BinarySearchFunc(s.nodes, name, func(v *nodeView, name string) int {
		return strings.Compare(v.info.GetName(), name)
	})
	if !found {
		return nil
	}
	return s.nodes[i]
}

// usable lists the nodes that answered.
func (s *survey) usable() []*nodeView {
	var out []*nodeView
	for _, v := range s.nodes {
		if v.answered {
			out = append(out, v)
		}
	}
	return out
}

// nodesOf turns nodes into what a Deployer calls.
func nodesOf(views []*nodeView) []deploy.Node {
	nodes := make([]deploy.Node, 0, len(views))
	for _, v := range views {
		nodes = append(nodes, v.node())
	}
	return nodes
}

// named returns the nodes of these names, by name. On error one is unknown.
func (s *survey) named(names []string) ([]*nodeView, error) {
	names = slices.Clone(names)
	slices.Sort(names)
	var views []*nodeView
	var errs []error
	for _, name := range slices.Compact(names) {
		v := s.find(name)
		if v == nil {
			errs = append(errs, fault.New(fault.Unavailable, "node %s has never registered", name))
			continue
		}
		views = append(views, v)
	}
	return views, errors.Join(errs...)
}

// guests returns what the nodes that answered say of the cluster's guests.
func (s *survey) guests(cluster string) []*api.GuestStatus {
	var out []*api.GuestStatus
	if s == nil {
		return nil
	}
	for _, v := range s.nodes {
		if !v.answered {
			continue
		}
		for _, g := range v.info.GetGuests() {
			if g.GetCluster() == cluster {
				out = append(out, g)
			}
		}
	}
	return out
}
