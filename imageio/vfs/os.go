package vfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// OS is the file system of the operating system.
type OS struct {
	// Direct writes around the page cache (O_DIRECT of open(2)) where file system and
	// alignment allow, as for packs: a node's memory is the guests'.
	Direct bool
}

var _ FS = OS{}

const (
	filePerm = 0o640 // images hold guest memory: never for everybody
	dirPerm  = 0o750
)

func (o OS) Create(name string) (File, error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_RDWR, filePerm)
	if err != nil {
		return nil, err
	}
	file := &osFile{File: f}
	if o.Direct {
		file.direct = file.setDirect(true) == nil // else it is written as usual
	}
	return file, nil
}

// osFile is a file that is written.
type osFile struct {
	*os.File
	direct   bool
	written  int64
	reserved int64
}

// directAlign is what O_DIRECT asks of offsets, lengths and addresses on every file
// system that we know of; Go's large buffers begin at pages.
const directAlign = 4096

func (f *osFile) Write(p []byte) (int, error) {
	if f.direct && (f.written%directAlign != 0 || len(p)%directAlign != 0) {
		if err := f.endDirect(); err != nil {
			return 0, err
		}
	}
	n, err := f.File.Write(p)
	if f.direct && n == 0 && errors.Is(err, syscall.EINVAL) { // this one asks for more
		if err := f.endDirect(); err != nil {
			return 0, err
		}
		n, err = f.File.Write(p)
	}
	f.written += int64(n)
	return n, err
}

func (f *osFile) endDirect() error {
	f.direct = false
	return f.setDirect(false)
}

func (f *osFile) setDirect(on bool) error {
	flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFL, 0)
	if err != nil {
		return os.NewSyscallError("fcntl", err)
	}
	flags &^= unix.O_DIRECT
	if on {
		flags |= unix.O_DIRECT
	}
	_, err = unix.FcntlInt(f.Fd(), unix.F_SETFL, flags)
	return os.NewSyscallError("fcntl", err)
}

// Preallocate implements Preallocator.
func (f *osFile) Preallocate(bytes int64) error {
	err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, bytes)
	switch {
	case err == nil:
		f.reserved = bytes
		return nil
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS):
		return nil
	default:
		return &os.PathError{Op: "fallocate", Path: f.Name(), Err: err}
	}
}

func (f *osFile) Close() error {
	var err error
	if f.reserved > f.written { // blocks behind the end stay a file's until it is cut
		err = f.Truncate(f.written)
	}
	return errors.Join(err, f.File.Close())
}

func (OS) Open(name string) (File, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (OS) Link(oldName, newName string) error {
	if err := sameDir(oldName, newName); err != nil {
		return err
	}
	return os.Link(oldName, newName)
}

func (OS) Rename(oldName, newName string) error {
	if err := sameDir(oldName, newName); err != nil {
		return err
	}
	return os.Rename(oldName, newName)
}

// Remove is unlink(2), so that it never removes a directory as os.Remove would.
func (OS) Remove(name string) error {
	for {
		err := syscall.Unlink(name)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil {
			return &os.PathError{Op: "unlink", Path: name, Err: err}
		}
		return nil
	}
}

func (OS) Mkdir(name string) error { return os.Mkdir(name, dirPerm) }

func (OS) SyncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	err = d.Sync()
	if cerr := d.Close(); err == nil {
		err = cerr
	}
	return err
}

func (OS) List(name string) ([]string, error) {
	entries, err := os.ReadDir(name)
	if err != nil {
		return nil, err
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, nil
}

func (OS) Stat(name string) (Info, error) {
	fi, err := os.Stat(name)
	if err != nil {
		return Info{}, err
	}
	return Info{Size: fi.Size(), IsDir: fi.IsDir()}, nil
}

// sameDir holds callers to what SyncDir of one directory can make durable.
func sameDir(oldName, newName string) error {
	if filepath.Dir(oldName) != filepath.Dir(newName) {
		return fmt.Errorf("%s and %s: %w", oldName, newName, syscall.EXDEV)
	}
	return nil
}
