// Package index finds objects: it maps an object's hash to the pack, run and
// place that hold it. It lives in memory and is built from the trailers of
// packs, so it can be thrown away at any time.
//
// It costs about 60 bytes of memory an object, 1.5 % of the pages it knows.
//
// Lock order: Index.mu, then one shard.mu.
package index

import (
	"slices"
	"sync"

	"fermata/imageio/object"
	"fermata/imageio/pack"
)

// Location is where an object is.
type Location struct {
	Pack   uint32 // ordinal, see Index.PackID
	Run    uint32
	Offset uint32 // in the run, uncompressed
	Length uint32
}

// shardCount spreads lookups of all cores over locks; hashes are uniform.
const shardCount = 256

// Index maps objects to locations.
//
// Concurrency: safe for use by several goroutines.
type Index struct {
	shards [shardCount]shard

	mu       sync.RWMutex
	ids      []pack.ID          // guarded by mu; by ordinal, only grows, so ordinals stay valid
	ordinals map[pack.ID]uint32 // guarded by mu; packs that are known now
}

type shard struct {
	mu      sync.RWMutex
	entries map[object.ID]entry // guarded by mu
	_       [32]byte            // keeps neighbours' locks out of one cache line
}

// entry is a Location in 12 bytes: ordinal; run and the high bits of offset
// (16 + 16); the low bits of offset and the length (4 + 28). The limits of
// package pack make it fit.
type entry [3]uint32

func packLocation(l Location) entry {
	return entry{l.Pack, l.Run<<16 | l.Offset>>4, l.Offset<<28 | l.Length}
}

func (e entry) location() Location {
	return Location{
		Pack: e[0], Run: e[1] >> 16,
		Offset: (e[1]&0xffff)<<4 | e[2]>>28,
		Length: e[2] & (1<<28 - 1),
	}
}

// New returns an empty index.
func New() *Index {
	x := &Index{ordinals: map[pack.ID]uint32{}}
	for i := range x.shards {
		x.shards[i].entries = map[object.ID]entry{}
	}
	return x
}

// Add learns a pack's objects and returns its ordinal. An object that is known
// already keeps its place. Adding a known pack changes nothing.
func (x *Index) Add(id pack.ID, objects []pack.Object) uint32 {
	x.mu.Lock()
	defer x.mu.Unlock()
	if ord, ok := x.ordinals[id]; ok {
		return ord
	}
	ord := uint32(len(x.ids))
	x.ids = append(x.ids, id)
	x.ordinals[id] = ord
	for i := range objects {
		o := &objects[i]
		s := x.shard(o.ID)
		s.mu.Lock()
		if _, known := s.entries[o.ID]; !known {
			s.entries[o.ID] = packLocation(Location{Pack: ord, Run: o.Run, Offset: o.Offset, Length: o.Length})
		}
		s.mu.Unlock()
	}
	return ord
}

// Lookup finds an object.
func (x *Index) Lookup(id object.ID) (Location, bool) {
	s := x.shard(id)
	s.mu.RLock()
	e, ok := s.entries[id]
	s.mu.RUnlock()
	return e.location(), ok
}

// PackID names the pack of an ordinal, also when it was removed since.
func (x *Index) PackID(ordinal uint32) pack.ID {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.ids[ordinal]
}

// Packs lists the known packs, in no order.
func (x *Index) Packs() []pack.ID {
	x.mu.RLock()
	defer x.mu.RUnlock()
	out := make([]pack.ID, 0, len(x.ordinals))
	for id := range x.ordinals {
		out = append(out, id)
	}
	return out
}

// Has says that a pack is known.
func (x *Index) Has(id pack.ID) bool {
	x.mu.RLock()
	defer x.mu.RUnlock()
	_, ok := x.ordinals[id]
	return ok
}

// Remove forgets packs and every object whose place was in them. It walks the
// whole index once, so packs are best removed together.
func (x *Index) Remove(ids []pack.ID) {
	x.mu.Lock()
	defer x.mu.Unlock()
	var gone []uint32
	for _, id := range ids {
		if ord, ok := x.ordinals[id]; ok {
			gone = append(gone, ord)
			delete(x.ordinals, id)
		}
	}
	if len(gone) == 0 {
		return
	}
	slices.Sort(gone)
	for i := range x.shards {
		s := &x.shards[i]
		s.mu.Lock()
		for id, e := range s.entries {
			if _, dead := slices.BinarySearch(gone, e[0]); dead {
				delete(s.entries, id)
			}
		}
		s.mu.Unlock()
	}
}

// Len counts the objects.
func (x *Index) Len() int {
	n := 0
	for i := range x.shards {
		s := &x.shards[i]
		s.mu.RLock()
		n += len(s.entries)
		s.mu.RUnlock()
	}
	return n
}

func (x *Index) shard(id object.ID) *shard { return &x.shards[id[0]] }
