package capture

import (
	"fmt"
	"io"
	"slices"
	"time"

	"fermata/imageio/extent"
)

// sweepBytes is how much a Source takes of a leaf at a time: a write of the
// guest to that leaf waits for it, some 50 µs.
const sweepBytes = 256 << 10

// Source is one memory block at the cut. Reading it is the sweep.
//
// Concurrency: ReadAt may be called by several goroutines.
type Source struct {
	cut    *Cut
	region *region
	taken  extent.Set // immutable; leaves that the cut takes
	change extent.Set // immutable
}

var _ io.ReaderAt = (*Source)(nil)

// Source returns the block of that name. It is to be asked for once, before any
// part of the block was read.
func (c *Cut) Source(name string) (*Source, error) {
	i := slices.IndexFunc(c.tracker.regions, func(r *region) bool { return r.name == name })
	if i < 0 {
		return nil, fmt.Errorf("memory %s is not tracked", name)
	}
	r := c.tracker.regions[i]
	s := &Source{
		cut: c, region: r,
		taken:  c.extents(r, func(l *leaf) bool { return l.capturing }),
		change: c.extents(r, func(l *leaf) bool { return l.changed }),
	}
	c.taken.Add(s.taken.Bytes())
	return s, nil
}

// Size returns the bytes of the block, holes included.
func (s *Source) Size() int64 { return s.region.size }

// Data returns the leaves that the cut takes. Of a full cut all others hold
// zeros; of another one they are as at its base.
func (s *Source) Data() extent.Set { return s.taken }

// Changed returns the leaves that may have been written since the cut's base.
func (s *Source) Changed() extent.Set { return s.change }

// Full tells whether the cut takes all memory.
func (s *Source) Full() bool { return s.cut.full }

// Urgent names the offset of a leaf that a writer waits for.
func (s *Source) Urgent() (off int64, ok bool) {
	s.cut.mu.Lock()
	defer s.cut.mu.Unlock()
	for _, w := range s.cut.waits {
		if w.region == s.region {
			return int64(w.index) * leafBytes, true
		}
	}
	return 0, false
}

// ReadAt implements io.ReaderAt. What it has read once, the guest may change
// from then on: a second read of the same bytes returns something else.
func (s *Source) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= s.region.size {
		return 0, io.EOF
	}
	done := 0
	for done < len(p) && off < s.region.size {
		n := int(min(int64(len(p)-done), sweepBytes-off%sweepBytes, s.region.size-off))
		if s.region.unit > sweepBytes {
			n = int(min(int64(len(p)-done), leafBytes-off%leafBytes, s.region.size-off))
		}
		if err := s.sweep(p[done:done+n], off); err != nil {
			return done, err
		}
		done, off = done+n, off+int64(n)
	}
	if done < len(p) {
		return done, io.EOF
	}
	return done, nil
}

// sweep reads a piece of one leaf as it was at the cut, and lets who waits for
// it write on.
func (s *Source) sweep(p []byte, off int64) error {
	ref := leafRef{s.region, int(off / leafBytes)}
	l := ref.leaf()
	l.mu.Lock()
	defer l.mu.Unlock()
	capturing := l.meet(s.cut)
	if s.cut.ended.Load() {
		s.cut.mu.Lock()
		defer s.cut.mu.Unlock()
		return s.cut.err
	}
	if err := s.region.readFor(s.cut, p, off); err != nil {
		return err
	}
	if !capturing {
		return nil
	}
	unit := s.region.unit
	begin := off - int64(ref.index)*leafBytes
	end := begin + int64(len(p))
	s.overlay(l, p, begin)
	// Whole units only: a piece of one may be read again, and must be as it was.
	first, last := int((begin+unit-1)/unit), int(end/unit)
	l.saved.add(first, max(last-first, 0))
	var open bitmap
	for u := first; u < last; u++ {
		if l.blocked.has(u) {
			open.set(u)
		}
	}
	if s.swept(ref, l) {
		l.capturing = false
	}
	if open.empty() {
		return nil
	}
	for u, n := range open.runs() {
		l.blocked.remove(u, n)
		if err := s.cut.tracker.openUnits(ref, l, u, n); err != nil {
			return err
		}
	}
	if l.blocked.empty() {
		s.cut.waited(time.Since(s.cut.unblock(ref)))
	}
	return nil
}

// swept tells whether the content of every unit of a leaf is safe, and no
// pre-image is left that somebody still has to read.
//
// Preconditions: the leaf is locked.
func (s *Source) swept(ref leafRef, l *leaf) bool {
	units := int(s.region.leafExtent(ref.index).Len / s.region.unit)
	return l.saved.count() == units && l.images == noSlot
}

// overlay puts the pre-images of a leaf over what was read of it from begin on,
// and frees those that are wholly in p.
//
// Preconditions: the leaf is locked.
func (s *Source) overlay(l *leaf, p []byte, begin int64) {
	pool, unit := s.cut.pool, s.region.unit
	end := begin + int64(len(p))
	prev := int32(noSlot)
	for i := l.images; i != noSlot; {
		slot, b := pool.at(i)
		at := int64(slot.unit) * unit
		from, to := max(at, begin), min(at+unit, end)
		if from < to {
			copy(p[from-begin:to-begin], b[from-at:to-at])
		}
		if at < begin || at+unit > end {
			prev, i = i, slot.next
			continue
		}
		if prev == noSlot {
			l.images = slot.next
		} else {
			pool.relink(prev, slot.next)
		}
		pool.put(i)
		i = slot.next
	}
}
