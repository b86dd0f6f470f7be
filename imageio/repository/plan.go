package repository

import (
	"fmt"

	"fermata/imageio/extent"
	"fermata/imageio/object"
	"fermata/imageio/pack"
)

// plan finishes the leaves that need not be read, and returns the others.
//
// On error: ErrBaseGone.
func (p *put) plan() (*leafQueue, error) {
	if p.opt.Base != nil {
		if err := p.opt.Base.checkBase(p.w.r, p.size); err != nil {
			return nil, err
		}
	}
	todo := &leafQueue{waiting: make([]bool, len(p.image.ids))}
	var done int64
	var stats ImageStats
	for i := range p.image.ids {
		part := p.part(i)
		kept := p.kept(part)
		if kept {
			if err := p.inherit(i); err != nil {
				return nil, err
			}
			stats.NonZeroBytes += int64(p.image.held[i].nonZero)
		}
		if kept && p.opt.Audit || !kept && p.hasData(part) {
			todo.add(i)
			continue
		}
		done += part.Len
	}
	p.account(done, stats, openLeaf{})
	return todo, nil
}

// kept says that a leaf is taken from Base.
func (p *put) kept(part extent.Extent) bool {
	return p.opt.Base != nil && p.opt.Changed != nil && !p.opt.Changed.Overlaps(part)
}

func (p *put) hasData(part extent.Extent) bool {
	return p.opt.Data == nil || p.opt.Data.Overlaps(part)
}

// inherit takes leaf i from Base. Its packs must be known: the index forgets
// those that were swept or are damaged.
func (p *put) inherit(i int) error {
	base := p.opt.Base
	for _, ordinal := range base.held[i].packs {
		if _, known := p.inherited[ordinal]; known {
			continue
		}
		if id := p.w.r.index.PackID(ordinal); !p.w.r.index.Has(id) {
			return fmt.Errorf("base needs %s: %w", pack.Name(id), ErrBaseGone)
		}
		if p.inherited == nil {
			p.inherited = map[uint32]struct{}{}
		}
		p.inherited[ordinal] = struct{}{}
	}
	p.take(i)
	return nil
}

// take makes leaf i that of Base.
func (p *put) take(i int) {
	base := p.opt.Base
	p.image.ids[i], p.image.held[i] = base.ids[i], base.held[i]
	if p.image.prints != nil && base.prints != nil {
		p.image.prints[i] = base.prints[i]
	}
}

// urgentLeaf is the leaf that somebody waits for, or -1.
func (p *put) urgentLeaf() int {
	if p.opt.Urgent == nil {
		return -1
	}
	off, ok := p.opt.Urgent()
	if !ok || off < 0 || off >= p.size {
		return -1
	}
	return int(off / object.LeafBytes)
}

// leafQueue hands out the leaves that are to be read: in ascending order, but
// for those that are asked for. Not safe for concurrent use.
type leafQueue struct {
	waiting []bool // by leaf
	left    int
	next    int // no leaf before it waits
}

// add puts a leaf into the queue, before the first take.
func (q *leafQueue) add(leaf int) {
	q.waiting[leaf] = true
	q.left++
}

// take takes urgent out if it waits, otherwise the first that does. Any urgent
// that is no leaf asks for none.
//
// Preconditions: left > 0.
func (q *leafQueue) take(urgent int) int {
	leaf := urgent
	if leaf < 0 || leaf >= len(q.waiting) || !q.waiting[leaf] {
		for !q.waiting[q.next] {
			q.next++
		}
		leaf = q.next
	}
	q.waiting[leaf] = false
	q.left--
	return leaf
}
