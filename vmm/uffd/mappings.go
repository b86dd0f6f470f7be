package uffd

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Mapping is a part of a process's address space that maps a file.
type Mapping struct {
	Range
	Offset           uint64 // in the file, bytes
	Writable, Shared bool
	PageBytes        uint64 // that the mapping is made of: 4 KiB, or a huge page's
}

// Mappings lists where process pid maps a file, found by device and inode.
// Neighbours that differ in nothing else are one.
func Mappings(pid int, file os.FileInfo) ([]Mapping, error) {
	want, ok := file.Sys().(*syscall.Stat_t)
	if !ok {
		return nil, fmt.Errorf("%s is no file of the operating system", file.Name())
	}
	// smaps is costly for large processes, and needed only for the size of pages.
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ESRCH):
		return nil, fmt.Errorf("mappings of process %d: %w", pid, ErrGone)
	case err != nil:
		return nil, fmt.Errorf("mappings of process %d: %w", pid, err)
	}
	var all []Mapping
	for line := range strings.Lines(string(b)) {
		m, device, inode, err := parseMapping(line)
		if err != nil {
			return nil, fmt.Errorf("mappings of process %d: %w", pid, err)
		}
		if inode != want.Ino || device != unix.Mkdev(unix.Major(want.Dev), unix.Minor(want.Dev)) {
			continue
		}
		m.PageBytes = pageBytes(file, want)
		if n := len(all); n > 0 && all[n-1].joins(m) {
			all[n-1].Len += m.Len
			continue
		}
		all = append(all, m)
	}
	return all, nil
}

// joins tells whether next goes on where m ends, in memory and file.
func (m Mapping) joins(next Mapping) bool {
	return m.Addr+m.Len == next.Addr && m.Offset+m.Len == next.Offset && m.Writable == next.Writable && m.Shared == next.Shared
}

// parseMapping reads a line of proc_pid_maps(5).
func parseMapping(line string) (m Mapping, device, inode uint64, err error) {
	var end uint64
	var mode string
	var major, minor uint32
	if _, err := fmt.Sscanf(line, "%x-%x %4s %x %x:%x %d", &m.Addr, &end, &mode, &m.Offset, &major, &minor, &inode); err != nil {
		return m, 0, 0, fmt.Errorf("line %.80q: %w", line, err)
	}
	if end < m.Addr || len(mode) != 4 {
		return m, 0, 0, fmt.Errorf("line %.80q makes no sense", line)
	}
	m.Len = end - m.Addr
	m.Writable, m.Shared = mode[1] == 'w', mode[3] == 's'
	return m, unix.Mkdev(major, minor), inode, nil
}

// pageBytes is the size of the pages that mappings of a file are made of. A file
// on hugetlbfs has its page as the block size (stat(2), fs/hugetlbfs/inode.c).
func pageBytes(file os.FileInfo, st *syscall.Stat_t) uint64 {
	const small = 4096
	if size := uint64(st.Blksize); size > small && size%small == 0 && file.Size()%int64(size) == 0 && size >= 2<<20 {
		return size
	}
	return small
}
