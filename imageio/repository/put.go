package repository

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"fermata/imageio/extent"
	"fermata/imageio/object"
)

// PutOptions modify PutImage.
type PutOptions struct {
	// Data says which parts of the source may hold other bytes than zeros.
	// Pages outside are taken for zeros and not read. Nil: all of it. It does
	// not count for what is taken from Base.
	Data *extent.Set
	// Progress is told how far the image is done, zeros included. Its calls
	// are never concurrent and never go back; the last is the size.
	Progress func(doneBytes int64)

	// Base is an earlier generation of the image, of the same size: leaves that
	// Changed does not touch are taken from it, neither read nor hashed. Its
	// Writer must have finished, on the same Repository; whether the round was
	// committed does not matter. It is refused with ErrBaseGone when the index
	// has forgotten a pack that is needed, so Refresh before, as for NewWriter.
	// A pack that goes later fails Finish with ErrPackMissing, as any old pack
	// does; the next round then does without this Base.
	Base *Image
	// Changed says what may differ from Base. Nil: everything, so that Base is
	// of use only by its fingerprints.
	Changed *extent.Set
	// Fingerprint gives the image a fingerprint of each leaf, a fast hash that is
	// not cryptographic, under a secret of this process. Of a leaf that is read
	// although Base has it, and whose bytes have the same fingerprint, the pages are
	// neither named nor looked up. That a changed leaf passes for the same happens
	// once in 2^64. It costs a tenth of the time in which pages are named.
	Fingerprint bool
	// Audit reads and hashes also what is taken from Base, and fails with
	// ErrDiverged, naming the leaf's offset, where it differs: whoever tracked
	// the changes missed one.
	Audit bool

	// Urgent is asked each time a leaf is about to be read, by the goroutine
	// that called PutImage, and may name an offset whose leaf somebody waits
	// for: that leaf is read next. It changes nothing if the leaf was begun
	// already, need not be read or is outside the image.
	Urgent func() (off int64, ok bool)
	// Turn is given the work on each leaf that is read, some milliseconds of one
	// processor, and must do it once before it returns; it returns its error. A caller
	// whose processors are needed for something better may wait in it, before or
	// after. Several goroutines call it at a time. Nil: work is done at once.
	Turn func(work func() error) error
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
	NonZeroBytes int64 // of pages that are not all zeros, whether read or taken from Base
	NewBytes     int64 // of pages that this call was the first to store
	ChangedBytes int64 // read from the source because Base did not have them
	AuditedBytes int64 // read from the source although Base had them
	SameBytes    int64 // read from the source, and by their fingerprint what Base had
}

// PutImage stores size bytes of src. Equal bytes give equal refs, whatever the
// options, if these tell the truth about the bytes. What it stored is durable
// after Finish.
//
// Pages of zeros cost nothing; a page that the repository or this Writer has
// is not stored again. src is read from several goroutines at a time, every
// part at most once. It may block; ctx does not end a read that has begun, and
// none goes on after PutImage has returned.
//
// On error: the Writer may go on, unless the error sticks; an error of src does
// not, and is wrapped.
func (w *Writer) PutImage(ctx context.Context, src io.ReaderAt, size int64, opt PutOptions) (*Image, error) {
	if size < 0 || size > object.MaxImageBytes {
		return nil, fmt.Errorf("put image: %d bytes, limit %d", size, object.MaxImageBytes)
	}
	leaves := object.LeafCount(size)
	p := &put{w: w, src: src, size: size, opt: opt, image: &Image{
		r: w.r, ids: make([]object.ID, leaves), held: make([]holding, leaves),
	}}
	if opt.Fingerprint {
		p.image.prints = make([]uint64, leaves)
	}
	p.lender, _ = src.(Lender) // without it bytes are read, which is only slower
	if err := p.putLeaves(ctx); err != nil {
		return nil, fmt.Errorf("put image: %w", err)
	}
	if err := p.complete(ctx); err != nil {
		return nil, fmt.Errorf("put image: %w", err)
	}
	return p.image, nil
}

// PutBytes stores a small image that is in memory: a device state, the frames
// of a channel.
func (w *Writer) PutBytes(ctx context.Context, data []byte) (Ref, error) {
	img, err := w.PutImage(ctx, lentBytes(data), int64(len(data)), PutOptions{})
	if err != nil {
		return Ref{}, err
	}
	return img.Ref, nil
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

	// image is ours until PutImage returns it. Each leaf's ids and held are
	// written by the worker of the leaf; open is guarded by mu.
	image *Image
	// inherited are the packs, by ordinal, of the leaves taken from Base; owned
	// by the goroutine that called PutImage.
	inherited map[uint32]struct{}

	mu    sync.Mutex
	stats ImageStats // guarded by mu
	done  int64      // guarded by mu
}

// putLeaves stores everything but branches and root, leaves in parallel.
func (p *put) putLeaves(ctx context.Context) error {
	todo, err := p.plan()
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	for todo.left > 0 {
		wk, err := p.w.worker(ctx)
		if err != nil {
			return orFirst(g.Wait(), err)
		}
		i := todo.take(p.urgentLeaf()) // asked late: waiting for a worker takes time
		g.Go(func() error {
			defer func() { p.w.workers <- wk }()
			if p.opt.Turn != nil {
				return p.opt.Turn(func() error { return p.readLeaf(wk, i) })
			}
			return p.readLeaf(wk, i)
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

// account adds leaves to the statistics and tells the caller. Progress is
// called under the lock, which puts its calls in order. It copies open, if that
// has runs.
func (p *put) account(done int64, s ImageStats, open openLeaf) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(open.runs) > 0 {
		open.runs = slices.Clone(open.runs)
		p.image.open = append(p.image.open, open)
	}
	p.stats.NonZeroBytes += s.NonZeroBytes
	p.stats.NewBytes += s.NewBytes
	p.stats.ChangedBytes += s.ChangedBytes
	p.stats.AuditedBytes += s.AuditedBytes
	p.stats.SameBytes += s.SameBytes
	p.done += done
	if p.opt.Progress != nil && done > 0 {
		p.opt.Progress(p.done)
	}
}

// complete stores branches and root and hands the image to the Writer, all
// while it holds a worker, for which Finish waits.
func (p *put) complete(ctx context.Context) error {
	wk, err := p.w.worker(ctx)
	if err != nil {
		return err
	}
	defer func() { p.w.workers <- wk }()
	id, err := p.putTop(wk)
	if err != nil {
		return err
	}
	for ordinal := range p.inherited {
		wk.use(ordinal)
	}
	p.stats.RawBytes = p.size
	p.image.Ref, p.image.Stats = Ref{ID: id, Size: p.size}, p.stats
	p.w.keep(p.image)
	return nil
}

// putTop stores the branches and the root.
func (p *put) putTop(wk *worker) (object.ID, error) {
	wk.holders.reset()
	ids := p.image.ids
	root := object.Root{Size: p.size, Branches: make([]object.ID, object.BranchCount(p.size))}
	for i := range root.Branches {
		leaves := ids[i*object.Fanout : min((i+1)*object.Fanout, len(ids))]
		if allZero(leaves) {
			continue
		}
		wk.node = object.AppendNode(wk.node[:0], object.KindBranch, leaves)
		var err error
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
