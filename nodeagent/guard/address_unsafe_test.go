package guard

import "unsafe"

// addressOf returns where a mapping lies. Why unsafe: a number is made of a
// pointer. Why safe: nothing is made of the number again in this process.
func addressOf(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) }
