package capture

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// asWords looks at memory as 8-byte words.
//
// Why unsafe: the writer counts with atomic operations in shared memory. Why
// safe: a mapping is page aligned, and its length a multiple of a page.
func asWords(b []byte) []uint64 {
	return unsafe.Slice((*uint64)(unsafe.Pointer(unsafe.SliceData(b))), len(b)/8)
}

// addressOf is where b lies in this process.
func addressOf(b []byte) int64 { return int64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) }

// unmapPart unmaps a part of a mapping.
//
// Why unsafe: Munmap takes whole mappings only. Why safe: nobody uses b any more.
func unmapPart(b []byte) error {
	return unix.MunmapPtr(unsafe.Pointer(unsafe.SliceData(b)), uintptr(len(b)))
}
