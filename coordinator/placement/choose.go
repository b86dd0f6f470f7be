package placement

import (
	"cmp"
	"fmt"
	"slices"
)

// room is one node while a plan is being made.
type room struct {
	name  string
	free  uint64
	cpus  uint64 // at least 1
	vcpus uint64
	used  bool // a guest of this plan is there
}

func (r *room) fits(g Guest) bool { return g.Memory <= r.free }

func (r *room) put(g Guest) {
	r.free -= g.Memory
	r.vcpus += uint64(g.VCPUs)
	r.used = true
}

// chooser picks the room for g out of those where it fits, of which there is at
// least one.
type chooser func(rooms []*room, g Guest) *room

// place puts the guests that must go somewhere there, and then the others, the
// largest first: what is hard to place goes while there is room.
func place(nodes []Node, guests []Guest, fixed map[string]string, choose chooser) (map[string]string, Misfits) {
	rooms := make([]*room, 0, len(nodes))
	byName := map[string]*room{}
	for _, n := range nodes {
		r := &room{name: n.Name, free: n.MemoryFree, cpus: max(uint64(n.CPUs), 1), vcpus: uint64(n.VCPUs)}
		rooms = append(rooms, r)
		byName[n.Name] = r
	}
	order := slices.Clone(guests)
	slices.SortFunc(order, func(a, b Guest) int {
		return cmp.Or(
			cmp.Compare(b.Memory, a.Memory),
			cmp.Compare(b.VCPUs, a.VCPUs),
			cmp.Compare(a.Name, b.Name))
	})
	where := make(map[string]string, len(guests))
	var misfits Misfits
	for _, g := range order {
		node, must := fixed[g.Name]
		if !must {
			continue
		}
		r := byName[node]
		if !r.fits(g) {
			misfits = append(misfits, Misfit{Guest: g.Name, Needs: g.Memory, Node: r.name, Free: r.free, Pinned: true})
			continue
		}
		r.put(g)
		where[g.Name] = r.name
	}
	for _, g := range order {
		if _, must := fixed[g.Name]; must {
			continue
		}
		able := slices.DeleteFunc(slices.Clone(rooms), func(r *room) bool { return slices.Contains(g.Unfit, r.name) })
		var fitting []*room
		for _, r := range able {
			if r.fits(g) {
				fitting = append(fitting, r)
			}
		}
		if len(fitting) == 0 {
			if len(able) == 0 {
				able = rooms
			}
			best := slices.MaxFunc(able, func(a, b *room) int { return cmp.Compare(a.free, b.free) })
			misfits = append(misfits, Misfit{Guest: g.Name, Needs: g.Memory, Node: best.name, Free: best.free})
			continue
		}
		r := choose(fitting, g)
		r.put(g)
		where[g.Name] = r.name
	}
	slices.SortFunc(misfits, func(a, b Misfit) int { return cmp.Compare(a.Guest, b.Guest) })
	return where, misfits
}

// spread picks the node whose processors are the least burdened with g on it,
// then the one with the most memory left.
func spread(rooms []*room, g Guest) *room {
	return slices.MinFunc(rooms, func(a, b *room) int {
		return cmp.Or(
			compareLoad(a, b, g),
			cmp.Compare(b.free, a.free),
			cmp.Compare(a.name, b.name))
	})
}

// pack picks a node that is used already and whose processors still suffice,
// then an unused one, and overcommits only when there is neither; among equals
// the one that g fills best.
func pack(rooms []*room, g Guest) *room {
	return slices.MinFunc(rooms, func(a, b *room) int {
		return cmp.Or(
			compareBool(b.suffices(g), a.suffices(g)),
			compareBool(b.used, a.used),
			// An unused node is one more: the largest takes the most guests.
			compareUnused(a, b),
			cmp.Compare(a.free, b.free),
			cmp.Compare(a.name, b.name))
	})
}

// firstFit picks the first node in order, the classic rule that wastes the
// least of what is known to be simple: with the largest guest first it needs at
// most 11/9 of the fewest nodes possible (Johnson 1973).
func firstFit(rooms []*room, _ Guest) *room { return rooms[0] }

// suffices tells whether every virtual processor has a real one.
func (r *room) suffices(g Guest) bool { return r.vcpus+uint64(g.VCPUs) <= r.cpus }

func compareUnused(a, b *room) int {
	if a.used || b.used {
		return 0
	}
	return cmp.Compare(b.free, a.free)
}

// compareBool orders false before true.
func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	default:
		return 1
	}
}

// compareLoad compares virtual by real processors, without a division. The
// products fit: both factors are below 2^33.
func compareLoad(a, b *room, g Guest) int {
	return cmp.Compare((a.vcpus+uint64(g.VCPUs))*b.cpus, (b.vcpus+uint64(g.VCPUs))*a.cpus)
}

// sizes writes two numbers of bytes in the largest unit in which they differ.
func sizes(a, b uint64) (string, string) {
	for _, unit := range []struct {
		name  string
		bytes float64
	}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}} {
		x, y := fmt.Sprintf("%.1f %s", float64(a)/unit.bytes, unit.name), fmt.Sprintf("%.1f %s", float64(b)/unit.bytes, unit.name)
		if x != y {
			return x, y
		}
	}
	return fmt.Sprintf("%d bytes", a), fmt.Sprintf("%d bytes", b)
}
