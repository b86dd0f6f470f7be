package app

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// DropInherited closes the descriptors beyond the standard streams that the process
// was started with. A daemon outlives whoever started it, and so would they: locks, the
// other end of a pipe, a terminal. They are told from what the process has opened
// itself by the flag close-on-exec, which no descriptor that survived an exec has and
// every one that Go opens does.
//
// A command calls it once it has read what it was given, which may be /dev/fd/63. It
// does nothing in an Env that Main has not made.
func (e *Env) DropInherited() error {
	if !e.ownProcess {
		return nil
	}
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return fmt.Errorf("close inherited descriptors: %w", err)
	}
	for _, entry := range entries {
		fd, err := strconv.Atoi(entry.Name())
		if err != nil || fd <= unix.Stderr {
			continue
		}
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		if err != nil || flags&unix.FD_CLOEXEC != 0 {
			continue // the directory's own, closed by now; or ours
		}
		_ = unix.Close(fd) // what it was is unknown, and so is what an error means
	}
	return nil
}
