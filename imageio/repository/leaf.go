package repository

import (
	"fmt"
	"io"

	"fermata/imageio/extent"
	"fermata/imageio/object"
)

// readLeaf does what plan has left to do for leaf i.
func (p *put) readLeaf(wk *worker, i int) error {
	if err := p.w.firstErr(); err != nil {
		return err
	}
	if p.kept(p.part(i)) {
		return p.auditLeaf(wk, i)
	}
	return p.putLeaf(wk, i)
}

// putLeaf stores the pages of leaf i, and the leaf.
func (p *put) putLeaf(wk *worker, i int) error {
	wk.holders.reset()
	part := p.part(i)
	stats, err := p.pages(wk, part, p.w.putPages)
	if err != nil {
		return err
	}
	if stats.NonZeroBytes > 0 {
		if p.image.ids[i], err = p.w.putNode(wk, object.KindLeaf, wk.node); err != nil {
			return err
		}
		p.image.held[i] = holding{packs: sortedClone(wk.holders.packs), nonZero: int32(stats.NonZeroBytes)}
	}
	p.account(part.Len, stats, openLeaf{leaf: i, runs: wk.holders.runs})
	return nil
}

// auditLeaf checks that leaf i is what was taken from Base, and stores nothing.
func (p *put) auditLeaf(wk *worker, i int) error {
	part := p.part(i)
	stats, err := p.pages(wk, part, sumPages)
	if err != nil {
		return err
	}
	var id object.ID
	if stats.NonZeroBytes > 0 {
		id = object.Sum(wk.node)
	}
	if id != p.image.ids[i] {
		return fmt.Errorf("%d bytes at %d: %w", part.Len, part.Off, ErrDiverged)
	}
	p.account(part.Len, ImageStats{AuditedBytes: stats.ChangedBytes}, openLeaf{})
	return nil
}

// nameFunc turns up to object.Lanes pages that are not all zeros into their ids,
// zero for those that have become zeros meanwhile. fresh is how many bytes of them
// were stored now.
type nameFunc func(wk *worker, pages [][]byte, ids []object.ID) (fresh int64, err error)

// pages reads a leaf and names its pages. It leaves the leaf's encoding in
// wk.node; if no page is other than zeros, the leaf is no object.
func (p *put) pages(wk *worker, part extent.Extent, name nameFunc) (stats ImageStats, err error) {
	children := wk.children[:object.PageCount(part.Len)]
	clear(children)
	for e := range p.data(part).All() {
		e = e.Intersect(part) // rounding may have passed the end of the image
		b, err := p.bytes(wk, e)
		if err != nil {
			return ImageStats{}, err
		}
		stats.ChangedBytes += e.Len
		if err := namePages(wk, b, children[(e.Off-part.Off)/object.PageBytes:], name, &stats); err != nil {
			return ImageStats{}, err
		}
	}
	if stats.NonZeroBytes > 0 {
		wk.node = object.AppendNode(wk.node[:0], object.KindLeaf, children)
	}
	return stats, nil
}

// namePages writes the ids of the pages in b to children.
func namePages(wk *worker, b []byte, children []object.ID, name nameFunc, stats *ImageStats) error {
	batch := &wk.batch
	batch.pages, batch.at = batch.pages[:0], batch.at[:0]
	for n := 0; len(b) > 0; n++ {
		page := b[:min(object.PageBytes, len(b))]
		b = b[len(page):]
		if !isZero(page) {
			batch.pages, batch.at = append(batch.pages, page), append(batch.at, n)
		}
		if len(batch.pages) < object.Lanes && len(b) > 0 || len(batch.pages) == 0 {
			continue
		}
		fresh, err := name(wk, batch.pages, batch.ids[:len(batch.pages)])
		if err != nil {
			return err
		}
		stats.NewBytes += fresh
		for i, at := range batch.at {
			children[at] = batch.ids[i]
			if !batch.ids[i].IsZero() {
				stats.NonZeroBytes += int64(len(batch.pages[i]))
			}
		}
		batch.pages, batch.at = batch.pages[:0], batch.at[:0]
	}
	return nil
}

// data is what of a leaf is to be read, in whole pages.
func (p *put) data(part extent.Extent) extent.Set {
	if p.opt.Data == nil {
		return extent.Of(part)
	}
	return p.opt.Data.Within(part).RoundOut(object.PageBytes)
}

// bytes returns the bytes of e, lent or read.
func (p *put) bytes(wk *worker, e extent.Extent) ([]byte, error) {
	if p.lender != nil {
		b, err := p.lender.Lend(e.Off, int(e.Len))
		if err == nil && int64(len(b)) != e.Len {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return nil, fmt.Errorf("read source at %d: %w", e.Off, err)
		}
		return b, nil
	}
	b := wk.readBuffer()[:e.Len]
	n, err := p.src.ReadAt(b, e.Off)
	if n < len(b) {
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("read source at %d: %w", e.Off+int64(n), err)
	}
	return b, nil
}
