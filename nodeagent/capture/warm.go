package capture

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"fermata/imageio/extent"
)

// Warm is the place of a later copy of a guest's memory, made ready while the
// guest runs: the first touch of fresh memory costs several times the copying,
// and in a virtual machine whose host takes free memory back, much more. See
// BenchmarkCopyMemory.
//
// Concurrency: one goroutine at a time.
type Warm struct {
	budget *Budget
	taken  int64 // from budget
	size   int64
	mem    []byte // the copy's; nil once it is handed over or closed
	src    []byte // the file's mapping
}

// Warm makes a place for a copy of the first size bytes, whole pages, of f. The
// guest may run.
//
// On error nothing is held. ErrOverBudget: the copy would take more than is left.
func (b *Budget) Warm(ctx context.Context, f *os.File, size int64) (*Warm, error) {
	w, err := b.reserve(f, size)
	if err != nil {
		return nil, err
	}
	data, err := Data(f, 0, size)
	if err == nil {
		err = eachPiece(ctx, data, func(e extent.Extent) error {
			// A kernel that cannot populate (before 5.14) makes the pause longer, no more.
			_ = unix.Madvise(w.mem[e.Off:e.End()], unix.MADV_POPULATE_WRITE)
			_ = unix.Madvise(w.src[e.Off:e.End()], unix.MADV_POPULATE_READ)
			return nil
		})
	}
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return w, nil
}

// reserve takes budget and address space for a copy.
func (b *Budget) reserve(f *os.File, size int64) (_ *Warm, err error) {
	if size%pageBytes != 0 || size == 0 {
		return nil, fmt.Errorf("copy %d bytes of %s: not whole pages", size, f.Name())
	}
	data, err := Data(f, 0, size)
	if err != nil {
		return nil, err
	}
	w := &Warm{budget: b, size: size}
	if err := w.take(data.Bytes(), f); err != nil {
		return nil, err
	}
	if w.mem, err = mapAnonymous(size); err == nil {
		w.src, err = mapFile(f, size)
	}
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	return w, nil
}

// take brings what is taken from the budget up to need.
func (w *Warm) take(need int64, f *os.File) error {
	if need <= w.taken {
		return nil
	}
	if !w.budget.take(need - w.taken) {
		return fmt.Errorf("copy %d bytes of %s: %w", need, f.Name(), ErrOverBudget)
	}
	w.taken = need
	return nil
}

// Copy copies f, which nothing may write meanwhile: its guest stands still. What is
// hidden is not read. The Warm is used up, also on error.
func (w *Warm) Copy(ctx context.Context, f *os.File, hidden extent.Set) (_ *Copy, err error) {
	defer func() { err = errors.Join(err, w.Close()) }()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	data, err := Data(f, 0, w.size)
	if err != nil {
		return nil, err
	}
	data = data.Subtract(hidden)
	if err := w.take(data.Bytes(), f); err != nil {
		return nil, err
	}
	err = eachPiece(ctx, data, func(e extent.Extent) error {
		for off := e.Off; off < e.End(); off += pageBytes {
			if p := w.src[off : off+pageBytes]; !isZero(p) {
				copy(w.mem[off:off+pageBytes], p)
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	c := &Copy{budget: w.budget, taken: w.taken, mem: w.mem, size: w.size, data: data}
	w.mem, w.taken = nil, 0
	return c, nil
}

// Close frees what is held. It is idempotent.
func (w *Warm) Close() error {
	w.budget.give(w.taken)
	w.taken = 0
	var errs []error
	for _, m := range []*[]byte{&w.mem, &w.src} {
		if *m != nil {
			errs = append(errs, unix.Munmap(*m))
			*m = nil
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("free the place of a memory copy: %w", err)
	}
	return nil
}
