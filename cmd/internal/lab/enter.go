package lab

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// namespaceMark is set in the environment of a process that EnterNamespace
// has replaced.
const namespaceMark = "FERMATA_LAB_NAMESPACE"

// EnterNamespace moves the whole process into a network namespace of its own by
// executing its binary anew, and returns only on error, or at once when that
// has been done before.
//
// A running Go program has many threads, and unshare(2) moves one. execve(2)
// ends the others and keeps the namespace of the thread that calls it.
func EnterNamespace() error {
	if inOwnNamespace() {
		return nil
	}
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find own binary: %w", err)
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("make network namespace (needs root): %w", err)
	}
	return fmt.Errorf("execute %s: %w", exe, unix.Exec(exe, os.Args, append(os.Environ(), namespaceMark+"=1")))
}
