package repository

import (
	"fmt"
	"slices"
	"sync/atomic"

	"fermata/imageio/object"
	"fermata/imageio/pack"
)

// Image is an image that a Writer has put: its name, what was seen of it, and
// what PutImage needs to build a later generation on it (PutOptions.Base).
//
// It can be a Base once its Writer has finished. It then knows for each leaf
// the packs that hold the leaf and its pages; whether they still exist is
// checked when it is used. It takes 64 bytes of memory a leaf and 4 for each
// pack of a leaf, rounded up by the allocator: 36 KiB a GiB when each leaf lies
// in one pack, 56 KiB when in ten. Generations share what is 4 bytes a pack.
//
// Concurrency: may be the Base of several PutImage at a time.
type Image struct {
	Ref   Ref
	Stats ImageStats

	r    *Repository
	ids  []object.ID // by leaf; immutable after PutImage
	held []holding   // by leaf; immutable once settled
	// prints are fingerprints by leaf, 0 where there is none; nil without
	// PutOptions.Fingerprint. Immutable after PutImage.
	prints []uint64

	open    []openLeaf  // until settled: leaves with objects in packs that are not finalised
	settled atomic.Bool // held is complete
}

// holding is what a later generation inherits with a leaf, beside its id.
type holding struct {
	packs   []uint32 // ordinals in the index, ascending; shared between generations, so immutable
	nonZero int32    // bytes of pages that are not all zeros
}

// openLeaf says where the rest of a leaf will be found.
type openLeaf struct {
	leaf int
	runs []*pendingRun
}

// settle completes img when all packs of its Writer are finalised, of which own
// knows the ordinals.
func (img *Image) settle(own map[pack.ID]uint32) {
	var scratch []uint32
	for _, o := range img.open {
		h := &img.held[o.leaf]
		scratch = append(scratch[:0], h.packs...)
		for _, run := range o.runs {
			scratch = append(scratch, own[run.pack])
		}
		h.packs = sortedClone(scratch)
	}
	img.open = nil
	img.settled.Store(true)
}

// sortedClone returns the distinct ordinals of s, nil for none. It reorders s.
func sortedClone(s []uint32) []uint32 {
	slices.Sort(s)
	return append([]uint32(nil), slices.Compact(s)...)
}

// checkBase says whether img can be the Base of an image of size bytes in r.
func (img *Image) checkBase(r *Repository, size int64) error {
	switch {
	case img.Ref.Size != size:
		return fmt.Errorf("base of %d bytes for an image of %d", img.Ref.Size, size)
	case img.r.index != r.index:
		return fmt.Errorf("base was put through another opening of a repository: %w", ErrBaseGone)
	case !img.settled.Load():
		return fmt.Errorf("writer of the base has not finished: %w", ErrBaseGone)
	default:
		return nil
	}
}

// holders collects what holds the objects of a leaf: packs of the index by
// ordinal, other packs by the runs that will be in them.
type holders struct {
	packs []uint32
	runs  []*pendingRun
}

func (h *holders) reset() {
	h.packs = h.packs[:0]
	h.runs = h.runs[:0]
}

// addPack may leave doubles, which sortedClone removes.
func (h *holders) addPack(ordinal uint32) {
	if n := len(h.packs); n == 0 || h.packs[n-1] != ordinal {
		h.packs = append(h.packs, ordinal)
	}
}

// addRun looks from the end, as most pages are in the run before's.
func (h *holders) addRun(run *pendingRun) {
	for i := len(h.runs) - 1; i >= 0; i-- {
		if h.runs[i] == run {
			return
		}
	}
	h.runs = append(h.runs, run)
}
