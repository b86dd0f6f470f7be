package placement_test

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"fermata/coordinator/placement"
	"fermata/coordinator/spec"
	"fermata/protocol/fault"
)

const (
	mib = 1 << 20
	gib = 1 << 30
)

func node(name string, free uint64, cpus uint32) placement.Node {
	return placement.Node{Name: name, MemoryFree: free, CPUs: cpus}
}

func guest(name string, memory uint64, vcpus uint32) placement.Guest {
	return placement.Guest{Name: name, Memory: memory, VCPUs: vcpus}
}

// text is a plan as "g1=n1 g2=n2".
func text(plan []placement.Assignment) string {
	var parts []string
	for _, a := range plan {
		parts = append(parts, a.Guest+"="+a.Node)
	}
	return strings.Join(parts, " ")
}

func TestPlan(t *testing.T) {
	three := []placement.Node{node("n1", 4*gib, 4), node("n2", 4*gib, 4), node("n3", 4*gib, 4)}
	four := []placement.Guest{guest("a", gib, 1), guest("b", gib, 1), guest("c", gib, 1), guest("d", gib, 1)}
	pinned := slices.Clone(four)
	pinned[0].Pin = "n2"
	for _, c := range []struct {
		name   string
		nodes  []placement.Node
		guests []placement.Guest
		policy spec.Policy
		r      placement.Restrictions
		want   string
	}{
		{"spread", three, four, spec.Spread, placement.Restrictions{}, "a=n1 b=n2 c=n3 d=n1"},
		{"pack", three, four, spec.Pack, placement.Restrictions{}, "a=n1 b=n1 c=n1 d=n1"},
		{"nothing to place", nil, nil, spec.Spread, placement.Restrictions{}, ""},
		{"pin", three, pinned, spec.Pack, placement.Restrictions{}, "a=n2 b=n2 c=n2 d=n2"},
		{"on goes before pin", three, pinned, spec.Pack, placement.Restrictions{On: map[string]string{"a": "n3"}}, "a=n3 b=n3 c=n3 d=n3"},
		{"some nodes", three, four, spec.Spread, placement.Restrictions{Nodes: []string{"n3", "n2"}}, "a=n2 b=n3 c=n2 d=n3"},
		{
			"spread by processors, not by number of guests",
			[]placement.Node{node("big", 8*gib, 16), node("small", 8*gib, 2)}, four, spec.Spread, placement.Restrictions{},
			"a=big b=big c=big d=big",
		},
		{
			"spread around what is there",
			[]placement.Node{{Name: "busy", MemoryFree: 4 * gib, CPUs: 4, VCPUs: 4}, node("idle", 4*gib, 4)}, four, spec.Spread, placement.Restrictions{},
			"a=idle b=idle c=idle d=idle",
		},
		{
			"pack does not overcommit as long as it can",
			[]placement.Node{node("n1", 8*gib, 2), node("n2", 4*gib, 2)}, four, spec.Pack, placement.Restrictions{},
			"a=n1 b=n1 c=n2 d=n2",
		},
		{
			"processors are soft",
			[]placement.Node{node("n1", 8*gib, 1)}, four, spec.Spread, placement.Restrictions{},
			"a=n1 b=n1 c=n1 d=n1",
		},
		{
			// Evenly, a would go to n2, and nowhere were 2 GiB left for d.
			"an even load that leaves no room is given up",
			[]placement.Node{node("n1", 6*gib, 1), node("n2", 4*gib, 64)},
			[]placement.Guest{guest("a", 3*gib, 1), guest("b", 3*gib, 1), guest("c", 2*gib, 1), guest("d", 2*gib, 1)}, spec.Spread, placement.Restrictions{},
			"a=n1 b=n1 c=n2 d=n2",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			plan, err := placement.Plan(c.nodes, c.guests, c.policy, c.r)
			if err != nil {
				t.Fatal(err)
			}
			if got := text(plan); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

func TestPlan_SaysWhoDoesNotFitAndWhy(t *testing.T) {
	nodes := []placement.Node{node("n1", 2*gib, 4), node("n2", 410*mib, 4)}
	guests := []placement.Guest{guest("g1", gib, 1), guest("g2", 4*gib, 1), guest("g3", gib, 1), guest("g4", 410*mib+4096, 1)}
	guests[2].Pin, guests[3].Pin = "n2", "n2"
	_, err := placement.Plan(nodes, guests, spec.Spread, placement.Restrictions{})
	want := "guest g2 needs 4.0 GiB, no node has more than 2.0 GiB left (n1)\n" +
		"guest g3 needs 1.0 GiB, node n2 has 0.4 GiB free\n" +
		"guest g4 needs 419844.0 KiB, node n2 has 419840.0 KiB free"
	if err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
	var misfits placement.Misfits
	if !errors.As(err, &misfits) || len(misfits) != 3 || fault.ClassOf(err) != fault.NoSpace {
		t.Errorf("got %v of class %v", misfits, fault.ClassOf(err))
	}
}

func TestPlan_ReportsEveryContradiction(t *testing.T) {
	nodes := []placement.Node{node("n1", gib, 1), node("n1", gib, 1), node("n2", gib, 1)}
	guests := []placement.Guest{guest("a", 1, 1), guest("a", 1, 1), {Name: "b", Pin: "gone"}, {Name: "c", Pin: "n2"}}
	_, err := placement.Plan(nodes, guests, "random", placement.Restrictions{
		On:    map[string]string{"ghost": "n1", "b": "lost"},
		Nodes: []string{"n1", "n9"},
	})
	want := []string{
		"guest a is listed twice",
		"guest b is to run on node lost, which is not there",
		"guest c is pinned to node n2, which is not among the nodes to use",
		"node n1 is listed twice",
		"node n9 is not there",
		`placement policy "random": want spread or pack`,
		"there is no guest ghost to run on node n1",
	}
	if err == nil || fault.ClassOf(err) != fault.Invalid {
		t.Fatalf("got %v, want class invalid", err)
	}
	if diff := gocmp.Diff(want, strings.Split(err.Error(), "\n")); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if _, err := placement.Plan(nil, guests[:1], spec.Pack, placement.Restrictions{}); fault.ClassOf(err) != fault.Unavailable {
		t.Errorf("without nodes: %v, want class unavailable", err)
	}
}

// problem draws nodes and guests of which about half fit.
type problem struct {
	nodes  []placement.Node
	guests []placement.Guest
	policy spec.Policy
	r      placement.Restrictions
}

func drawProblem(t *rapid.T) problem {
	var p problem
	for i := range rapid.IntRange(1, 6).Draw(t, "nodes") {
		p.nodes = append(p.nodes, placement.Node{
			Name:       fmt.Sprintf("n%d", i),
			MemoryFree: rapid.Uint64Range(0, 16).Draw(t, "free"),
			CPUs:       rapid.Uint32Range(0, 8).Draw(t, "cpus"),
			VCPUs:      rapid.Uint32Range(0, 8).Draw(t, "busy"),
		})
	}
	names := make([]string, len(p.nodes))
	for i, n := range p.nodes {
		names[i] = n.Name
	}
	if rapid.Bool().Draw(t, "restricted") {
		p.r.Nodes = rapid.SliceOfNDistinct(rapid.SampledFrom(names), 1, len(names), rapid.ID).Draw(t, "allowed")
	}
	allowed := names
	if len(p.r.Nodes) > 0 {
		allowed = p.r.Nodes
	}
	p.r.On = map[string]string{}
	for i := range rapid.IntRange(0, 10).Draw(t, "guests") {
		g := placement.Guest{
			Name:   fmt.Sprintf("g%d", i),
			Memory: rapid.Uint64Range(0, 8).Draw(t, "memory"),
			VCPUs:  rapid.Uint32Range(0, 4).Draw(t, "vcpus"),
		}
		switch rapid.IntRange(0, 5).Draw(t, "fixed") {
		case 0:
			g.Pin = rapid.SampledFrom(allowed).Draw(t, "pin")
		case 1:
			g.Pin = rapid.SampledFrom(names).Draw(t, "pin")
			p.r.On[g.Name] = rapid.SampledFrom(allowed).Draw(t, "on")
		}
		p.guests = append(p.guests, g)
	}
	p.policy = rapid.SampledFrom([]spec.Policy{spec.Spread, spec.Pack}).Draw(t, "policy")
	return p
}

func (p problem) plan() ([]placement.Assignment, error) {
	return placement.Plan(p.nodes, p.guests, p.policy, p.r)
}

// target is where g must go, or "".
func (p problem) target(g placement.Guest) string {
	if on, given := p.r.On[g.Name]; given {
		return on
	}
	return g.Pin
}

func TestPlan_Properties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := drawProblem(t)
		plan, err := p.plan()
		if err != nil {
			var misfits placement.Misfits
			if !errors.As(err, &misfits) || len(misfits) == 0 {
				t.Fatalf("error without misfits: %v", err)
			}
			if firstFitDecreasing(p) {
				t.Fatalf("first fit decreasing places all: %v", err)
			}
			return
		}
		free := map[string]uint64{}
		for _, n := range p.nodes {
			free[n.Name] = n.MemoryFree
		}
		if len(plan) != len(p.guests) {
			t.Fatalf("%d assignments for %d guests", len(plan), len(p.guests))
		}
		for i, a := range plan {
			g := p.guests[i]
			if a.Guest != g.Name || a.Memory != g.Memory || a.VCPUs != g.VCPUs {
				t.Fatalf("assignment %d is %+v, want guest %+v", i, a, g)
			}
			if want := p.target(g); want != "" && a.Node != want {
				t.Fatalf("guest %s on %s, must be on %s", g.Name, a.Node, want)
			}
			if len(p.r.Nodes) > 0 && !slices.Contains(p.r.Nodes, a.Node) {
				t.Fatalf("guest %s on %s, allowed are %v", g.Name, a.Node, p.r.Nodes)
			}
			if a.Memory > free[a.Node] {
				t.Fatalf("node %s is overfull with guest %s", a.Node, a.Guest)
			}
			free[a.Node] -= a.Memory
		}
	})
}

