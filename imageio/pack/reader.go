package pack

import (
	"errors"
	"fmt"
	"io"

	"fermata/imageio/damage"
	"fermata/imageio/frame"
	"fermata/imageio/seal"
	"fermata/imageio/vfs"
)

// Name is how errors and reports name a pack.
func Name(id ID) string { return "pack " + id.String() }

// ReadTrailer reads the table of contents of pack id from a file. domain is nil
// in a repository that is not encrypted.
//
// On error: damage that names the pack, frame.ErrNewerFormat, or what the file
// system said.
func ReadTrailer(fsys vfs.FS, path string, id ID, domain *seal.Domain) (*Trailer, error) {
	info, err := fsys.Stat(path)
	if err != nil {
		return nil, err
	}
	f, err := fsys.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() // opened for reading: nothing can be lost
	t, err := readTrailer(f, info.Size, domain)
	if err == nil && t.Header.ID != id {
		err = fmt.Errorf("trailer: is of pack %s", t.Header.ID)
	}
	return t, named(id, err)
}

// AboutObjects estimates from the footer of a pack how many objects it has, within a
// few per cent. Nothing is verified.
func AboutObjects(fsys vfs.FS, path string) (int, error) {
	info, err := fsys.Stat(path)
	if err != nil {
		return 0, err
	}
	f, err := fsys.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close() // opened for reading: nothing can be lost
	foot := make([]byte, footerLen)
	if err := readFull(f, foot, info.Size-footerLen); err != nil {
		return 0, err
	}
	at, err := decodeFooter(foot, info.Size)
	const pagesARun = 64 // as by default
	return int(at.length * pagesARun / (pagesARun*objEntryLen + runEntryLen)), err
}

func readTrailer(r io.ReaderAt, size int64, domain *seal.Domain) (*Trailer, error) {
	if size < footerLen {
		return nil, fmt.Errorf("%d bytes are too short", size)
	}
	foot := make([]byte, footerLen)
	if err := readFull(r, foot, size-footerLen); err != nil {
		return nil, fmt.Errorf("footer: %w", err)
	}
	f, err := decodeFooter(foot, size)
	if err != nil {
		return nil, err
	}
	data := make([]byte, f.length+footerLen)
	if err := readFull(r, data, f.offset); err != nil {
		return nil, fmt.Errorf("trailer: %w", err)
	}
	return decodeTrailer(data, f, domain)
}

// ReadHeader reads the header of pack id, finished or not.
//
// On error: as for ReadTrailer.
func ReadHeader(fsys vfs.FS, path string, id ID) (Header, error) {
	f, err := fsys.Open(path)
	if err != nil {
		return Header{}, err
	}
	defer f.Close() // opened for reading: nothing can be lost
	data := make([]byte, maxHeaderLen)
	n, err := f.ReadAt(data, 0)
	if err != nil && err != io.EOF {
		return Header{}, fmt.Errorf("read header of pack %s: %w", id, err)
	}
	h, _, err := decodeHeader(data[:n])
	if err == nil && h.ID != id {
		err = fmt.Errorf("header is of pack %s", h.ID)
	}
	return h, named(id, err)
}

// ReadRun reads the stored bytes of a run into buf, which it grows if needed.
//
// On error: damage when the file ends early, else what the file system said.
func ReadRun(r io.ReaderAt, run Run, buf []byte) ([]byte, error) {
	if cap(buf) < int(run.StoredLen) {
		buf = make([]byte, run.StoredLen)
	}
	buf = buf[:run.StoredLen]
	if err := readFull(r, buf, run.Offset); err != nil {
		return nil, err
	}
	return buf, nil
}

func readFull(r io.ReaderAt, buf []byte, off int64) error {
	n, err := r.ReadAt(buf, off)
	switch {
	case n == len(buf):
		return nil
	case err == io.EOF:
		return fmt.Errorf("%d of %d bytes at %d: %w", n, len(buf), off, errors.Join(damage.ErrCorrupt, io.ErrUnexpectedEOF))
	default:
		return &ioError{err}
	}
}

// ioError is what the file system said, as opposed to what the bytes say.
type ioError struct{ err error }

func (e *ioError) Error() string { return e.err.Error() }
func (e *ioError) Unwrap() error { return e.err }

// named turns a decoding error into damage of a pack and leaves the others.
func named(id ID, err error) error {
	var io *ioError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &io) || errors.Is(err, frame.ErrNewerFormat):
		return fmt.Errorf("%s: %w", Name(id), err)
	default:
		return damage.New(Name(id), err)
	}
}
