package main

import "unsafe"

// addressOf is where b lies in this process.
//
// Why unsafe: the kernel wants a number. Why safe: it is never made a pointer again.
func addressOf(b []byte) uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) }