// firstFitDecreasing is the plain rule, written anew: guests with a fixed node
// first, then the largest first, nodes by memory and name.
func firstFitDecreasing(p problem) bool {
	nodes := slices.Clone(p.nodes)
	slices.SortFunc(nodes, func(a, b placement.Node) int {
		return cmp.Or(cmp.Compare(b.MemoryFree, a.MemoryFree), cmp.Compare(a.Name, b.Name))
	})
	guests := slices.Clone(p.guests)
	slices.SortFunc(guests, func(a, b placement.Guest) int {
		return cmp.Or(cmp.Compare(b.Memory, a.Memory), cmp.Compare(a.Name, b.Name))
	})
	put := func(g placement.Guest, target string) bool {
		for i := range nodes {
			n := &nodes[i]
			if target != "" && n.Name != target || len(p.r.Nodes) > 0 && !slices.Contains(p.r.Nodes, n.Name) {
				continue
			}
			if g.Memory <= n.MemoryFree {
				n.MemoryFree -= g.Memory
				return true
			}
		}
		return false
	}
	for _, fixed := range []bool{true, false} {
		for _, g := range guests {
			if target := p.target(g); (target != "") == fixed && !put(g, target) {
				return false
			}
		}
	}
	return true
}

func TestPlan_OrderDoesNotMatter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := drawProblem(t)
		plan, err := p.plan()
		seed := rapid.Uint64().Draw(t, "seed")
		rng := rand.New(rand.NewPCG(seed, 0))
		q := p
		q.nodes, q.guests, q.r.Nodes = slices.Clone(p.nodes), slices.Clone(p.guests), slices.Clone(p.r.Nodes)
		rng.Shuffle(len(q.nodes), func(i, j int) { q.nodes[i], q.nodes[j] = q.nodes[j], q.nodes[i] })
		rng.Shuffle(len(q.guests), func(i, j int) { q.guests[i], q.guests[j] = q.guests[j], q.guests[i] })
		rng.Shuffle(len(q.r.Nodes), func(i, j int) { q.r.Nodes[i], q.r.Nodes[j] = q.r.Nodes[j], q.r.Nodes[i] })
		other, otherErr := q.plan()
		if fmt.Sprint(err) != fmt.Sprint(otherErr) {
			t.Fatalf("errors differ:\n%v\n%v", err, otherErr)
		}
		byGuest := func(a, b placement.Assignment) int { return cmp.Compare(a.Guest, b.Guest) }
		slices.SortFunc(plan, byGuest)
		slices.SortFunc(other, byGuest)
		if diff := gocmp.Diff(plan, other); diff != "" {
			t.Fatalf("plans differ:\n%s", diff)
		}
	})
}

// A guest goes only where it can run, and what it lacks is looked for there.
func TestPlan_KeepsGuestsFromUnfitNodes(t *testing.T) {
	nodes := []placement.Node{{Name: "n1", MemoryFree: 100, CPUs: 64}, {Name: "n2", MemoryFree: 30, CPUs: 1}}
	for _, policy := range []spec.Policy{spec.Spread, spec.Pack} {
		plan, err := placement.Plan(nodes, []placement.Guest{{Name: "a", Memory: 20, VCPUs: 4, Unfit: []string{"n1"}}, {Name: "b", Memory: 20}}, policy, placement.Restrictions{})
		if err != nil || plan[0].Node != "n2" {
			t.Errorf("%s: %v, %v; want a on n2", policy, plan, err)
		}
	}
	_, err := placement.Plan(nodes, []placement.Guest{{Name: "a", Memory: 40, Unfit: []string{"n1"}}}, spec.Spread, placement.Restrictions{})
	if fault.ClassOf(err) != fault.NoSpace || !strings.Contains(err.Error(), "n2") {
		t.Errorf("%v, want no-space that names n2", err)
	}
}
