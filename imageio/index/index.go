// Package index finds objects: it maps an object's hash to the pack, run and
// place that hold it. It lives in memory and is built from the trailers of
// packs, so it can be thrown away at any time.
//
// It costs 38 to 40 bytes of memory an object, 1 % of the pages it knows: the hash,
// in the order of its pack, which makes the place implicit, and a slot of five bytes
// in a hash table that is 72 to 90 % full. Nothing in it is a pointer for
// the garbage collector to follow but a few for 4,096 objects.
//
// Lock order: Index.mu, then one shard.mu.
package index

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"slices"
	"sort"
	"sync"
	"sync/atomic"

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
	// segments holds the objects by number: the high bits of a number choose the
	// segment. It is replaced under mu, and read by whoever holds a shard's lock: a
	// number is in a shard only while its segment is here.
	segments atomic.Pointer[[]*segment]

	mu       sync.RWMutex
	ids      []pack.ID           // guarded by mu; by ordinal, only grows, so ordinals stay valid
	ordinals map[pack.ID]uint32  // guarded by mu; packs that are known now
	held     map[uint32][]uint32 // guarded by mu; segments by ordinal of their pack
	free     []uint32            // guarded by mu; segments that can be used again

	lowest bool // immutable; see NewLowest
}

// ObjectBytes is what an object costs at most.
const ObjectBytes = 40

// segmentObjects is how many objects share a segment.
const segmentObjects = 1 << 12

// segment is a part of one pack, immutable.
type segment struct {
	pack      uint32
	ids       []object.ID
	stretches []stretch // ascending by first
}

// stretch is a series of objects of one length that follow each other in a run.
type stretch struct {
	first               uint32 // in ids
	run, offset, length uint32 // of the first
}

// location is that of object i.
func (s *segment) location(i uint32) Location {
	n := sort.Search(len(s.stretches), func(n int) bool { return s.stretches[n].first > i })
	st := &s.stretches[n-1]
	return Location{Pack: s.pack, Run: st.run, Offset: st.offset + (i-st.first)*st.length, Length: st.length}
}

// shard is a hash table with open addressing. A slot is a tag, which is a byte of the
// hash, 0 if the slot is free, and an object's number. The tags lie together, so that
// a search reads one line of memory and then, nearly always, the right object.
type shard struct {
	mu      sync.RWMutex
	tags    []uint8  // guarded by mu
	numbers []uint32 // guarded by mu; of the same length
	used    int      // guarded by mu
}

const (
	minSlots = 8
	// A table grows when it is 9/10 full, by a quarter: it is 0.72 full then.
	fullNum, fullDen = 9, 10
	growNum, growDen = 5, 4
)

// tagOf is never 0. Neither shard nor place in the table come from that byte.
func tagOf(id object.ID) uint8 { return max(1, id[9]) }

// New returns an empty index.
func New() *Index {
	x := &Index{ordinals: map[pack.ID]uint32{}, held: map[uint32][]uint32{}}
	x.segments.Store(new([]*segment))
	return x
}

// NewLowest returns an empty index in which an object that several packs hold has its
// place in the pack with the lowest ID, in whatever order the packs are added.
func NewLowest() *Index {
	x := New()
	x.lowest = true
	return x
}

// Reserve makes room for about so many more objects, so that tables need not grow
// while they are added: that is most of the work.
func (x *Index) Reserve(objects int) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	segments := *x.segments.Load()
	for i := range x.shards {
		s := &x.shards[i]
		s.mu.Lock()
		if n := (s.used+objects/shardCount*51/50)*fullDen/fullNum + 1; n > len(s.tags) {
			s.resize(segments, n)
		}
		s.mu.Unlock()
	}
}

// Add learns a pack's objects and returns its ordinal. An object that is known
// already keeps its place, but for NewLowest. Adding a known pack changes nothing.
//
// Several packs can be added at a time: only their numbers are given out one after
// the other.
func (x *Index) Add(id pack.ID, objects []pack.Object) uint32 {
	ord, numbers, known := x.register(id, objects)
	if known {
		return ord
	}
	x.mu.RLock() // keeps Remove out
	defer x.mu.RUnlock()
	segments := *x.segments.Load()
	// wins reports whether a place in this pack replaces one in another pack.
	wins := func(other uint32) bool { return x.lowest && bytes.Compare(id[:], x.ids[other][:]) < 0 }
	for _, number := range numbers {
		s := segments[number]
		if s == nil || s.pack != ord {
			return ord // removed in between
		}
		for i := range s.ids {
			sh := x.shard(s.ids[i])
			sh.mu.Lock()
			// Another pack may have become visible since: its numbers are in use.
			sh.add(*x.segments.Load(), s.ids[i], number*segmentObjects+uint32(i), wins)
			sh.mu.Unlock()
		}
	}
	return ord
}

// register gives a pack its ordinal and its objects numbers, unless it is known.
func (x *Index) register(id pack.ID, objects []pack.Object) (ord uint32, numbers []uint32, known bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if ord, ok := x.ordinals[id]; ok {
		return ord, nil, true
	}
	ord = uint32(len(x.ids))
	x.ids = append(x.ids, id)
	x.ordinals[id] = ord
	for len(objects) > 0 {
		n := min(segmentObjects, len(objects))
		numbers = append(numbers, x.publish(newSegment(ord, objects[:n])))
		objects = objects[n:]
	}
	x.held[ord] = numbers
	return ord, numbers, false
}

