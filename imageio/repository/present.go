package repository

import (
	"errors"
	"fmt"
	"io/fs"

	"fermata/imageio/vfs"
)

// ErrAway says that the repository is not where it was opened: its file system is not
// mounted any more, or the directory was moved. Nothing of it is damaged.
var ErrAway = errors.New("the repository is not there; is its file system mounted?")

// present is a file system that tells a file that the repository lacks from a
// repository that is gone. In an empty mount point every file is missing, and a pack
// that is missing would count as damage.
type present struct {
	vfs.FS
	record string // path of the file that makes a directory a repository
}

// checked is err, or ErrAway if err says that a file is missing and the record is, too.
func (p present) checked(err error) error {
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if _, look := p.FS.Stat(p.record); errors.Is(look, fs.ErrNotExist) {
		return fmt.Errorf("%w (%v)", ErrAway, err) // not wrapped: the file may well exist
	}
	return err
}

// Create implements vfs.FS.
func (p present) Create(name string) (vfs.File, error) {
	f, err := p.FS.Create(name)
	return f, p.checked(err)
}

// Open implements vfs.FS.
func (p present) Open(name string) (vfs.File, error) {
	f, err := p.FS.Open(name)
	return f, p.checked(err)
}

// Link implements vfs.FS.
func (p present) Link(oldName, newName string) error { return p.checked(p.FS.Link(oldName, newName)) }

// Rename implements vfs.FS.
func (p present) Rename(oldName, newName string) error {
	return p.checked(p.FS.Rename(oldName, newName))
}

// Remove implements vfs.FS.
func (p present) Remove(name string) error { return p.checked(p.FS.Remove(name)) }

// Mkdir implements vfs.FS.
func (p present) Mkdir(name string) error { return p.checked(p.FS.Mkdir(name)) }

// SyncDir implements vfs.FS.
func (p present) SyncDir(name string) error { return p.checked(p.FS.SyncDir(name)) }

// List implements vfs.FS.
func (p present) List(name string) ([]string, error) {
	names, err := p.FS.List(name)
	return names, p.checked(err)
}

// Stat implements vfs.FS.
func (p present) Stat(name string) (vfs.Info, error) {
	info, err := p.FS.Stat(name)
	return info, p.checked(err)
}
