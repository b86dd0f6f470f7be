// Package capture takes a guest's memory and disks as they were at one instant,
// and hands them to the repository while the guest runs.
//
// Live: a Tracker protects memory, a Cut fixes the instant and a Source is read
// afterwards; the pause does not grow with memory. By copy: a Copy is made inside
// the pause. Both draw on one Budget a node. What of a copy does not fit must be
// stored straight from its source, inside the pause; a guest that writes more
// than fits beside a live capture waits for the sweep.
package capture

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"fermata/imageio/extent"
)

// ErrOverBudget means that a copy would take more memory than is configured.
var ErrOverBudget = errors.New("memory budget of captures is used up")

// Budget bounds the memory that all copies of a node take together, in bytes.
//
// Concurrency: safe for use by several goroutines.
type Budget struct {
	mu   sync.Mutex
	free int64 // guarded by mu
}

// NewBudget returns a budget of n bytes.
func NewBudget(n int64) *Budget { return &Budget{free: n} }

// Free returns what may still be taken, in bytes.
func (b *Budget) Free() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.free
}

func (b *Budget) take(n int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n > b.free {
		return false
	}
	b.free -= n
	return true
}

func (b *Budget) give(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.free += n
}

// Copy is a frozen copy of a file: a guest's memory block or a disk overlay.
// Holes and zero pages take no memory.
//
// Concurrency: ReadAt may be called by several goroutines, not beside Close.
type Copy struct {
	budget *Budget
	taken  int64  // from budget
	mem    []byte // nil after Close
	size   int64
	data   extent.Set // page-aligned ranges that may hold something
}

var _ io.ReaderAt = (*Copy)(nil)

// CopyMemory copies the first size bytes, whole pages, of a guest's memory
// file, by way of a mapping. Nothing may write f meanwhile: its guest stands
// still. Warm, called before, makes it several times faster. What is hidden is not
// read, and is a hole of the copy.
//
// On error nothing is held.
func (b *Budget) CopyMemory(ctx context.Context, f *os.File, size int64, hidden extent.Set) (*Copy, error) {
	w, err := b.reserve(f, size)
	if err != nil {
		return nil, err
	}
	return w.Copy(ctx, f, hidden)
}

// CopyFile copies size bytes, from base on, of a file that cannot or should not
// be mapped, such as a disk overlay, under the conditions of CopyMemory. It reads:
// a failing disk under a mapping would end the whole process with SIGBUS.
func (b *Budget) CopyFile(ctx context.Context, f *os.File, base, size int64, hidden extent.Set) (*Copy, error) {
	return b.copy(ctx, f, base, size, hidden, func(dst []byte, data extent.Set) error {
		return eachPiece(ctx, data, func(e extent.Extent) error {
			if _, err := f.ReadAt(dst[e.Off:min(e.End(), size)], base+e.Off); err != nil {
				return fmt.Errorf("copy %s: %w", f.Name(), err)
			}
			return nil
		})
	})
}

// copy takes what the copy needs and has fill write it.
func (b *Budget) copy(ctx context.Context, f *os.File, base, size int64, hidden extent.Set, fill func(dst []byte, data extent.Set) error) (_ *Copy, err error) {
	if size == 0 {
		return &Copy{}, nil
	}
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	data, err := Data(f, base, size)
	if err != nil {
		return nil, err
	}
	data = data.Subtract(hidden)
	need := data.Bytes()
	if !b.take(need) {
		return nil, fmt.Errorf("copy %d bytes of %s: %w", need, f.Name(), ErrOverBudget)
	}
	c := &Copy{budget: b, taken: need, size: size, data: data}
	if c.mem, err = mapAnonymous((size + pageBytes - 1) &^ (pageBytes - 1)); err == nil {
		err = fill(c.mem, data)
	}
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// eachPiece calls f for pieces of data, on all processors, until all are done,
// one fails or ctx ends.
func eachPiece(ctx context.Context, data extent.Set, f func(extent.Extent) error) error {
	// pieceBytes is what one worker takes at a time: large enough to make
	// handing out free, small enough to keep all workers busy to the end, and to
	// give up within milliseconds.
	const pieceBytes = 4 << 20
	g, ctx := errgroup.WithContext(ctx)
	pieces := make(chan extent.Extent, 64)
	for range runtime.GOMAXPROCS(0) {
		g.Go(func() error {
			for e := range pieces {
				if err := f(e); err != nil {
					return err
				}
			}
			return nil
		})
	}
	g.Go(func() error {
		defer close(pieces)
		for e := range data.All() {
			for off := e.Off; off < e.End(); off += pieceBytes {
				select {
				case pieces <- extent.Extent{Off: off, Len: min(pieceBytes, e.End()-off)}:
				case <-ctx.Done():
					return context.Cause(ctx)
				}
			}
		}
		return nil
	})
	return g.Wait()
}

// Size returns the bytes of the copied file, holes included.
func (c *Copy) Size() int64 { return c.size }

// Data returns the ranges that may hold something other than zeros.
func (c *Copy) Data() extent.Set { return c.data }

// Lend implements repository.Lender: the copy is in memory already, so that
// storing it need not copy it once more. The bytes stay valid until Close.
func (c *Copy) Lend(off int64, n int) ([]byte, error) {
	if off < 0 || n < 0 || off+int64(n) > c.size {
		return nil, fmt.Errorf("lend [%d,+%d) of a copy of %d bytes: %w", off, n, c.size, io.ErrUnexpectedEOF)
	}
	return c.mem[off:][:n:n], nil
}

// ReadAt implements io.ReaderAt.
func (c *Copy) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= c.size {
		return 0, io.EOF
	}
	n := copy(p, c.mem[off:c.size])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// Close frees the copy. It is idempotent.
func (c *Copy) Close() error {
	if c.budget != nil {
		c.budget.give(c.taken)
		c.budget = nil
	}
	if c.mem == nil {
		return nil
	}
	mem := c.mem
	c.mem = nil
	if err := unix.Munmap(mem); err != nil {
		return fmt.Errorf("free memory copy: %w", err)
	}
	return nil
}

// Data returns the page-aligned ranges, from base on, of the size bytes of f from
// base on that are not holes, found with lseek(2) SEEK_DATA and SEEK_HOLE. A file
// that cannot tell, such as the memory of a process, has none.
func Data(f *os.File, base, size int64) (extent.Set, error) {
	var set extent.Set
	end := (size + pageBytes - 1) &^ (pageBytes - 1)
	for off := int64(0); off < size; {
		start, err := unix.Seek(int(f.Fd()), base+off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // no data behind off
		}
		if errors.Is(err, unix.EINVAL) {
			return extent.Of(extent.Extent{Off: 0, Len: end}), nil
		}
		if err != nil {
			return extent.Set{}, fmt.Errorf("find data of %s: %w", f.Name(), err)
		}
		start -= base
		if start >= size {
			break
		}
		stop, err := unix.Seek(int(f.Fd()), base+start, unix.SEEK_HOLE)
		if err != nil {
			return extent.Set{}, fmt.Errorf("find holes of %s: %w", f.Name(), err)
		}
		stop -= base
		e := extent.Extent{Off: start, Len: min(stop, size) - start}.RoundOut(pageBytes)
		set.Add(extent.Extent{Off: e.Off, Len: min(e.End(), end) - e.Off})
		off = stop
	}
	return set, nil
}
