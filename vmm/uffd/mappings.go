package uffd

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Mapping is a part of a process's address space.
type Mapping struct {
	Range
	Readable, Writable, Shared bool

	// Of the file it maps; all are 0 for anonymous memory.
	Offset        uint64 // in the file, bytes
	Device, Inode uint64

	Name string // the file's path, or what the kernel calls it, as in [heap]

	PageBytes uint64 // that it is made of: 4 KiB, or a huge page's; 0: not known
}

// All lists the mappings of process pid, by address.
func All(pid int) ([]Mapping, error) {
	// smaps would say more, and is costly for large processes.
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ESRCH):
		return nil, fmt.Errorf("mappings of process %d: %w", pid, ErrGone)
	case err != nil:
		return nil, fmt.Errorf("mappings of process %d: %w", pid, err)
	}
	var all []Mapping
	for line := range strings.Lines(string(b)) {
		m, err := parseMapping(line)
		if err != nil {
			return nil, fmt.Errorf("mappings of process %d: %w", pid, err)
		}
		all = append(all, m)
	}
	return all, nil
}

// Mappings lists where process pid maps a file, found by device and inode.
// Neighbours that differ in nothing else are one.
func Mappings(pid int, file os.FileInfo) ([]Mapping, error) {
	want, ok := file.Sys().(*syscall.Stat_t)
	if !ok {
		return nil, fmt.Errorf("%s is no file of the operating system", file.Name())
	}
	all, err := All(pid)
	if err != nil {
		return nil, err
	}
	var of []Mapping
	for _, m := range all {
		if !m.Maps(want.Dev, want.Ino) {
			continue
		}
		m.PageBytes = PageBytes(file)
		if n := len(of); n > 0 && of[n-1].joins(m) {
			of[n-1].Len += m.Len
			continue
		}
		of = append(of, m)
	}
	return of, nil
}

// Maps tells whether it maps the file with that device and inode (stat(2)).
func (m Mapping) Maps(device, inode uint64) bool {
	return inode != 0 && m.Inode == inode && m.Device == unix.Mkdev(unix.Major(device), unix.Minor(device))
}

// End is the address behind the last one.
func (r Range) End() uint64 { return r.Addr + r.Len }

// joins tells whether next goes on where m ends, in memory and file.
func (m Mapping) joins(next Mapping) bool {
	return m.Addr+m.Len == next.Addr && m.Offset+m.Len == next.Offset && m.Writable == next.Writable && m.Shared == next.Shared
}

// parseMapping reads a line of proc_pid_maps(5).
func parseMapping(line string) (m Mapping, err error) {
	var end uint64
	var mode string
	var major, minor uint32
	if _, err := fmt.Sscanf(line, "%x-%x %4s %x %x:%x %d", &m.Addr, &end, &mode, &m.Offset, &major, &minor, &m.Inode); err != nil {
		return m, fmt.Errorf("line %.80q: %w", line, err)
	}
	if end < m.Addr || len(mode) != 4 {
		return m, fmt.Errorf("line %.80q makes no sense", line)
	}
	m.Len = end - m.Addr
	m.Readable, m.Writable, m.Shared = mode[0] == 'r', mode[1] == 'w', mode[3] == 's'
	m.Device = unix.Mkdev(major, minor)
	if f := strings.SplitN(strings.TrimSpace(line), " ", 6); len(f) == 6 {
		m.Name = strings.TrimSpace(f[5])
	}
	return m, nil
}

// PageBytes is the size of the pages that mappings of a file are made of. A file
// on hugetlbfs has its page as the block size (stat(2), fs/hugetlbfs/inode.c).
func PageBytes(file os.FileInfo) uint64 {
	const small = 4096
	st, ok := file.Sys().(*syscall.Stat_t)
	if !ok {
		return small
	}
	if size := uint64(st.Blksize); size > small && size%small == 0 && file.Size()%int64(size) == 0 && size >= 2<<20 {
		return size
	}
	return small
}
