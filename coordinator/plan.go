package coordinator

import (
	"fmt"
	"maps"
	"slices"

	"fermata/coordinator/deploy"
	"fermata/coordinator/placement"
	"fermata/coordinator/spec"
	"fermata/protocol/api"
	"fermata/protocol/fault"
)

// restriction is what a request wishes of the placement, and what it frees.
type restriction struct {
	on       map[string]string // guest to node
	nodes    []string          // only these; empty: all
	replaces string            // the cluster whose guests will be gone
}

// plan decides where the guests of a specification go. It changes nothing.
//
// On error: no-space names each guest that fits nowhere, unavailable a node
// that was asked for and does not answer.
func plan(s *spec.Spec, seen *survey, r restriction) ([]deploy.Part, map[string]string, error) {
	var infos []*api.NodeInfo
	for _, v := range seen.usable() {
		if len(r.nodes) == 0 || slices.Contains(r.nodes, v.info.GetName()) {
			infos = append(infos, v.info)
		}
	}
	cannot, err := unfit(s, infos, r.on)
	if err != nil {
		return nil, nil, fmt.Errorf("place guests of cluster %s: %w", s.Name, err)
	}
	guests := make([]placement.Guest, 0, len(s.Guests))
	wanted := slices.Clone(r.nodes)
	for _, g := range s.Guests {
		guests = append(guests, placement.Guest{Name: g.Name, Memory: g.MemoryBytes, VCPUs: g.VCPUs, Pin: g.Node, Unfit: cannot[g.Name]})
		if on, given := r.on[g.Name]; given {
			wanted = append(wanted, on)
		} else if g.Node != "" {
			wanted = append(wanted, g.Node)
		}
	}
	if err := seen.requireUsable(wanted); err != nil {
		return nil, nil, err
	}
	var nodes []placement.Node
	for _, v := range seen.usable() {
		nodes = append(nodes, v.place(r.replaces))
	}
	assigned, err := placement.Plan(nodes, guests, s.Policy, placement.Restrictions{On: r.on, Nodes: r.nodes})
	if err != nil {
		return nil, nil, fmt.Errorf("place guests of cluster %s: %w", s.Name, err)
	}
	where := make(map[string]string, len(assigned))
	for _, a := range assigned {
		where[a.Guest] = a.Node
	}
	parts := split(s, seen, where)
	if err := joinOutside(s, seen, parts); err != nil {
		return nil, nil, err
	}
	return parts, where, nil
}

// joinOutside has each uplink opened by the first node of the cluster that offers its
// bridge, and refuses a placement where a bridge is missing.
func joinOutside(s *spec.Spec, seen *survey, parts []deploy.Part) error {
	offers := func(part deploy.Part, bridge string) bool {
		return slices.Contains(seen.find(part.Node.Name).info.GetBridges(), bridge)
	}
	for _, part := range parts {
		for _, g := range part.Guests {
			for _, n := range g.GetNics() {
				if n.GetBridge() != "" && !offers(part, n.GetBridge()) {
					return fault.New(fault.Mismatch, "guest %s of cluster %s needs bridge %s for network %s, which node %s does not offer: name it under bridges in its agent.yaml, or place the guest elsewhere",
						g.GetName(), s.Name, n.GetBridge(), n.GetNetwork(), part.Node.Name)
				}
			}
		}
	}
	for _, u := range s.Uplinks() {
		i := slices.IndexFunc(parts, func(part deploy.Part) bool { return offers(part, u.GetBridge()) })
		if i < 0 {
			return fault.New(fault.Mismatch, "network %s of cluster %s has uplink %s, which no node of the cluster offers: name it under bridges in the agent.yaml of one, or place a guest on a node that does",
				u.GetNetwork(), s.Name, u.GetBridge())
		}
		parts[i].Uplinks = append(parts[i].Uplinks, u)
	}
	return nil
}

// split makes one part for each node, in the order of node names, with its
// guests in the order of the specification.
func split(s *spec.Spec, seen *survey, where map[string]string) []deploy.Part {
	byNode := map[string][]*api.GuestSpec{}
	for _, g := range s.GuestSpecs() {
		byNode[where[g.GetName()]] = append(byNode[where[g.GetName()]], g)
	}
	var parts []deploy.Part
	for _, node := range slices.Sorted(maps.Keys(byNode)) {
		parts = append(parts, deploy.Part{Node: seen.find(node).node(), Guests: byNode[node]})
	}
	return parts
}

// requireUsable refuses a wish for a node that is known but cannot be used. One
// that nobody knows is the placement's to refuse.
func (s *survey) requireUsable(names []string) error {
	for _, name := range names {
		v := s.find(name)
		if v != nil && !v.answered {
			return fault.New(fault.Unavailable, "node %s %s", name, v.silence())
		}
	}
	return nil
}

// place is the node as the placement sees it, with the guests of a cluster that
// will be ended taken away.
func (v *nodeView) place(replaces string) placement.Node {
	n := placement.Node{Name: v.info.GetName(), MemoryFree: v.info.GetMemoryFreeBytes(), CPUs: v.info.GetCpus()}
	for _, g := range v.info.GetGuests() {
		if replaces != "" && g.GetCluster() == replaces {
			if !g.GetAdopted() {
				n.MemoryFree += g.GetMemoryBytes()
			}
		} else {
			n.VCPUs += g.GetVcpus()
		}
	}
	return n
}
