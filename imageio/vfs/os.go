package vfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// OS is the file system of the operating system.
type OS struct{}

var _ FS = OS{}

const (
	filePerm = 0o640 // images hold guest memory: never for everybody
	dirPerm  = 0o750
)

func (OS) Create(name string) (File, error) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_RDWR, filePerm)
	if err != nil {
		return nil, err
	}
	return f, nil
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
