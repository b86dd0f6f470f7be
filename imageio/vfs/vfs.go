// Package vfs is the seam between the repository and a file system: the few
// operations the repository needs, with their durability spelled out.
//
// Durability. Bytes written to a file survive a power cut once Sync of that
// file returned. A name (created, linked, renamed or removed) survives, or
// stays gone, once SyncDir of its directory returned. Before that a power cut
// may leave the old state, the new one, or for file contents a part of it;
// Link and Rename are never seen half done.
//
// Errors satisfy errors.Is with fs.ErrNotExist and fs.ErrExist where those
// apply, and with the system call's errno (syscall.ENOSPC) otherwise.
//
// The package vfstest holds the suite that every implementation passes.
package vfs

import (
	"fmt"
	"io"

	"fermata/imageio/damage"
)

// FS is a file system.
//
// Concurrency: all methods may be called from any goroutine.
type FS interface {
	// Create makes a file that did not exist and opens it for appending.
	Create(name string) (File, error)
	// Open opens an existing file for reading.
	Open(name string) (File, error)
	// Link gives an existing file a second name in the same directory. It
	// fails with fs.ErrExist, changing nothing, if that name is taken: of
	// several callers exactly one succeeds.
	Link(oldName, newName string) error
	// Rename moves a file to another name of the same directory, replacing
	// what was there.
	Rename(oldName, newName string) error
	// Remove removes the name of a file.
	Remove(name string) error
	// Mkdir makes a directory whose parent exists.
	Mkdir(name string) error
	// SyncDir makes the names in a directory durable.
	SyncDir(name string) error
	// List returns the names in a directory in ascending order.
	List(name string) ([]string, error)
	// Stat describes a file or directory.
	Stat(name string) (Info, error)
}

// File is an open file.
//
// Concurrency: ReadAt may be called from any goroutine; the others are for
// one goroutine at a time.
type File interface {
	io.ReaderAt
	// Write appends. On error a part of p may have been appended.
	io.Writer
	// Sync makes the contents durable, not the name.
	Sync() error
	io.Closer
}

// Preallocator is an optional ability of a File that is written: to reserve room, so
// that a full disk is known early and the file lies together. What is reserved and
// not written is given back by Close. A file system that cannot does nothing.
type Preallocator interface {
	Preallocate(bytes int64) error
}

// Info is what Stat tells.
type Info struct {
	Size  int64
	IsDir bool
}

// ReadFile returns the contents of a file of at most limit bytes. A larger one
// is damage: whoever wrote it never writes so much.
func ReadFile(fsys FS, name string, limit int64) (data []byte, err error) {
	info, err := fsys.Stat(name)
	if err != nil {
		return nil, err
	}
	if info.Size > limit {
		return nil, damage.New("file "+name, fmt.Errorf("%d bytes, limit %d", info.Size, limit))
	}
	f, err := fsys.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close() // opened for reading: nothing can be lost
	data = make([]byte, info.Size)
	n, err := f.ReadAt(data, 0)
	if err != nil && err != io.EOF {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if n < len(data) {
		return nil, damage.New("file "+name, fmt.Errorf("%d of %d bytes: %w", n, len(data), io.ErrUnexpectedEOF))
	}
	return data, nil
}

// WriteFile creates name with the given contents and makes the contents, not
// the name, durable. On error no file of that name is left if it can be helped.
func WriteFile(fsys FS, name string, data []byte) error {
	f, err := fsys.Create(name)
	if err != nil {
		return fmt.Errorf("create %s: %w", name, err)
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		_ = fsys.Remove(name) // the first error tells the story
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}
