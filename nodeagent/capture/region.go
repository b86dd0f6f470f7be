package capture

import (
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"fermata/imageio/extent"
	"fermata/imageio/object"
	"fermata/vmm/uffd"
)

const (
	// leafBytes is the unit of the sweep and of what is known of earlier cuts:
	// the leaf of the image's tree, so that a leaf nobody wrote to is one hash.
	leafBytes = object.LeafBytes

	// maxUnits is how many units a leaf has with the smallest pages.
	maxUnits = leafBytes / pageBytes
)

// region is one block of guest memory.
type region struct {
	name   string   // immutable
	file   *os.File // immutable; what the block is read from
	base   int64    // immutable; where it begins in file
	addr   uint64   // immutable; where it begins in the guest's process
	size   int64    // immutable
	unit   int64    // immutable; smallest piece with a protection of its own, bytes
	leaves []leaf   // the slice is immutable
}

// leaf is what is known of one leaf of a region.
//
// A unit is open when the guest may write to it without a fault. A fault of a
// unit that is not open is served in three ways: before a cut, and after it once
// the leaf was swept, the unit is opened; while the cut is being swept, its
// pre-image is saved first; when there is no room for that, the writer is
// blocked until the sweep has come to the leaf.
type leaf struct {
	mu sync.Mutex

	open    bitmap // guarded by mu
	listed  bool   // guarded by mu; is in Tracker.open
	data    bool   // guarded by mu; was no hole at the last full Arm
	touched uint64 // guarded by mu; 1 + how many cuts there were when it was last opened; 0: never

	// Of the newest cut that the leaf has met:
	seen      uint64 // guarded by mu; its number; 0: none
	changed   bool   // guarded by mu; touched since the cut's base
	capturing bool   // guarded by mu; is part of the capture and not swept yet
	saved     bitmap // guarded by mu; units whose content at the cut is saved or swept
	blocked   bitmap // guarded by mu; units whose writers wait
	images    int32  // guarded by mu; first slot with a pre-image, or noSlot
}

// meet makes the leaf take notice of c, before anything else is done to it
// after the cut, and tells whether c still has to sweep it. The cut itself
// touches only leaves with open units: a pause must not grow with memory.
//
// Preconditions: mu is held.
func (l *leaf) meet(c *Cut) bool {
	if l.seen != c.number {
		l.seen = c.number
		l.changed = l.touched > c.base
		l.capturing = l.changed || c.full && l.data
		l.saved, l.blocked, l.images = bitmap{}, bitmap{}, noSlot
	}
	return l.capturing && !c.ended.Load()
}

func newRegion(b Block, m uffd.Mapping) *region {
	r := &region{name: b.Name, file: b.File, base: b.Offset, addr: m.Addr, size: b.Size, unit: max(int64(m.PageBytes), pageBytes)}
	r.leaves = make([]leaf, object.LeafCount(b.Size))
	for i := range r.leaves {
		r.leaves[i].images = noSlot
	}
	return r
}

// leafExtent is what leaf i covers.
func (r *region) leafExtent(i int) extent.Extent {
	off := int64(i) * leafBytes
	return extent.Extent{Off: off, Len: min(leafBytes, r.size-off)}
}

// units returns where n units from first on of leaf i lie in the guest's process.
func (r *region) units(i, first, n int) uffd.Range {
	return uffd.Range{Addr: r.addr + uint64(i)*leafBytes + uint64(first)*uint64(r.unit), Len: uint64(n) * uint64(r.unit)}
}

// around widens a unit of leaf i to the aligned step, in bytes, that holds it.
func (r *region) around(i, unit int, step int64) (first, n int) {
	per := max(int(step/r.unit), 1)
	first = unit / per * per
	last := int(r.leafExtent(i).Len / r.unit)
	return first, min(per, last-first)
}

// readFor is read that gives zeros for what c hides, without reading it.
func (r *region) readFor(c *Cut, p []byte, off int64) error {
	end := off + int64(len(p))
	begin := off
	for e := range c.hidden[r.name].Within(extent.Extent{Off: off, Len: int64(len(p))}).All() {
		if err := r.read(p[begin-off:e.Off-off], begin); err != nil {
			return err
		}
		clear(p[e.Off-off : e.End()-off])
		begin = e.End()
	}
	return r.read(p[begin-off:end-off], begin)
}

// read fills p with what the region holds at off now. It reads rather than maps:
// reading a hole through a mapping would fill it (shmem_fault in mm/shmem.c). A
// hole of anonymous memory is filled with the one page of zeros (mm/memory.c,
// do_anonymous_page), which costs a page table and no memory.
func (r *region) read(p []byte, off int64) error {
	for len(p) > 0 {
		n, err := unix.Pread(int(r.file.Fd()), p, r.base+off)
		if err == unix.EINTR {
			continue
		}
		if err == nil && n == 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return fmt.Errorf("read memory %s at %d: %w", r.name, off, err)
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// touch makes leaves that hold some of set part of the cut that comes, number n.
func (r *region) touch(set extent.Set, n uint64) {
	for e := range set.RoundOut(leafBytes).All() { // a pause must not grow with memory
		for i := e.Off / leafBytes; i < min(e.End()/leafBytes, int64(len(r.leaves))); i++ {
			l := &r.leaves[i]
			l.mu.Lock()
			l.touched = max(l.touched, n)
			l.mu.Unlock()
		}
	}
}

// findData notes which leaves are no holes.
func (r *region) findData() error {
	data, err := Data(r.file, r.base, r.size)
	if err != nil {
		return err
	}
	for i := range r.leaves {
		l := &r.leaves[i]
		has := data.Overlaps(r.leafExtent(i))
		l.mu.Lock()
		l.data = has
		l.mu.Unlock()
	}
	return nil
}
