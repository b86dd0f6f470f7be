package coordinatortest

import (
	"io/fs"
	"os"
	"strings"
	"sync"

	"fermata/imageio/vfs"
)

// Disk is the operating system's file system in a hurry: nothing is synced,
// since no test cuts the power. It fails on request.
//
// Concurrency: safe for use by several goroutines.
type Disk struct {
	vfs.OS

	mu     sync.Mutex
	onLink []LinkFault             // guarded by mu; one a call, in order
	broken func(writes bool) error // guarded by mu; nil: all is well
}

// Break makes every operation call f first, and fail with its error. f is told
// whether the operation changes anything.
func (d *Disk) Break(f func(writes bool) error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.broken = f
}

func (d *Disk) meet(writes bool) error {
	d.mu.Lock()
	f := d.broken
	d.mu.Unlock()
	if f == nil {
		return nil
	}
	return f(writes)
}

// LinkFault is what goes wrong where an outcome record gets its name. link
// gives it that name.
type LinkFault func(link func() error) error

// OnOutcome makes the next outcome record meet f; several wait in line.
func (d *Disk) OnOutcome(f LinkFault) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.onLink = append(d.onLink, f)
}

// Link implements vfs.FS.
func (d *Disk) Link(oldName, newName string) error {
	if err := d.meet(true); err != nil {
		return &os.LinkError{Op: "link", Old: oldName, New: newName, Err: err}
	}
	link := func() error { return d.OS.Link(oldName, newName) }
	if !strings.HasSuffix(newName, ".outcome") {
		return link()
	}
	d.mu.Lock()
	var f LinkFault
	if len(d.onLink) > 0 {
		f, d.onLink = d.onLink[0], d.onLink[1:]
	}
	d.mu.Unlock()
	if f == nil {
		return link()
	}
	return f(link)
}

// Rename implements vfs.FS.
func (d *Disk) Rename(oldName, newName string) error {
	if err := d.meet(true); err != nil {
		return &os.LinkError{Op: "rename", Old: oldName, New: newName, Err: err}
	}
	return d.OS.Rename(oldName, newName)
}

// Remove implements vfs.FS.
func (d *Disk) Remove(name string) error {
	if err := d.meet(true); err != nil {
		return &os.PathError{Op: "unlink", Path: name, Err: err}
	}
	return d.OS.Remove(name)
}

// Mkdir implements vfs.FS. One that exists is told apart from one that cannot be
// made, as by the kernel.
func (d *Disk) Mkdir(name string) error {
	if err := d.meet(true); err != nil {
		if _, there := os.Stat(name); there == nil {
			return &os.PathError{Op: "mkdir", Path: name, Err: fs.ErrExist}
		}
		return &os.PathError{Op: "mkdir", Path: name, Err: err}
	}
	return d.OS.Mkdir(name)
}

// SyncDir implements vfs.FS.
func (d *Disk) SyncDir(string) error { return nil }

// List implements vfs.FS.
func (d *Disk) List(name string) ([]string, error) {
	if err := d.meet(false); err != nil {
		return nil, &os.PathError{Op: "readdir", Path: name, Err: err}
	}
	return d.OS.List(name)
}

// Stat implements vfs.FS.
func (d *Disk) Stat(name string) (vfs.Info, error) {
	if err := d.meet(false); err != nil {
		return vfs.Info{}, &os.PathError{Op: "stat", Path: name, Err: err}
	}
	return d.OS.Stat(name)
}

// Open implements vfs.FS.
func (d *Disk) Open(name string) (vfs.File, error) {
	if err := d.meet(false); err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return d.OS.Open(name)
}

// Create implements vfs.FS.
func (d *Disk) Create(name string) (vfs.File, error) {
	if err := d.meet(true); err != nil {
		return nil, &os.PathError{Op: "create", Path: name, Err: err}
	}
	f, err := d.OS.Create(name)
	if err != nil {
		return nil, err
	}
	return hastyFile{f, d}, nil
}

type hastyFile struct {
	vfs.File
	disk *Disk
}

func (f hastyFile) Write(p []byte) (int, error) {
	if err := f.disk.meet(true); err != nil {
		return 0, err
	}
	return f.File.Write(p)
}

func (hastyFile) Sync() error { return nil }
