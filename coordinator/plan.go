package coordinator

import (
	"errors"
	"slices"
	"strings"

	"fermata/coordinator/deploy"
	"fermata/coordinator/spec"
	"fermata/protocol/api"
	"fermata/protocol/fault"
)

// restriction is what a request wishes of the placement.
type restriction struct {
	on       map[string]string // guest to node
	nodes    []string          // only these; empty: all
	replaces string            // the cluster whose guests' memory will be free
}

func plan(s *spec.Spec, seen *survey, r restriction) ([]deploy.Part, map[string]string, error) {
	free := map[string]uint64{}
	var names []string
	for _, v := range seen.usable() {
		if len(r.nodes) == 0 || slices.Contains(r.nodes, v.info.GetName()) {
			free[v.info.GetName()] = v.info.GetMemoryFreeBytes() + v.heldBytes(r.replaces)
			names = append(names, v.info.GetName())
		}
	}
	assign := map[string]string{}
	var errs []error
	for i, g := range s.Guests {
		node := r.on[g.Name]
		for j := range names {
			if node == "" && free[names[(i+j)%len(names)]] >= g.MemoryBytes {
				node = names[(i+j)%len(names)]
			}
		}
		if node == "" || free[node] < g.MemoryBytes {
			errs = append(errs, fault.New(fault.NoSpace, "guest %s does not fit on %s", g.Name, strings.Join(names, ", ")))
			continue
		}
		free[node] -= g.MemoryBytes
		assign[g.Name] = node
	}
	if len(errs) > 0 {
		return nil, nil, errors.Join(errs...)
	}
	byNode := map[string][]*api.GuestSpec{}
	for _, g := range s.GuestSpecs() {
		byNode[assign[g.GetName()]] = append(byNode[assign[g.GetName()]], g)
	}
	var parts []deploy.Part
	for _, v := range seen.nodes {
		if guests := byNode[v.info.GetName()]; guests != nil {
			parts = append(parts, deploy.Part{Node: v.node(), Guests: guests})
		}
	}
	return parts, assign, nil
}
