package capture

import (
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// slabBytes is what a pool takes from the budget at a time: large enough for
// huge pages of the host, and whole units of guests' huge pages.
const slabBytes = 2 << 20

// noSlot ends a list of slots.
const noSlot = -1

// pool holds pre-images: what units were at the cut, taken before their guest
// wrote to them. Slots are linked by number, so that taking one allocates
// nothing.
//
// Concurrency: safe for use by several goroutines; a slot's bytes and its links
// belong to the holder of the leaf it is of.
type pool struct {
	budget *Budget // immutable
	unit   int64   // immutable; bytes a slot

	mu    sync.Mutex
	slabs [][]byte // guarded by mu; appended to only
	slots []slot   // guarded by mu
	free  int32    // guarded by mu; first free slot
	used  int64    // guarded by mu; slots in use
	peak  int64    // guarded by mu; most slots that were in use at once
	shut  bool     // guarded by mu; by close
}

type slot struct {
	next int32
	unit int32 // of its leaf
}

func newPool(b *Budget, unit int64) *pool { return &pool{budget: b, unit: unit, free: noSlot} }

// warm grows the pool to size bytes and touches them, as far as the budget goes:
// first touch of fresh memory costs several times the copying, see BenchmarkCopyFile.
// Each slab is a piece of work that turn is given.
func (p *pool) warm(size int64, turn Turn) error {
	for more := true; more; {
		err := turn.do(func() error {
			p.mu.Lock()
			defer p.mu.Unlock()
			if more = int64(len(p.slabs))*slabBytes < size && p.grow(); more {
				// A kernel that cannot populate (before 5.14) makes the first faults slower, no more.
				_ = unix.Madvise(p.slabs[len(p.slabs)-1], unix.MADV_POPULATE_WRITE)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// grow adds a slab, or says that there is no more memory.
//
// Preconditions: mu is held.
func (p *pool) grow() bool {
	if p.shut || !p.budget.take(slabBytes) {
		return false
	}
	slab, err := mapAnonymous(slabBytes)
	if err != nil {
		p.budget.give(slabBytes)
		return false
	}
	first := int32(len(p.slots))
	p.slabs = append(p.slabs, slab)
	for i := range int32(slabBytes / p.unit) {
		p.slots = append(p.slots, slot{next: p.free})
		p.free = first + i
	}
	return true
}

// take returns a slot for a unit and its bytes, linked before head; false when
// the budget is used up.
func (p *pool) take(unit int, head int32) (int32, []byte, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.free == noSlot && !p.grow() {
		return noSlot, nil, false
	}
	i := p.free
	p.free = p.slots[i].next
	p.slots[i] = slot{next: head, unit: int32(unit)}
	p.used++
	p.peak = max(p.peak, p.used)
	return i, p.bytes(i), true
}

// at returns a slot that is in use.
func (p *pool) at(i int32) (slot, []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.slots[i], p.bytes(i)
}

// relink makes next the successor of slot i.
func (p *pool) relink(i, next int32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.slots[i].next = next
}

// put frees a slot.
func (p *pool) put(i int32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.slots[i] = slot{next: p.free}
	p.free = i
	p.used--
}

// bytes returns the bytes of slot i.
//
// Preconditions: mu is held.
func (p *pool) bytes(i int32) []byte {
	perSlab := slabBytes / p.unit
	off := int64(i) % perSlab * p.unit
	return p.slabs[int64(i)/perSlab][off : off+p.unit : off+p.unit]
}

// peakBytes returns the most bytes that held pre-images at once.
func (p *pool) peakBytes() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.peak * p.unit
}

// close frees all memory. Nobody may hold a slot.
func (p *pool) close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var first error
	for _, slab := range p.slabs {
		if err := unix.Munmap(slab); err != nil && first == nil {
			first = fmt.Errorf("free pre-images: %w", err)
		}
	}
	p.budget.give(int64(len(p.slabs)) * slabBytes)
	p.slabs, p.slots, p.free, p.shut = nil, nil, noSlot, true
	return first
}
