package repository

import (
	"context"
	"fmt"
	"io"
	"slices"
	"sync"

	"fermata/imageio/damage"
	"fermata/imageio/object"
)

// ReadOptions modify ReadImage.
type ReadOptions struct {
	// Progress is told how far the image is done, zeros included. Its calls
	// are never concurrent and never go back; the last is the size.
	Progress func(doneBytes int64)
}

// ReadImage writes an image to dst, which must read as zeros everywhere: pages
// of zeros are not written. Every page is verified before it is written. dst is
// written from several goroutines, never twice at the same place.
//
// On error: dst holds parts of the image. ErrCorrupt names what is damaged.
func (rd *Reader) ReadImage(ctx context.Context, ref Ref, dst io.WriterAt, opt ReadOptions) error {
	p := progress{size: ref.Size, tell: opt.Progress}
	err := rd.pages(ctx, ref, func(wants []want, _, to int64) error {
		err := rd.fetch(ctx, wants, func(run []byte, batch []want) error {
			return writePages(dst, ref.Size, run, batch, &p)
		})
		p.reach(to)
		return err
	})
	if err != nil {
		return fmt.Errorf("read image %s: %w", ref, err)
	}
	p.reach(ref.Size)
	return nil
}

// writePages writes pages, neighbours in both the run and the image together.
func writePages(dst io.WriterAt, size int64, run []byte, batch []want, p *progress) error {
	for len(batch) > 0 {
		first, n := batch[0], 1
		if first.loc.Length != object.PageBytes {
			return damage.New("page "+first.id.String(), fmt.Errorf("%d bytes", first.loc.Length))
		}
		for n < len(batch) && batch[n].tag == first.tag+int64(n) && batch[n].loc.Offset == first.loc.Offset+uint32(n)*object.PageBytes &&
			batch[n].loc.Length == object.PageBytes {
			n++
		}
		off := first.tag * object.PageBytes
		b := run[first.loc.Offset:][:min(int64(n)*object.PageBytes, size-off)]
		if _, err := dst.WriteAt(b, off); err != nil {
			return fmt.Errorf("write at %d: %w", off, err)
		}
		p.add(int64(len(b)))
		batch = batch[n:]
	}
	return nil
}

// progress tells a caller of bytes done.
type progress struct {
	size int64
	tell func(int64) // nil: nobody asks

	mu   sync.Mutex
	done int64 // guarded by mu
	told int64 // guarded by mu
}

// progressStep is how often a caller is told: often enough for a display.
const progressStep = 4 << 20

// add counts bytes. The caller is told under the lock, which puts its calls in
// order.
func (p *progress) add(n int64) {
	if p.tell == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done += n
	if p.done-p.told >= progressStep {
		p.told = p.done
		p.tell(p.done)
	}
}

// reach counts everything up to here as done.
func (p *progress) reach(to int64) {
	if p.tell == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.done = max(p.done, to)
	if p.done > p.told || p.size == 0 {
		p.told = p.done
		p.tell(p.done)
	}
}

// ReadBytes reads a small image into memory. It refuses one of more than max
// bytes before it allocates.
func (rd *Reader) ReadBytes(ctx context.Context, ref Ref, max int64) ([]byte, error) {
	if ref.Size < 0 || ref.Size > max {
		return nil, fmt.Errorf("read image %s: limit %d", ref, max)
	}
	b := make(bytesAt, ref.Size)
	if err := rd.ReadImage(ctx, ref, b, ReadOptions{}); err != nil {
		return nil, err
	}
	return b, nil
}

// bytesAt is a destination in memory.
type bytesAt []byte

func (b bytesAt) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 || off > int64(len(b)) || len(p) > len(b[off:]) {
		return 0, io.ErrShortWrite
	}
	return copy(b[off:], p), nil
}

// UniquePages counts the distinct pages, zeros left out, of all refs together.
// It reads leaves only and takes eight bytes of memory a page.
func (rd *Reader) UniquePages(ctx context.Context, refs []Ref) (pages uint64, err error) {
	var places []uint64 // an object has one place, and a place fits 64 bits
	distinct := 0       // of places, when they were last sorted
	for _, ref := range refs {
		err := rd.pages(ctx, ref, func(wants []want, _, _ int64) error {
			for i := range wants {
				places = append(places, placeKey(wants[i].loc))
			}
			if len(places) > 2*distinct { // doubling keeps the sorting cheap
				places = sortedDistinct(places)
				distinct = len(places)
			}
			return nil
		})
		if err != nil {
			return 0, fmt.Errorf("count pages of %s: %w", ref, err)
		}
	}
	return uint64(len(sortedDistinct(places))), nil
}

func sortedDistinct(s []uint64) []uint64 {
	slices.Sort(s)
	return slices.Compact(s)
}
