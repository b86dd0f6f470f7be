package crashfs

import (
	"maps"
	"math/rand/v2"
	"slices"
)

// node is a file or a directory. All of it is guarded by FS.mu.
type node struct {
	isDir bool

	// A file is append-only, so what is durable is a prefix.
	data   []byte
	synced int

	// A directory has its names of now, those of the last SyncDir, and the
	// changes between.
	names   map[string]*node
	durable map[string]*node
	pending []change
}

// change is one atomic step of a directory: a name goes, a name comes, or, for
// a rename, both.
type change struct {
	remove string
	add    string
	node   *node
}

func newDir() *node {
	return &node{isDir: true, names: map[string]*node{}, durable: map[string]*node{}}
}

func (c change) apply(names map[string]*node) {
	if c.remove != "" {
		delete(names, c.remove)
	}
	if c.add != "" {
		names[c.add] = c.node
	}
}

func (n *node) change(c change) {
	c.apply(n.names)
	n.pending = append(n.pending, c)
}

func (n *node) syncNames() {
	n.durable = maps.Clone(n.names)
	n.pending = nil
}

// loss decides what a power cut takes beyond what was synced.
type loss struct {
	rng *rand.Rand
	// keep is the probability that an unsynced piece survives: 0 is the
	// strictest disk, 1 the luckiest, and both have found bugs.
	keep float64
}

func pickLoss(rng *rand.Rand) loss {
	return loss{rng: rng, keep: []float64{0, 1, 0.5}[rng.IntN(3)]}
}

func (l loss) keeps() bool { return l.rng.Float64() < l.keep }

// survivors returns the tree below n as a reboot finds it. seen keeps files
// with two names one file.
func (n *node) survivors(l loss, seen map[*node]*node) *node {
	if s, ok := seen[n]; ok {
		return s
	}
	if !n.isDir {
		s := &node{data: n.survivingBytes(l)}
		s.synced = len(s.data)
		seen[n] = s
		return s
	}
	s := newDir()
	seen[n] = s
	found := maps.Clone(n.durable)
	for _, c := range n.pending {
		if l.keeps() {
			c.apply(found)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(found)) { // sorted: one seed, one outcome
		s.names[name] = found[name].survivors(l, seen)
	}
	s.syncNames()
	return s
}

// survivingBytes keeps the synced prefix and a part of the rest; a delayed
// allocation may leave that part as zeros.
func (n *node) survivingBytes(l loss) []byte {
	rest := len(n.data) - n.synced
	kept := 0
	switch {
	case l.keep == 1:
		kept = rest
	case l.keep > 0:
		kept = l.rng.IntN(rest + 1)
	}
	data := slices.Clone(n.data[:n.synced+kept])
	if kept > 0 && l.keep < 1 && l.rng.IntN(3) == 0 {
		clear(data[n.synced:])
	}
	return data
}
