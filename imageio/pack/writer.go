package pack

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"

	"fermata/imageio/seal"
	"fermata/imageio/vfs"
)

// writeChunk is the size of all writes but the last: a multiple of what
// parallel file systems stripe by, at offsets that are multiples of it.
const writeChunk = 1 << 20

// Writer appends runs to one new pack. The first error sticks.
//
// Concurrency: one goroutine at a time.
type Writer struct {
	fs        vfs.FS
	temp      string // name while being written
	final     string
	file      vfs.File
	domain    *seal.Domain
	header    []byte
	trailer   Trailer
	offset    int64  // where the next run begins
	buf       []byte // bytes before offset that are not written yet
	err       error  // sticks
	finalised bool
}

// Options modify Create.
type Options struct {
	// Room is how many bytes are reserved for the pack, where the file system can.
	Room int64
	// Domain seals the table of contents. Runs come sealed, by its Encoder. Nil:
	// neither is sealed.
	Domain *seal.Domain
}

// Create begins a pack under a temporary name in the directory of its final one.
func Create(fsys vfs.FS, temp, final string, h Header, opt Options) (*Writer, error) {
	header, err := encodeHeader(h)
	if err != nil {
		return nil, err
	}
	file, err := fsys.Create(temp)
	if err != nil {
		return nil, fmt.Errorf("create pack %s: %w", h.ID, err)
	}
	if p, ok := file.(vfs.Preallocator); ok && opt.Room > 0 {
		if err := p.Preallocate(opt.Room); err != nil && !errors.Is(err, errors.ErrUnsupported) {
			return nil, errors.Join(fmt.Errorf("reserve room for pack %s: %w", h.ID, err), file.Close(), fsys.Remove(temp))
		}
	}
	return &Writer{
		fs: fsys, temp: temp, final: final, file: file, domain: opt.Domain, header: header,
		trailer: Trailer{Header: h}, offset: int64(len(header)),
		buf: append(make([]byte, 0, writeChunk+MaxRunBytes), header...),
	}, nil
}

// ID names the pack.
func (w *Writer) ID() ID { return w.trailer.Header.ID }

// Size is what the pack has grown to, trailer left out.
func (w *Writer) Size() int64 { return w.offset }

// Objects lists what is in the pack so far. It is valid until the next call.
func (w *Writer) Objects() []Object { return w.trailer.Objects }

// HasRoom says that one more run of so many objects fits the format.
func (w *Writer) HasRoom(objects int) bool {
	return len(w.trailer.Runs) < MaxRuns && len(w.trailer.Objects)+objects <= MaxObjects
}

// Append stores a run. Of the objects it reads id, kind and length; they fill
// the run in this order.
func (w *Writer) Append(run Encoded, objects []Object) error {
	if w.err != nil {
		return w.err
	}
	if !w.HasRoom(len(objects)) || len(objects) > maxObjectsInRun || run.RawLen > MaxRunBytes {
		return w.fail(errTooLarge)
	}
	n, off := uint32(len(w.trailer.Runs)), uint32(0)
	w.trailer.Runs = append(w.trailer.Runs, Run{
		Offset: w.offset, StoredLen: uint32(len(run.Stored)), RawLen: uint32(run.RawLen), CRC: run.CRC,
		Algorithm: run.Algorithm, First: uint32(len(w.trailer.Objects)), Count: uint32(len(objects)),
	})
	for _, o := range objects {
		o.Run, o.Offset = n, off
		off += o.Length
		w.trailer.Objects = append(w.trailer.Objects, o)
	}
	w.offset += int64(len(run.Stored))
	w.buf = append(w.buf, run.Stored...)
	if len(w.buf) >= writeChunk {
		return w.flush(len(w.buf) / writeChunk * writeChunk)
	}
	return nil
}

// Finalise makes the pack durable and gives it its final name. It returns the
// size of the file.
func (w *Writer) Finalise() (size int64, err error) {
	if w.err != nil {
		return 0, w.err
	}
	tail, err := encodeTrailer(w.header, &w.trailer, w.offset, w.domain)
	if err == nil {
		err = w.checkTrailer(tail)
	}
	if err != nil {
		return 0, w.fail(err)
	}
	w.buf = append(w.buf, tail...)
	if err := w.flush(len(w.buf)); err != nil {
		return 0, err
	}
	if err := w.file.Sync(); err != nil {
		return 0, w.fail(fmt.Errorf("sync pack: %w", err))
	}
	file := w.file
	w.file = nil
	if err := file.Close(); err != nil {
		return 0, w.fail(fmt.Errorf("close pack: %w", err))
	}
	if err := w.fs.Rename(w.temp, w.final); err != nil {
		return 0, w.fail(fmt.Errorf("rename pack: %w", err))
	}
	w.finalised = true
	if err := w.fs.SyncDir(filepath.Dir(w.final)); err != nil {
		return 0, w.fail(fmt.Errorf("sync directory of pack: %w", err))
	}
	w.err = errors.New("pack is final")
	w.buf = nil
	return w.offset + int64(len(tail)), nil
}

// Discard gives the pack up and removes the temporary file. After Finalise it
// does nothing.
func (w *Writer) Discard() error {
	var errs []error
	if w.file != nil {
		errs = append(errs, w.file.Close())
		w.file = nil
	}
	if !w.finalised {
		errs = append(errs, w.fs.Remove(w.temp))
		w.finalised = true // the name is gone: a second call has nothing to do
	}
	_ = w.fail(errors.New("pack was given up"))
	return errors.Join(errs...)
}

// checkTrailer reads back what will be written, before anybody relies on it.
func (w *Writer) checkTrailer(tail []byte) error {
	end := w.offset + int64(len(tail))
	f, err := decodeFooter(tail[len(tail)-footerLen:], end)
	if err != nil {
		return fmt.Errorf("check own trailer: %w", err)
	}
	got, err := decodeTrailer(bytes.Clone(tail), f, w.domain) // opened where it lies
	if err != nil {
		return fmt.Errorf("check own trailer: %w", err)
	}
	if !got.equal(&w.trailer) {
		return errors.New("check own trailer: it reads differently")
	}
	return nil
}

// flush writes the first n buffered bytes.
func (w *Writer) flush(n int) error {
	if _, err := w.file.Write(w.buf[:n]); err != nil {
		return w.fail(fmt.Errorf("write pack: %w", err))
	}
	w.buf = w.buf[:copy(w.buf, w.buf[n:])]
	return nil
}

func (w *Writer) fail(err error) error {
	if w.err == nil {
		w.err = fmt.Errorf("pack %s: %w", w.trailer.Header.ID, err)
	}
	return w.err
}
