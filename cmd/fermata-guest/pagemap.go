package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"

	"fermata/protocol/guestport"
)

// What an entry of /proc/PID/pagemap says (Documentation/admin-guide/mm/pagemap.rst of
// Linux).
const (
	pagePresent   = 1 << 63
	pageExclusive = 1 << 56 // mapped by this process alone
	pageFrameMask = 1<<55 - 1
)

// physical returns where memory of a process lies, in its order, neighbours together.
// Memory that may be elsewhere in a moment is refused: what is not present, or shared
// with others, as the page of zeros is that stands for what was never written to.
func physical(pid int, address, length uint64) (all []guestport.Range, err error) {
	if address%guestport.PageBytes != 0 || length%guestport.PageBytes != 0 || length == 0 || address+length < address {
		return nil, fmt.Errorf("memory at %#x, %d bytes: not whole pages of %d bytes", address, length, guestport.PageBytes)
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", pid))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r := io.NewSectionReader(f, int64(address/guestport.PageBytes*8), int64(length/guestport.PageBytes*8))
	var entry [8]byte
	for at := address; at < address+length; at += guestport.PageBytes {
		if _, err := io.ReadFull(r, entry[:]); err != nil {
			return nil, fmt.Errorf("look up memory at %#x of process %d: %w", at, pid, err)
		}
		v := binary.NativeEndian.Uint64(entry[:])
		frame := v & pageFrameMask
		switch {
		case v&pagePresent == 0:
			return nil, fmt.Errorf("memory at %#x of process %d is not present: write to it and lock it first", at, pid)
		case v&pageExclusive == 0:
			return nil, fmt.Errorf("memory at %#x of process %d is shared: write to it first, and map it privately", at, pid)
		case frame == 0:
			return nil, fmt.Errorf("the kernel does not tell where memory lies: run as root")
		}
		start := frame * guestport.PageBytes
		if n := len(all); n > 0 && all[n-1].Start+all[n-1].Bytes == start {
			all[n-1].Bytes += guestport.PageBytes
		} else {
			all = append(all, guestport.Range{Start: start, Bytes: guestport.PageBytes})
		}
	}
	if len(all) > guestport.MaxRanges {
		return nil, fmt.Errorf("memory at %#x lies in %d places, at most %d can be registered: use large pages", address, len(all), guestport.MaxRanges)
	}
	return all, nil
}
