// Package placement decides which guest runs on which node. It is a pure
// function: it reads no clock, asks nobody, and the same nodes and guests give
// the same plan in whatever order they come.
//
// Memory is hard: a plan never uses more than a node has free. Processors are
// soft: they may be overcommitted, evenly, since a guest that is slow still
// runs.
package placement

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"fermata/coordinator/spec"
	"fermata/protocol/fault"
)

// Node is a place for guests.
type Node struct {
	Name       string
	MemoryFree uint64 // bytes that guests may still take
	CPUs       uint32
	VCPUs      uint32 // of the guests that are there already
}

// Guest is what is to be placed.
type Guest struct {
	Name   string
	Memory uint64 // bytes
	VCPUs  uint32
	Pin    string   // the only node it may run on; empty: any
	Unfit  []string // nodes that it cannot run on
}

// Restrictions are an operator's wishes for one start or restart.
type Restrictions struct {
	On    map[string]string // guest to node; goes before the guest's pin
	Nodes []string          // the only nodes to use; empty: all
}

// Assignment is one line of a plan.
type Assignment struct {
	Guest, Node string
	Memory      uint64
	VCPUs       uint32
}

// Misfit is one guest for which there is no room.
type Misfit struct {
	Guest  string
	Needs  uint64
	Node   string // where it must go, or the one with the most memory left
	Free   uint64 // what is left there
	Pinned bool   // Node is the only one it may go to
}

func (m Misfit) String() string {
	needs, free := sizes(m.Needs, m.Free)
	if m.Pinned {
		return fmt.Sprintf("guest %s needs %s, node %s has %s free", m.Guest, needs, m.Node, free)
	}
	return fmt.Sprintf("guest %s needs %s, no node has more than %s left (%s)", m.Guest, needs, free, m.Node)
}

// Misfits is the error of a plan that does not fit: every guest for which there
// is no room once the others are placed, by name. It comes with class no-space;
// find it with errors.As.
type Misfits []Misfit

// Error has one line a guest.
func (m Misfits) Error() string {
	lines := make([]string, len(m))
	for i, one := range m {
		lines[i] = one.String()
	}
	return strings.Join(lines, "\n")
}

// Plan places every guest, in the order of the guests given.
//
// On error: class invalid with every contradiction in the request, or class
// no-space with Misfits.
func Plan(nodes []Node, guests []Guest, policy spec.Policy, r Restrictions) ([]Assignment, error) {
	fixed, allowed, err := check(nodes, guests, policy, r)
	if err != nil {
		return nil, err
	}
	choose := spread
	if policy == spec.Pack {
		choose = pack
	}
	where, misfits := place(allowed, guests, fixed, choose)
	if len(misfits) > 0 {
		// A choice for even load may leave gaps that no guest fits in.
		where, misfits = place(allowed, guests, fixed, firstFit)
	}
	if len(misfits) > 0 {
		return nil, fault.Wrap(fault.NoSpace, misfits, "")
	}
	plan := make([]Assignment, 0, len(guests))
	for _, g := range guests {
		plan = append(plan, Assignment{Guest: g.Name, Node: where[g.Name], Memory: g.Memory, VCPUs: g.VCPUs})
	}
	return plan, nil
}

// check finds contradictions. It returns where guests must go, and the nodes
// that may be used, the one with the most memory first.
func check(nodes []Node, guests []Guest, policy spec.Policy, r Restrictions) (fixed map[string]string, allowed []Node, err error) {
	var problems []string
	problem := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	if policy != spec.Spread && policy != spec.Pack {
		problem("placement policy %q: want %s or %s", policy, spec.Spread, spec.Pack)
	}
	known := map[string]bool{}
	for _, n := range nodes {
		if known[n.Name] {
			problem("node %s is listed twice", n.Name)
		}
		known[n.Name] = true
		if len(r.Nodes) == 0 || slices.Contains(r.Nodes, n.Name) {
			allowed = append(allowed, n)
		}
	}
	for _, name := range slices.Sorted(slices.Values(r.Nodes)) {
		if !known[name] {
			problem("node %s is not there", name)
		}
	}
	fixed = map[string]string{}
	seen := map[string]bool{}
	for _, g := range guests {
		if seen[g.Name] {
			problem("guest %s is listed twice", g.Name)
		}
		seen[g.Name] = true
		node, why := g.Pin, "is pinned to"
		if on, given := r.On[g.Name]; given {
			node, why = on, "is to run on"
		}
		switch {
		case node == "":
		case !known[node]:
			problem("guest %s %s node %s, which is not there", g.Name, why, node)
		case len(r.Nodes) > 0 && !slices.Contains(r.Nodes, node):
			problem("guest %s %s node %s, which is not among the nodes to use", g.Name, why, node)
		default:
			fixed[g.Name] = node
		}
	}
	for _, name := range slices.Sorted(maps.Keys(r.On)) {
		if !seen[name] {
			problem("there is no guest %s to run on node %s", name, r.On[name])
		}
	}
	if len(allowed) == 0 && len(guests) > 0 && len(problems) == 0 {
		return nil, nil, fault.New(fault.Unavailable, "place guests: there is no node")
	}
	if len(problems) > 0 {
		slices.Sort(problems)
		return nil, nil, fault.New(fault.Invalid, "%s", strings.Join(problems, "\n"))
	}
	slices.SortFunc(allowed, func(a, b Node) int {
		return cmp.Or(cmp.Compare(b.MemoryFree, a.MemoryFree), cmp.Compare(a.Name, b.Name))
	})
	return fixed, allowed, nil
}
