package uffd

import (
	"testing"
	"unsafe"
)

func addressOf(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) }

// TestStructures_MatchTheKernels compares with what the numbers of the ioctls
// themselves say (_IOC_SIZE of asm-generic/ioctl.h), and with struct uffd_msg.
func TestStructures_MatchTheKernels(t *testing.T) {
	size := func(number uintptr) uintptr { return number >> 16 & 0x3fff }
	for _, c := range []struct {
		name      string
		got, want uintptr
	}{
		{"uffdio_api", unsafe.Sizeof(apiArgument{}), size(ioctlAPI)},
		{"uffdio_register", unsafe.Sizeof(registerArgument{}), size(ioctlRegister)},
		{"uffdio_range", unsafe.Sizeof(rangeArgument{}), size(ioctlUnregister)},
		{"uffdio_writeprotect", unsafe.Sizeof(writeProtectArgument{}), size(ioctlWriteProtect)},
		{"uffd_msg", unsafe.Sizeof(message{}), 32},
		{"uffd_msg.arg.pagefault.flags", unsafe.Offsetof(message{}.flags), 8},
		{"uffd_msg.arg.pagefault.address", unsafe.Offsetof(message{}.address), 16},
		{"uffd_msg.arg.pagefault.feat.ptid", unsafe.Offsetof(message{}.thread), 24},
	} {
		if c.got != c.want {
			t.Errorf("%s: %d, want %d", c.name, c.got, c.want)
		}
	}
}

// FuzzParseMapping: no line of another process makes us panic.
func FuzzParseMapping(f *testing.F) {
	f.Add("7f0000000000-7f0000800000 rw-s 00000000 00:1a 1234   /dev/shm/x\n")
	f.Add("ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0  [vsyscall]\n")
	f.Fuzz(func(t *testing.T, line string) {
		m, err := parseMapping(line)
		if err == nil && m.Addr+m.Len < m.Addr {
			t.Errorf("%q: %+v", line, m)
		}
	})
}
