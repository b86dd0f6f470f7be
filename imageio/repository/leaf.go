package repository

import (
	"fmt"
	"hash/maphash"
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
	if err := p.load(wk, part); err != nil {
		return err
	}
	if p.sameAsBase(wk, i) {
		return nil
	}
	wk.printing = p.image.prints != nil
	stats, print, err := p.pages(wk, part, p.w.putPages)
	wk.printing = false
	if err != nil {
		return err
	}
	if stats.NonZeroBytes > 0 {
		if p.image.ids[i], err = p.w.putNode(wk, object.KindLeaf, wk.node); err != nil {
			return err
		}
		p.image.held[i] = holding{packs: sortedClone(wk.holders.packs), nonZero: int32(stats.NonZeroBytes)}
		if p.image.prints != nil {
			p.image.prints[i] = print
		}
	}
	p.account(part.Len, stats, openLeaf{leaf: i, runs: wk.holders.runs})
	return nil
}

// sameAsBase takes leaf i from Base if what was loaded has the fingerprint that Base
// has. Loaded bytes may change meanwhile: they were the same then, or a mixture of
// what they were that is the same.
func (p *put) sameAsBase(wk *worker, i int) bool {
	base := p.opt.Base
	if base == nil || base.prints == nil || base.prints[i] == 0 {
		return false
	}
	for _, ordinal := range base.held[i].packs {
		if !p.w.r.index.Has(p.w.r.index.PackID(ordinal)) {
			return false // swept, or damaged: store it again
		}
	}
	var print uint64
	var read int64
	for _, c := range wk.chunks {
		read += int64(len(c.bytes))
		for b, page := c.bytes, c.page; len(b) > 0; page++ {
			n := min(object.PageBytes, len(b))
			if !isZero(b[:n]) {
				print = foldPrint(p.w.r.seed, print, page, maphash.Bytes(p.w.r.seed, b[:n]))
			}
			b = b[n:]
		}
	}
	if print != base.prints[i] {
		return false
	}
	p.take(i)
	for _, ordinal := range base.held[i].packs {
		wk.use(ordinal)
	}
	p.account(p.part(i).Len, ImageStats{NonZeroBytes: int64(base.held[i].nonZero), SameBytes: read}, openLeaf{})
	return true
}

// foldPrint adds a page that is not all zeros to the fingerprint of its leaf.
func foldPrint(seed maphash.Seed, print uint64, page int, hash uint64) uint64 {
	return max(1, maphash.Comparable(seed, [3]uint64{print, uint64(page), hash}))
}

// auditLeaf checks that leaf i is what was taken from Base, and stores nothing.
func (p *put) auditLeaf(wk *worker, i int) error {
	part := p.part(i)
	if err := p.load(wk, part); err != nil {
		return err
	}
	stats, _, err := p.pages(wk, part, sumPages)
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

// chunk is bytes of a leaf, from a page of it on.
type chunk struct {
	page  int
	bytes []byte
}

// load reads what there is of a leaf, every part once.
func (p *put) load(wk *worker, part extent.Extent) error {
	wk.chunks = wk.chunks[:0]
	for e := range p.data(part).All() {
		e = e.Intersect(part) // rounding may have passed the end of the image
		b, err := p.bytes(wk, part, e)
		if err != nil {
			return err
		}
		wk.chunks = append(wk.chunks, chunk{int((e.Off - part.Off) / object.PageBytes), b})
	}
	return nil
}

// pages names the pages of the leaf that was loaded. It leaves the leaf's encoding in
// wk.node; if no page is other than zeros, the leaf is no object. print is the leaf's
// fingerprint, if the worker was told to make one.
func (p *put) pages(wk *worker, part extent.Extent, name nameFunc) (stats ImageStats, print uint64, err error) {
	children := wk.children[:object.PageCount(part.Len)]
	clear(children)
	for _, c := range wk.chunks {
		stats.ChangedBytes += int64(len(c.bytes))
		if print, err = p.namePages(wk, c, children[c.page:], name, &stats, print); err != nil {
			return ImageStats{}, 0, err
		}
	}
	if stats.NonZeroBytes > 0 {
		wk.node = object.AppendNode(wk.node[:0], object.KindLeaf, children)
	}
	return stats, print, nil
}

// namePages writes the ids of the pages in a chunk to children, and adds them to the
// fingerprint.
func (p *put) namePages(wk *worker, c chunk, children []object.ID, name nameFunc, stats *ImageStats, print uint64) (uint64, error) {
	batch, b := &wk.batch, c.bytes
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
		batch.prints = batch.prints[:0]
		fresh, err := name(wk, batch.pages, batch.ids[:len(batch.pages)])
		if err != nil {
			return 0, err
		}
		stats.NewBytes += fresh
		for i, at := range batch.at {
			children[at] = batch.ids[i]
			if batch.ids[i].IsZero() {
				continue
			}
			stats.NonZeroBytes += int64(len(batch.pages[i]))
			if wk.printing {
				print = foldPrint(p.w.r.seed, print, c.page+at, batch.prints[i])
			}
		}
		batch.pages, batch.at = batch.pages[:0], batch.at[:0]
	}
	return print, nil
}

// data is what of a leaf is to be read, in whole pages.
func (p *put) data(part extent.Extent) extent.Set {
	if p.opt.Data == nil {
		return extent.Of(part)
	}
	return p.opt.Data.Within(part).RoundOut(object.PageBytes)
}

// bytes returns the bytes of e, lent or read, until the worker's next leaf.
func (p *put) bytes(wk *worker, part, e extent.Extent) ([]byte, error) {
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
	b := wk.readBuffer()[e.Off-part.Off:][:e.Len]
	n, err := p.src.ReadAt(b, e.Off)
	if n < len(b) {
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("read source at %d: %w", e.Off+int64(n), err)
	}
	return b, nil
}
