package repository

import (
	"context"
	"fmt"
	"io"
	"sync"

	"golang.org/x/sync/errgroup"

	"fermata/imageio/extent"
	"fermata/imageio/object"
)

// PutOptions modify PutImage.
type PutOptions struct {
	// Data says which parts of the source may hold other bytes than zeros.
	// Pages outside are taken for zeros and not read. Nil: all of it.
	Data *extent.Set
	// Progress is told how far the image is done, zeros included. Its calls
	// are never concurrent and never go back; the last is the size.
	Progress func(doneBytes int64)
}

// Lender is an optional ability of a source whose bytes are in memory: Lend
// returns n bytes at off without a copy, valid until PutImage returns. It is
// called from several goroutines. The bytes may change while they are lent.
type Lender interface {
	Lend(off int64, n int) ([]byte, error)
}

// ImageStats is what PutImage has seen.
type ImageStats struct {
	RawBytes     int64
	NonZeroBytes int64 // of pages that are not all zeros
	NewBytes     int64 // of pages that this call was the first to store
}

// PutImage stores size bytes of src. Equal bytes give equal refs, whatever the
// options. What it stored is durable after Finish.
//
// Pages of zeros cost nothing; a page that the repository or this Writer has
// is not stored again. src is read from several goroutines at a time, every
// part at most once.
//
// On error: the Writer may go on, unless the error sticks.
func (w *Writer) PutImage(ctx context.Context, src io.ReaderAt, size int64, opt PutOptions) (Ref, ImageStats, error) {
	if size < 0 || size > object.MaxImageBytes {
		return Ref{}, ImageStats{}, fmt.Errorf("put image: %d bytes, limit %d", size, object.MaxImageBytes)
	}
	p := &put{w: w, src: src, size: size, opt: opt, leaves: make([]object.ID, object.LeafCount(size))}
	p.lender, _ = src.(Lender) // without it bytes are read, which is only slower
	if err := p.putLeaves(ctx); err != nil {
		return Ref{}, ImageStats{}, fmt.Errorf("put image: %w", err)
	}
	id, err := p.putTop(ctx)
	if err != nil {
		return Ref{}, ImageStats{}, fmt.Errorf("put image: %w", err)
	}
	p.stats.RawBytes = size
	return Ref{ID: id, Size: size}, p.stats, nil
}

// PutBytes stores a small image that is in memory: a device state, the frames
// of a channel.
func (w *Writer) PutBytes(ctx context.Context, data []byte) (Ref, error) {
	ref, _, err := w.PutImage(ctx, lentBytes(data), int64(len(data)), PutOptions{})
	return ref, err
}

// lentBytes is a source in memory.
type lentBytes []byte

func (b lentBytes) ReadAt(p []byte, off int64) (int, error) {
	if off >= int64(len(b)) {
		return 0, io.EOF
	}
	n := copy(p, b[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (b lentBytes) Lend(off int64, n int) ([]byte, error) { return b[off:][:n], nil }

// put is one call of PutImage.
type put struct {
	w      *Writer
	src    io.ReaderAt
	lender Lender // nil if src is none
	size   int64
	opt    PutOptions
	leaves []object.ID // each written by the worker of its leaf

	mu    sync.Mutex
	stats ImageStats // guarded by mu
	done  int64      // guarded by mu
}

// putLeaves stores everything but branches and root, leaves in parallel.
func (p *put) putLeaves(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	for i := range p.leaves {
		part := p.part(i)
		data := extent.Of(part)
		if p.opt.Data != nil {
			data = p.opt.Data.Within(part)
		}
		if data.Empty() {
			p.account(part.Len, ImageStats{})
			continue
		}
		wk, err := p.w.worker(ctx)
		if err != nil {
			return orFirst(g.Wait(), err)
		}
		g.Go(func() error {
			defer func() { p.w.workers <- wk }()
			return p.putLeaf(wk, i, data.RoundOut(object.PageBytes))
		})
	}
	return g.Wait()
}

// orFirst prefers the error that cancelled the others.
func orFirst(first, err error) error {
	if first != nil {
		return first
	}
	return err
}

// worker waits for an idle worker.
func (w *Writer) worker(ctx context.Context) (*worker, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	select {
	case <-w.closing: // first, as select chooses freely
		return nil, ErrClosed
	default:
	}
	select {
	case wk := <-w.workers:
		return wk, nil
	case <-w.closing:
		return nil, ErrClosed
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// part is what leaf i covers.
func (p *put) part(i int) extent.Extent {
	off := int64(i) * object.LeafBytes
	return extent.Extent{Off: off, Len: min(object.LeafBytes, p.size-off)}
}

// putLeaf stores the pages of leaf i that lie in data, and the leaf.
func (p *put) putLeaf(wk *worker, i int, data extent.Set) error {
	if err := p.w.firstErr(); err != nil {
		return err
	}
	part := p.part(i)
	children := wk.children[:object.PageCount(part.Len)]
	clear(children)
	var stats ImageStats
	for e := range data.All() {
		e = e.Intersect(part) // rounding may have passed the end of the image
		b, err := p.bytes(wk, e)
		if err != nil {
			return err
		}
		if err := p.putPages(wk, b, children[(e.Off-part.Off)/object.PageBytes:], &stats); err != nil {
			return err
		}
	}
	if stats.NonZeroBytes > 0 {
		wk.node = object.AppendNode(wk.node[:0], object.KindLeaf, children)
		id, err := p.w.putNode(wk, object.KindLeaf, wk.node)
		if err != nil {
			return err
		}
		p.leaves[i] = id
	}
	p.account(part.Len, stats)
	return nil
}

// putPages stores the pages in b and writes their ids to children.
func (p *put) putPages(wk *worker, b []byte, children []object.ID, stats *ImageStats) error {
	for n := 0; len(b) > 0; n++ {
		page := b[:min(object.PageBytes, len(b))]
		b = b[len(page):]
		if isZero(page) {
			continue
		}
		id, fresh, err := p.w.putPage(wk, page)
		if err != nil {
			return err
		}
		if id.IsZero() {
			continue
		}
		children[n] = id
		stats.NonZeroBytes += int64(len(page))
		if fresh {
			stats.NewBytes += int64(len(page))
		}
	}
	return nil
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

// account adds a leaf to the statistics and tells the caller. Progress is
// called under the lock, which puts its calls in order.
func (p *put) account(done int64, s ImageStats) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stats.NonZeroBytes += s.NonZeroBytes
	p.stats.NewBytes += s.NewBytes
	p.done += done
	if p.opt.Progress != nil {
		p.opt.Progress(p.done)
	}
}

// putTop stores the branches and the root.
func (p *put) putTop(ctx context.Context) (object.ID, error) {
	wk, err := p.w.worker(ctx)
	if err != nil {
		return object.ID{}, err
	}
	defer func() { p.w.workers <- wk }()
	root := object.Root{Size: p.size, Branches: make([]object.ID, object.BranchCount(p.size))}
	for i := range root.Branches {
		leaves := p.leaves[i*object.Fanout : min((i+1)*object.Fanout, len(p.leaves))]
		if allZero(leaves) {
			continue
		}
		wk.node = object.AppendNode(wk.node[:0], object.KindBranch, leaves)
		if root.Branches[i], err = p.w.putNode(wk, object.KindBranch, wk.node); err != nil {
			return object.ID{}, err
		}
	}
	wk.node = object.AppendRoot(wk.node[:0], root)
	return p.w.putNode(wk, object.KindRoot, wk.node)
}

func allZero(ids []object.ID) bool {
	for i := range ids {
		if !ids[i].IsZero() {
			return false
		}
	}
	return true
}
