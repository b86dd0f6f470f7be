package qemu

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"fermata/vmm"
)

// createRAM makes the RAM file, sparse and empty. It refuses a place where
// guest memory cannot be protected page by page, or where it does not fit: on a
// full tmpfs the guest would die of SIGBUS at some later write.
//
// Room is checked, not reserved: guests may share a tmpfs that holds what they
// use together and not what they were given.
func createRAM(c Config) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(c.MemoryDir, &fs); err != nil {
		return fmt.Errorf("memory dir %s: %w", c.MemoryDir, err)
	}
	if err := fitForRAM(c, fs, 0); err != nil {
		return fmt.Errorf("memory dir %s: %w", c.MemoryDir, err)
	}
	path := c.memoryPath()
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("create guest memory: %w", err)
	}
	err = errors.Join(f.Truncate(int64(c.MemoryBytes)), f.Close())
	if err != nil {
		return errors.Join(fmt.Errorf("create guest memory: %w", err), os.Remove(path))
	}
	return nil
}

// fitForRAM refuses a file system on which the guest's memory has no room, counting
// freed bytes that others are about to give back.
func fitForRAM(c Config, fs unix.Statfs_t, freed uint64) error {
	switch fs.Type {
	case unix.TMPFS_MAGIC:
	case unix.HUGETLBFS_MAGIC:
		if page := uint64(fs.Bsize); c.MemoryBytes%page != 0 {
			return fmt.Errorf("%w: %d bytes are not whole pages of %d", vmm.ErrUnfitMemory, c.MemoryBytes, page)
		}
	default:
		return fmt.Errorf("%w: neither tmpfs nor hugetlbfs (type %#x)", vmm.ErrUnfitMemory, fs.Type)
	}
	free := fs.Bavail * uint64(fs.Bsize)
	if fs.Blocks == 0 { // there is no limit but the host's memory (tmpfs(5), hugetlbfs_statfs in fs/hugetlbfs/inode.c)
		if fs.Type == unix.TMPFS_MAGIC {
			return nil
		}
		var err error
		if free, err = freeHugePages(uint64(fs.Bsize)); err != nil {
			return err
		}
	}
	if free+freed < c.MemoryBytes {
		return fmt.Errorf("%w: %d bytes wanted, %d free", vmm.ErrNoSpace, c.MemoryBytes, free+freed)
	}
	return nil
}

// freeHugePages returns the bytes in huge pages of a size that nobody has, or has
// reserved (Documentation/admin-guide/mm/hugetlbpage.rst).
func freeHugePages(page uint64) (uint64, error) {
	dir := fmt.Sprintf("/sys/kernel/mm/hugepages/hugepages-%dkB", page>>10)
	var counts [2]uint64
	for i, name := range []string{"free_hugepages", "resv_hugepages"} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return 0, err
		}
		if counts[i], err = strconv.ParseUint(strings.TrimSpace(string(b)), 10, 63); err != nil {
			return 0, fmt.Errorf("%s: %w", name, err)
		}
	}
	return (counts[0] - min(counts[1], counts[0])) * page, nil
}
