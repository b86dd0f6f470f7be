package capture

import "unsafe"

// asWords looks at memory as 8-byte words.
//
// Why unsafe: the writer counts with atomic operations in shared memory. Why
// safe: a mapping is page aligned, and its length a multiple of a page.
func asWords(b []byte) []uint64 {
	return unsafe.Slice((*uint64)(unsafe.Pointer(unsafe.SliceData(b))), len(b)/8)
}
