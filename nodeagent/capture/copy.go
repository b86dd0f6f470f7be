// Package capture takes a guest's memory and disks while the guest stands
// still, and hands them to the repository after it runs again.
//
// A Copy is made inside the pause and read afterwards. Copies draw on one
// Budget a node; what does not fit must be stored straight from its source,
// inside the pause: always right, only slower.
package capture

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"

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

// CopyFile copies the first size bytes of f. Nothing may write f meanwhile:
// its guest stands still.
//
// On error nothing is held.
func (b *Budget) CopyFile(f *os.File, size int64) (_ *Copy, err error) {
	if size == 0 {
		return &Copy{}, nil
	}
	data, err := Data(f, size)
	if err != nil {
		return nil, err
	}
	need := data.Bytes()
	if !b.take(need) {
		return nil, fmt.Errorf("copy %d bytes of %s: %w", need, f.Name(), ErrOverBudget)
	}
	c := &Copy{budget: b, taken: need, size: size, data: data}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	rounded := (size + pageBytes - 1) &^ (pageBytes - 1)
	if c.mem, err = mapAnonymous(rounded); err != nil {
		return nil, err
	}
	if size%pageBytes != 0 {
		// Not a memory block: a file whose last page is partial cannot be mapped
		// safely to its end while it may be truncated by others.
		for e := range data.All() {
			if _, err := f.ReadAt(c.mem[e.Off:min(e.End(), size)], e.Off); err != nil {
				return nil, fmt.Errorf("copy %s: %w", f.Name(), err)
			}
		}
		return c, nil
	}
	src, err := mapFile(f, size)
	if err != nil {
		return nil, err
	}
	copyPages(c.mem, src, data)
	if err := unix.Munmap(src); err != nil {
		return nil, fmt.Errorf("unmap %s: %w", f.Name(), err)
	}
	return c, nil
}

// copyPages copies the non-zero pages of data, on all processors.
func copyPages(dst, src []byte, data extent.Set) {
	// pieceBytes is what one worker copies at a time: large enough to make
	// handing out free, small enough to keep all workers busy to the end.
	const pieceBytes = 4 << 20
	pieces := make(chan extent.Extent, 64)
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for e := range pieces {
				for off := e.Off; off < e.End(); off += pageBytes {
					if p := src[off : off+pageBytes]; !isZero(p) {
						copy(dst[off:off+pageBytes], p)
					}
				}
			}
		})
	}
	for e := range data.All() {
		for off := e.Off; off < e.End(); off += pieceBytes {
			pieces <- extent.Extent{Off: off, Len: min(pieceBytes, e.End()-off)}
		}
	}
	close(pieces)
	wg.Wait()
}

// Size returns the bytes of the copied file, holes included.
func (c *Copy) Size() int64 { return c.size }

// Data returns the ranges that may hold something other than zeros.
func (c *Copy) Data() extent.Set { return c.data }

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

// Data returns the page-aligned ranges of f below size that are not holes,
// found with lseek(2) SEEK_DATA and SEEK_HOLE.
func Data(f *os.File, size int64) (extent.Set, error) {
	var set extent.Set
	end := (size + pageBytes - 1) &^ (pageBytes - 1)
	for off := int64(0); off < size; {
		start, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // no data behind off
		}
		if err != nil {
			return extent.Set{}, fmt.Errorf("find data of %s: %w", f.Name(), err)
		}
		if start >= size {
			break
		}
		stop, err := unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE)
		if err != nil {
			return extent.Set{}, fmt.Errorf("find holes of %s: %w", f.Name(), err)
		}
		e := extent.Extent{Off: start, Len: min(stop, size) - start}.RoundOut(pageBytes)
		set.Add(extent.Extent{Off: e.Off, Len: min(e.End(), end) - e.Off})
		off = stop
	}
	return set, nil
}
