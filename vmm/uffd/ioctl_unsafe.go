package uffd

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Numbers and structures of linux/userfaultfd.h for x86-64; see
// TestStructures_MatchTheKernels.
const (
	apiVersion = 0xAA // UFFD_API

	ioctlNew          = 0xaa00     // USERFAULTFD_IOC_NEW, of /dev/userfaultfd
	ioctlAPI          = 0xc018aa3f // UFFDIO_API
	ioctlRegister     = 0xc020aa00 // UFFDIO_REGISTER
	ioctlUnregister   = 0x8010aa01 // UFFDIO_UNREGISTER
	ioctlWake         = 0x8010aa02 // UFFDIO_WAKE
	ioctlWriteProtect = 0xc018aa06 // UFFDIO_WRITEPROTECT

	featureWriteProtect = 1 << 0  // UFFD_FEATURE_PAGEFAULT_FLAG_WP
	featureShared       = 1 << 12 // UFFD_FEATURE_WP_HUGETLBFS_SHMEM
	featureUnpopulated  = 1 << 13 // UFFD_FEATURE_WP_UNPOPULATED

	modeRegisterWP     = 1 << 1 // UFFDIO_REGISTER_MODE_WP
	modeWriteProtectWP = 1 << 0 // UFFDIO_WRITEPROTECT_MODE_WP

	eventPagefault   = 0x12   // UFFD_EVENT_PAGEFAULT
	flagWriteProtect = 1 << 1 // UFFD_PAGEFAULT_FLAG_WP
)

type apiArgument struct{ api, features, ioctls uint64 }

type registerArgument struct {
	addr, len    uint64
	mode, ioctls uint64
}

type rangeArgument struct{ addr, len uint64 }

type writeProtectArgument struct {
	addr, len uint64
	mode      uint64
}

// message is struct uffd_msg with the body of a page fault.
type message struct {
	event   uint8
	_       [7]byte
	flags   uint64
	address uint64
	thread  uint32
	_       [4]byte
}

// enable asks for what this package needs; the kernel refuses what it does not have.
func enable(file int) error {
	a := apiArgument{api: apiVersion, features: featureWriteProtect | featureShared | featureUnpopulated}
	if err := ioctl(file, ioctlAPI, unsafe.Pointer(&a)); err != nil {
		return os.NewSyscallError("UFFDIO_API", err)
	}
	return nil
}

// features returns all that the kernel has. A descriptor that was asked is of no
// other use.
func features(file int) (uint64, error) {
	a := apiArgument{api: apiVersion}
	if err := ioctl(file, ioctlAPI, unsafe.Pointer(&a)); err != nil {
		return 0, os.NewSyscallError("UFFDIO_API", err)
	}
	return a.features, nil
}

func register(file int, r Range) error {
	a := registerArgument{addr: r.Addr, len: r.Len, mode: modeRegisterWP}
	if err := ioctl(file, ioctlRegister, unsafe.Pointer(&a)); err != nil {
		return err
	}
	if a.ioctls&(1<<(ioctlWriteProtect&0xff)) == 0 {
		return fmt.Errorf("memory of this kind cannot be write-protected: %w", unix.EINVAL)
	}
	return nil
}

// unregister also wakes who waits in the range. Of the kernel only a wake-up for
// pages that are missing is documented (ioctl_userfaultfd(2), UFFDIO_UNREGISTER).
func unregister(file int, r Range) error {
	a := rangeArgument{addr: r.Addr, len: r.Len}
	if err := ioctl(file, ioctlUnregister, unsafe.Pointer(&a)); err != nil {
		return err
	}
	a = rangeArgument{addr: r.Addr, len: r.Len}
	return ioctl(file, ioctlWake, unsafe.Pointer(&a))
}

func writeProtect(file int, r Range, protect bool) error {
	a := writeProtectArgument{addr: r.Addr, len: r.Len}
	if protect {
		a.mode = modeWriteProtectWP
	}
	return ioctl(file, ioctlWriteProtect, unsafe.Pointer(&a))
}

// ioctl is ioctl(2) with a structure.
//
// Why unsafe: the kernel reads and writes the structure. Why safe: each argument
// above has the size that its number names, and lives until the call returns.
func ioctl(file int, request uintptr, argument unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(file), request, uintptr(argument)); errno != 0 {
		return errno
	}
	return nil
}

// read fills messages and returns how many there are.
//
// Why unsafe: the kernel writes structures. Why safe: message has the layout of
// struct uffd_msg, and the kernel writes whole ones only, within the length given.
func read(file int, messages *[batch]message) (int, error) {
	b := unsafe.Slice((*byte)(unsafe.Pointer(messages)), unsafe.Sizeof(*messages))
	n, err := unix.Read(file, b)
	return max(n, 0) / int(unsafe.Sizeof(messages[0])), err
}
