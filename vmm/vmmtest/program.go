package vmmtest

import (
	_ "embed"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"fermata/vmm"
)

// program is guest/guest.S, assembled.
//
//go:embed guest/guest.bin
var program []byte

// Program returns the test guest: a multiboot kernel that counts, checks
// itself, reports on its serial port and answers frames. guest/guest.S says
// how. It runs in 16 MiB on any PC machine, on one vCPU, under every
// accelerator, and begins some 0.1 s (TCG) to 4 s (a KVM that is nested by
// software) after Continue.
func Program() []byte { return append([]byte(nil), program...) }

// Where the program keeps what it does; the same numbers are in guest/guest.S.
const (
	counterAt = 0x200000
	counterID = "FERMATA1"
	ringAt    = 0x400000
	ringPages = 256
	pageSize  = 4096

	// ProgramMemory is enough RAM for the program.
	ProgramMemory = 16 << 20
)

// FrameType is the Ethernet type of the frames that the program answers.
const FrameType = 0x88b5

// Counter is what the program has in RAM.
type Counter struct {
	Started bool   // the program has begun
	Count   uint32 // steps
	Echoed  uint32 // frames answered
}

// ReadCounter reads the program's counter from its RAM. Of a running guest it is
// a moment's view.
func ReadCounter(ram vmm.Memory) (Counter, error) {
	f, err := os.Open(ram.Path)
	if err != nil {
		return Counter{}, err
	}
	defer f.Close()
	var b [20]byte
	if _, err := f.ReadAt(b[:], ram.Offset+counterAt); err != nil {
		return Counter{}, fmt.Errorf("read counter: %w", err)
	}
	return Counter{
		Started: string(b[:8]) == counterID,
		Count:   binary.LittleEndian.Uint32(b[8:]),
		Echoed:  binary.LittleEndian.Uint32(b[16:]),
	}, nil
}

// errSelfCheck: registers and RAM of the program are not of one instant.
var errSelfCheck = errors.New("the guest found that its registers and its memory disagree")

// CheckConsole reads what the program wrote and returns the last step. Every
// number must follow on the one before; the first is first, and a line that is
// still being written at the end is left out. To check a guest across a
// restart, pass what it wrote before the cut and after it, joined: a line may
// be cut anywhere.
func CheckConsole(text string, first uint32) (last uint32, err error) {
	last = first - 1
	for i, line := range strings.SplitAfter(text, "\n") {
		if !strings.HasSuffix(line, "\n") {
			return last, nil
		}
		if strings.HasPrefix(line, "B ") {
			return last, fmt.Errorf("line %d: %q: %w", i+1, line, errSelfCheck)
		}
		digits, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "C ")
		n, err := strconv.ParseUint(digits, 16, 32)
		if !ok || err != nil || len(digits) != 8 {
			return last, fmt.Errorf("line %d: %q is not of the program", i+1, line)
		}
		if uint32(n) != last+1 {
			return last, fmt.Errorf("line %d: step %d follows step %d", i+1, n, last)
		}
		last++
	}
	return last, nil
}
