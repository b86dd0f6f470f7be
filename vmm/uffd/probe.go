package uffd

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Probe says why memory cannot be protected from outside on this host, in plain
// words with the way out; nil when it can.
func Probe() error {
	file, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK, 0, 0)
	switch errno {
	case 0:
	case unix.ENOSYS:
		return errors.New("this kernel has no userfaultfd: use one built with CONFIG_USERFAULTFD")
	case unix.EPERM:
		return errors.New("userfaultfd is not permitted, or not for faults of the kernel:" +
			" run as root, set vm.unprivileged_userfaultfd to 1, or (in a container) allow userfaultfd in its seccomp profile")
	default:
		return fmt.Errorf("userfaultfd: %w", errno)
	}
	defer unix.Close(int(file))
	have, err := features(int(file))
	if err != nil {
		return err
	}
	switch {
	case have&featureWriteProtect == 0:
		return errors.New("this kernel cannot write-protect memory by userfaultfd: use Linux 5.19 or newer on x86-64")
	case have&featureShared == 0:
		return errors.New("this kernel cannot write-protect shared memory by userfaultfd: use Linux 5.19 or newer")
	case have&featureUnpopulated == 0:
		return errors.New("this kernel cannot write-protect pages that do not exist yet: use Linux 6.4 or newer")
	}
	return nil
}

// ProbeUnprivileged says why the memory of a process without privileges cannot be
// protected from outside on this host, which Probe says of ours; nil when it can.
func ProbeUnprivileged() error {
	if value, err := os.ReadFile("/proc/sys/vm/unprivileged_userfaultfd"); err == nil && strings.TrimSpace(string(value)) == "1" {
		return nil
	}
	if _, err := os.Stat("/dev/userfaultfd"); err != nil {
		return fmt.Errorf("a process without privileges may not create a userfaultfd that serves faults of the kernel:"+
			" set vm.unprivileged_userfaultfd to 1, or use Linux 6.1 with /dev/userfaultfd: %w", err)
	}
	return nil
}
