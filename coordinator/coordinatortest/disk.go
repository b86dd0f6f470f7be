package coordinatortest

import (
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
	onLink []LinkFault // guarded by mu; one a call, in order
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

// SyncDir implements vfs.FS.
func (d *Disk) SyncDir(string) error { return nil }

// Create implements vfs.FS.
func (d *Disk) Create(name string) (vfs.File, error) {
	f, err := d.OS.Create(name)
	if err != nil {
		return nil, err
	}
	return hastyFile{f}, nil
}

type hastyFile struct{ vfs.File }

func (hastyFile) Sync() error { return nil }
