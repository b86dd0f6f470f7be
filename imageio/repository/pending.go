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
	ids map[object.ID]struct{} // guarded by mu
	_   [48]byte               // keeps neighbours' locks out of one cache line
}

func newPendingSet() *pendingSet {
	p := &pendingSet{}
	for i := range p.shards {
		p.shards[i].ids = map[object.ID]struct{}{}
	}
	return p
}

// take says whether the caller must store the object. If not, known says
// whether a finalised pack has it, and which.
//
// The index is asked again under the lock: finalise adds to the index before it
// removes here, so an object is always in one of the two.
func (p *pendingSet) take(id object.ID, x *index.Index) (store bool, loc index.Location, known bool) {
	if loc, known = x.Lookup(id); known {
		return false, loc, true
	}
	s := &p.shards[id[0]]
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, taken := s.ids[id]; taken {
		return false, index.Location{}, false
	}
	if loc, known = x.Lookup(id); known {
		return false, loc, true
	}
	s.ids[id] = struct{}{}
	return true, index.Location{}, false
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
