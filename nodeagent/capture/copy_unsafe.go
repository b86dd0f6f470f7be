package capture

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// pageBytes is the unit in which zero memory is left out of a copy.
const pageBytes = 4096

// mapAnonymous reserves size bytes that cost memory only where written.
func mapAnonymous(size int64) ([]byte, error) {
	b, err := unix.Mmap(-1, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("reserve %d bytes for a memory copy: %w", size, err)
	}
	// Huge pages make first touch of the copy several times cheaper; a kernel
	// without them refuses and nothing is lost.
	_ = unix.Madvise(b, unix.MADV_HUGEPAGE)
	return b, nil
}

// mapFile maps the first size bytes of f for reading.
func mapFile(f *os.File, size int64) ([]byte, error) {
	b, err := unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", f.Name(), err)
	}
	return b, nil
}

// isZero tells whether p, a whole number of pages, holds only zeros.
//
// Why unsafe: comparing eight bytes at a time. Why safe: mappings are page
// aligned and offsets are multiples of a page, so every word is aligned and
// inside p.
func isZero(p []byte) bool {
	words := unsafe.Slice((*uint64)(unsafe.Pointer(unsafe.SliceData(p))), len(p)/8)
	for len(words) >= 8 {
		w := words[:8:8]
		if w[0]|w[1]|w[2]|w[3]|w[4]|w[5]|w[6]|w[7] != 0 {
			return false
		}
		words = words[8:]
	}
	for _, w := range words {
		if w != 0 {
			return false
		}
	}
	return true
}
