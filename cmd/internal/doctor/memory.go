package doctor

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"fermata/cmd/internal/render"
)

const (
	// littleMemory is below what two small guests and their agent need.
	littleMemory = 2 << 30

	shmDir = "/dev/shm"
)

// sharedMemory looks at the tmpfs that holds the guests' memory: a file that
// the agent maps as well, on which the kernel can write-protect pages.
func (m machine) sharedMemory() finding {
	var fs unix.Statfs_t
	if err := unix.Statfs(filepath.Join(m.Root, shmDir), &fs); err != nil {
		return fail("mount a tmpfs on "+shmDir, "%s: %v", shmDir, err)
	}
	if fs.Type != unix.TMPFS_MAGIC {
		return fail("mount a tmpfs on "+shmDir+": guest memory on another filesystem cannot be write-protected",
			"%s is no tmpfs", shmDir)
	}
	size, free := fs.Blocks*uint64(fs.Bsize), fs.Bavail*uint64(fs.Bsize)
	text := fmt.Sprintf("%s free of %s on %s", render.Bytes(free), render.Bytes(size), shmDir)
	if free < littleMemory {
		return warn("enlarge it (mount -o remount,size=… "+shmDir+"): all memory of all guests lies there", "%s", text)
	}
	return ok("%s", text)
}

func (m machine) hugePages() finding {
	info, err := m.memInfo()
	if err != nil {
		return warn("", "unknown: %v", err)
	}
	total, free := info["HugePages_Total"], info["HugePages_Free"]
	if total == 0 {
		return ok("none reserved: guests get pages of 4 KiB")
	}
	return ok("%d free of %d, each %s", free, total, render.Bytes(info["Hugepagesize"]*1024))
}

func (m machine) freeMemory() finding {
	info, err := m.memInfo()
	if err != nil {
		return warn("", "unknown: %v", err)
	}
	free := info["MemAvailable"] * 1024
	text := fmt.Sprintf("%s available of %s", render.Bytes(free), render.Bytes(info["MemTotal"]*1024))
	if free < littleMemory {
		return warn("end other processes or give the machine more memory", "%s", text)
	}
	return ok("%s", text)
}

// memInfo reads /proc/meminfo: sizes in KiB, and plain counts.
func (m machine) memInfo() (map[string]uint64, error) {
	text, err := m.read("/proc/meminfo")
	if err != nil {
		return nil, err
	}
	info := map[string]uint64{}
	for line := range strings.Lines(text) {
		name, rest, _ := strings.Cut(line, ":")
		if words := strings.Fields(rest); len(words) > 0 {
			if n, err := strconv.ParseUint(words[0], 10, 64); err == nil {
				info[name] = n
			}
		}
	}
	return info, nil
}

// swap warns because a page of tmpfs that is swapped out loses its write
// protection, and what is swapped in makes the pause long.
func (m machine) swap() finding {
	text, err := m.read("/proc/swaps")
	if err != nil {
		return warn("", "unknown: %v", err)
	}
	areas := len(strings.Split(text, "\n")) - 1 // without the head
	if areas <= 0 {
		return ok("none")
	}
	return warn("turn it off (swapoff -a): guest memory lies on tmpfs, which can be swapped out, and then pauses grow and live capture is refused",
		"%d swap areas", areas)
}