func newSegment(ord uint32, objects []pack.Object) *segment {
	s := &segment{pack: ord, ids: make([]object.ID, len(objects))}
	for i := range objects {
		o := &objects[i]
		s.ids[i] = o.ID
		if n := len(s.stretches); n > 0 {
			st := &s.stretches[n-1]
			if o.Run == st.run && o.Length == st.length && o.Offset == st.offset+(uint32(i)-st.first)*st.length {
				continue
			}
		}
		s.stretches = append(s.stretches, stretch{uint32(i), o.Run, o.Offset, o.Length})
	}
	s.stretches = slices.Clip(s.stretches)
	return s
}

// publish gives a segment a number. Callers hold mu. Numbers are enough for 2^32
// objects, 16 TiB of pages.
func (x *Index) publish(s *segment) uint32 {
	segments := *x.segments.Load()
	if n := len(x.free); n > 0 {
		number := x.free[n-1]
		x.free = x.free[:n-1]
		replaced := slices.Clone(segments)
		replaced[number] = s
		x.segments.Store(&replaced)
		return number
	}
	// Who holds the old slice does not look behind its end.
	segments = append(segments, s)
	x.segments.Store(&segments)
	return uint32(len(segments) - 1)
}

// slot returns where id is, or the free slot where it would be. Callers hold mu, and
// there is a free slot.
func (s *shard) slot(segments []*segment, id object.ID) int {
	// The first byte has chosen the shard.
	i, _ := bits.Mul64(binary.LittleEndian.Uint64(id[1:]), uint64(len(s.tags)))
	for want := tagOf(id); ; i++ {
		if i == uint64(len(s.tags)) {
			i = 0
		}
		switch s.tags[i] {
		case 0:
			return int(i)
		case want:
			if *idOf(segments, s.numbers[i]) == id {
				return int(i)
			}
		}
	}
}

func idOf(segments []*segment, number uint32) *object.ID {
	return &segments[number/segmentObjects].ids[number%segmentObjects]
}

// add callers hold mu.
func (s *shard) add(segments []*segment, id object.ID, number uint32, wins func(pack uint32) bool) {
	if (s.used+1)*fullDen > len(s.tags)*fullNum { // so that there is always a free one
		s.resize(segments, max(minSlots, len(s.tags)*growNum/growDen))
	}
	at := s.slot(segments, id)
	switch {
	case s.tags[at] == 0:
		s.tags[at], s.numbers[at] = tagOf(id), number
		s.used++
	case wins(segments[s.numbers[at]/segmentObjects].pack):
		s.numbers[at] = number
	}
}

// resize makes a table of n slots. Callers hold mu.
func (s *shard) resize(segments []*segment, n int) {
	tags, numbers := s.tags, s.numbers
	s.tags, s.numbers = make([]uint8, n), make([]uint32, n)
	for i, tag := range tags {
		if tag == 0 {
			continue
		}
		// All are different: the first free slot is right.
		id := idOf(segments, numbers[i])
		at, _ := bits.Mul64(binary.LittleEndian.Uint64(id[1:]), uint64(n))
		for s.tags[at] != 0 {
			if at++; at == uint64(n) {
				at = 0
			}
		}
		s.tags[at], s.numbers[at] = tag, numbers[i]
	}
}

// Lookup finds an object.
func (x *Index) Lookup(id object.ID) (Location, bool) {
	s := x.shard(id)
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.used == 0 {
		return Location{}, false
	}
	segments := *x.segments.Load()
	at := s.slot(segments, id)
	if s.tags[at] == 0 {
		return Location{}, false
	}
	n := s.numbers[at]
	return segments[n/segmentObjects].location(n % segmentObjects), true
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
	gone := map[uint32]bool{} // segments
	for _, id := range ids {
		if ord, ok := x.ordinals[id]; ok {
			for _, number := range x.held[ord] {
				gone[number] = true
			}
			delete(x.held, ord)
			delete(x.ordinals, id)
		}
	}
	if len(gone) == 0 {
		return
	}
	segments := *x.segments.Load()
	for i := range x.shards {
		s := &x.shards[i]
		s.mu.Lock()
		used := 0
		for at, tag := range s.tags {
			if tag != 0 && gone[s.numbers[at]/segmentObjects] {
				s.tags[at] = 0
			} else if tag != 0 {
				used++
			}
		}
		if used < s.used {
			s.used = used
			s.resize(segments, max(minSlots, used*fullDen/fullNum+1)) // closes the gaps, too
		}
		s.mu.Unlock()
	}
	left := slices.Clone(segments)
	for number := range gone {
		left[number] = nil
		x.free = append(x.free, number)
	}
	x.segments.Store(&left)
}

// Len counts the objects.
func (x *Index) Len() int {
	n := 0
	for i := range x.shards {
		s := &x.shards[i]
		s.mu.RLock()
		n += s.used
		s.mu.RUnlock()
	}
	return n
}

func (x *Index) shard(id object.ID) *shard { return &x.shards[id[0]] }
