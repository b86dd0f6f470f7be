package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"fermata/protocol/fault"
)

// writeWhole makes a file that appears when it is whole and durable. It does not replace
// one. What is being written has the name of the file with .part behind it; the next call
// takes over what a killed one has left there.
func writeWhole(path string, write func(io.Writer) error) (err error) {
	if err := checkAbsent(path); err != nil {
		return err
	}
	temp := path + ".part"
	f, err := openPart(temp)
	if err != nil {
		return err
	}
	defer func() { // while it is locked: nobody else's is removed
		if rerr := os.Remove(temp); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, rerr)
		}
		err = errors.Join(err, f.Close())
	}()
	if err = write(f); err == nil {
		err = f.Sync()
	}
	if err != nil {
		return err
	}
	if err := publish(temp, path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

func checkAbsent(path string) error {
	switch _, err := os.Lstat(path); {
	case err == nil:
		return errTakenFile(path)
	case !errors.Is(err, fs.ErrNotExist):
		return fault.Wrap(fault.Invalid, err, "")
	}
	return nil
}

func errTakenFile(path string) error {
	return fault.New(fault.Exists, "%s exists already: choose another name, or remove it", path)
}

// openPart opens an empty file that nobody else writes. A process that ends, however it
// ends, gives up its lock (flock(2)); where a file system has no locks, two exports to one
// name are not noticed.
func openPart(temp string) (*os.File, error) {
	for {
		f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, fault.Wrap(fault.Invalid, err, "")
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errors.Join(fault.New(fault.Busy, "%s is being written by another export", temp), f.Close())
		}
		if isSame(f, temp) {
			if err := f.Truncate(0); err != nil {
				return nil, errors.Join(fault.Wrap(fault.Invalid, err, ""), f.Close())
			}
			return f, nil
		}
		if err := f.Close(); err != nil { // its writer was just about to remove it
			return nil, err
		}
	}
}

// isSame reports whether an open file still has a name.
func isSame(f *os.File, name string) bool {
	open, err := f.Stat()
	if err != nil {
		return false
	}
	named, err := os.Lstat(name)
	return err == nil && os.SameFile(open, named)
}

// publish gives a file its name, unless there is one of that name.
func publish(temp, path string) error {
	err := os.Link(temp, path) // unlike rename(2) it replaces nothing
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrExist):
		return errTakenFile(path)
	case !errors.Is(err, syscall.EPERM) && !errors.Is(err, syscall.EOPNOTSUPP) && !errors.Is(err, syscall.ENOSYS):
		return fmt.Errorf("give the export its name: %w", err)
	}
	// There are no hard links here. An empty file holds the name until it is replaced.
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return errTakenFile(path)
	}
	if err == nil {
		err = f.Close()
	}
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		return fmt.Errorf("give the export its name: %w", err)
	}
	return nil
}
