package qemu

import (
	"fmt"
	"os"
	"path/filepath"
)

// Descriptors of files that QEMU knows by number and not by path, behind those of the
// images: see firstNICFile for the others. QEMU opens ram, kernel and initrd anew through
// /proc/self/fd, which needs permission on the file and none on the way to it.
const (
	inheritedRAM = iota
	inheritedConsole
	inheritedKernel
	inheritedInitrd
)

func (c Config) inheritedFD(which int) int {
	n := 0
	for _, d := range c.Disks {
		n += len(d.layers())
	}
	return c.firstLayerFD() + n + which
}

// inheritedPath names an inherited file for an option of QEMU that takes a path.
func (c Config) inheritedPath(which int) string {
	return fmt.Sprintf("/proc/self/fd/%d", c.inheritedFD(which))
}

// openInherited opens them in their order. The caller closes what is returned, also
// with an error.
func (c Config) openInherited() (files []*os.File, err error) {
	open := func(path string, flags int) (err error) {
		f, err := os.OpenFile(path, flags, 0o600)
		if err == nil {
			files = append(files, f)
		}
		return err
	}
	if err := open(c.memoryPath(), os.O_RDWR); err != nil {
		return files, err
	}
	if err := c.Confine.own(files[0]); err != nil {
		return files, fmt.Errorf("give guest memory to QEMU's user: %w", err)
	}
	if err := open(c.consolePath(), os.O_WRONLY|os.O_CREATE|os.O_APPEND); err != nil {
		return files, err
	}
	for _, path := range []string{c.Kernel, c.Initrd} {
		if path == "" {
			break // an initrd is never without a kernel
		}
		if err := open(filepath.Clean(path), os.O_RDONLY); err != nil {
			return files, err
		}
	}
	return files, nil
}
