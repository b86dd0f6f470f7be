package repository

import (
	"sync"

	"fermata/imageio/index"
	"fermata/imageio/object"
	"fermata/imageio/pack"
)

// pendingSet holds what a Writer has taken but not yet finalised. Together
// with the index it makes sure that of several workers that meet an object at
// the same time one stores it. It holds a few packs' worth of hashes.
//
// Concurrency: safe for use by several goroutines.
type pendingSet struct {
	shards [pendingShards]pendingShard
}

// pendingShards spreads workers over locks; hashes are uniform.
const pendingShards = 256

type pendingShard struct {
	mu  sync.Mutex
	ids map[object.ID]*pendingRun // guarded by mu
	_   [48]byte                  // keeps neighbours' locks out of one cache line
}

// pendingRun is a run that has no pack yet, or one that is not finalised. It
// stays valid when the pack is, so that who met an object early can be told
// later where it went.
type pendingRun struct {
	pack pack.ID // guarded by Writer.mu; set when the run is appended
}

func newPendingSet() *pendingSet {
	p := &pendingSet{}
	for i := range p.shards {
		p.shards[i].ids = map[object.ID]*pendingRun{}
	}
	return p
}

// take says whether the caller must store the object, in the run it has for it.
// If not, at is the run that has it or will, or nil if a finalised pack has it,
// whose ordinal is told.
//
// The index is asked again under the lock: finalise adds to the index before it
// removes here, so an object is always in one of the two.
func (p *pendingSet) take(id object.ID, run *pendingRun, x *index.Index) (store bool, at *pendingRun, ordinal uint32) {
	if loc, known := x.Lookup(id); known {
		return false, nil, loc.Pack
	}
	s := &p.shards[id[0]]
	s.mu.Lock()
	defer s.mu.Unlock()
	if at, taken := s.ids[id]; taken {
		return false, at, 0
	}
	if loc, known := x.Lookup(id); known {
		return false, nil, loc.Pack
	}
	s.ids[id] = run
	return true, run, 0
}

func (p *pendingSet) remove(objects []pack.Object) {
	for i := range objects {
		id := objects[i].ID
		s := &p.shards[id[0]]
		s.mu.Lock()
		delete(s.ids, id)
		s.mu.Unlock()
	}
}
