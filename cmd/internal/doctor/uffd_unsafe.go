package doctor

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// From linux/userfaultfd.h: the handshake and the features we need.
const (
	uffdAPI     = 0xAA
	uffdioAPI   = 0xC018AA3F // _IOWR(0xAA, 0x3F, struct uffdio_api)
	featureWP   = 1 << 0     // UFFD_FEATURE_PAGEFAULT_FLAG_WP
	featureShm  = 1 << 5     // UFFD_FEATURE_MISSING_SHMEM
	featureWPSh = 1 << 12    // UFFD_FEATURE_WP_HUGETLBFS_SHMEM
)

// faultAbilities is the set of features a kernel's userfaultfd has.
type faultAbilities uint64

// missing names the features that live capture and lazy restore need and the
// kernel lacks.
func (f faultAbilities) missing() []string {
	var names []string
	for _, want := range []struct {
		bit  faultAbilities
		name string
	}{
		{featureWP, "write protection"},
		{featureShm, "faults on missing pages of shared memory"},
		{featureWPSh, "write protection of shared memory"},
	} {
		if f&want.bit == 0 {
			names = append(names, want.name)
		}
	}
	return names
}

// uffdioAPIArg is struct uffdio_api.
type uffdioAPIArg struct {
	api, features, ioctls uint64
}

// faultFeatures asks the kernel for its userfaultfd and what it can do. Faults
// of the kernel must be included, as QEMU's system calls write guest memory.
func faultFeatures() (faultAbilities, error) {
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK, 0, 0)
	if errno != 0 {
		return 0, fmt.Errorf("userfaultfd: %w", errno)
	}
	defer unix.Close(int(fd))
	arg := uffdioAPIArg{api: uffdAPI}
	// Why needed: x/sys has no wrapper for this ioctl. Why safe: the kernel
	// writes within the struct, whose size is part of the request's number, and
	// the pointer is live until the call returns.
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, uffdioAPI, uintptr(unsafe.Pointer(&arg))); errno != 0 {
		return 0, fmt.Errorf("ioctl UFFDIO_API: %w", errno)
	}
	return faultAbilities(arg.features), nil
}
