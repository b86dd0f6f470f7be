package inject

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// code is where a process has the machine code that is needed of it.
type code struct {
	call      uint64 // "syscall", and "ret" behind it if sigreturn is not 0
	sigreturn uint64 // what calls rt_sigreturn(2); 0: the process has no such code
	writable  []span // where it may keep its stacks
}

// holds tells whether the range lies in one writable mapping.
func (c code) holds(begin, end uint64) bool {
	return begin < end && slices.ContainsFunc(c.writable, func(s span) bool { return s.begin <= begin && end <= s.end })
}

// Byte sequences of x86-64.
var (
	syscallCode    = []byte{0x0f, 0x05}
	syscallRetCode = []byte{0x0f, 0x05, 0xc3}
	// What a C library gives the kernel as sa_restorer (sigaction(2)), and Go's
	// runtime, too: "mov $15, %rax" or "%eax", "syscall".
	sigreturnCodes = [][]byte{
		{0x48, 0xc7, 0xc0, 15, 0, 0, 0, 0x0f, 0x05},
		{0xb8, 15, 0, 0, 0, 0x0f, 0x05},
	}
)

const (
	// maxVDSO bounds what is read of a vDSO, bytes; it has two pages.
	maxVDSO = 1 << 20

	// maxCode bounds what is read of a process's code in all, and chunk at a time.
	maxCode  = 256 << 20
	codeRead = 1 << 20
)

// findCode looks for the code in a process that runs. The vDSO (vdso(7)) has a
// system call where it falls back to the kernel; the rest is looked for in the C
// library first, then wherever the process may execute.
func findCode(pid int) (code, error) {
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ESRCH):
		return code{}, ErrGone
	case err != nil:
		return code{}, err
	case len(maps) == 0:
		return code{}, ErrGone // a zombie has no memory
	}
	c, err := searchCode(pid, maps)
	if err != nil && !errors.Is(err, ErrForbidden) && ends(pid) {
		return code{}, ErrGone // its memory goes first, and the file with it
	}
	return c, err
}

func searchCode(pid int, maps []byte) (c code, err error) {
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if errors.Is(err, os.ErrPermission) {
		return c, forbidden(pid)
	}
	if err != nil {
		return c, err
	}
	defer mem.Close()
	var vdso span
	var libraries, others []span
	for line := range strings.Lines(string(maps)) {
		s, name, err := parseSpan(line)
		switch {
		case err != nil:
			return c, fmt.Errorf("%w: mapping %.80q", ErrUnsupported, line)
		case name == "[vdso]":
			vdso = s
		case s.writable:
			c.writable = append(c.writable, s)
		case !s.code:
		case strings.Contains(name, "/libc"):
			libraries = append(libraries, s)
		default:
			others = append(others, s)
		}
	}
	if vdso.end-vdso.begin > maxVDSO || vdso.end == vdso.begin {
		return c, fmt.Errorf("%w: it has no vDSO", ErrUnsupported)
	}
	plain := make([]uint64, 1)
	if err := find(mem, vdso, plain, syscallCode); err != nil {
		return c, err
	}
	if plain[0] == 0 {
		return c, fmt.Errorf("%w: no system call instruction in its vDSO", ErrUnsupported)
	}
	left := uint64(maxCode)
	at := make([]uint64, 3)
	for _, s := range append(libraries, others...) {
		if s.end-s.begin > left {
			break
		}
		left -= s.end - s.begin
		if err := find(mem, s, at, syscallRetCode, sigreturnCodes[0], sigreturnCodes[1]); err != nil {
			return c, err
		}
		c.call, c.sigreturn = at[0], max(at[1], at[2])
		if c.call != 0 && c.sigreturn != 0 {
			break
		}
	}
	if c.call == 0 || c.sigreturn == 0 || shadowStack(pid) || smallStacks(pid) {
		return code{call: plain[0]}, nil
	}
	return c, nil
}

// smallStacks tells programs of Go, whose stacks lie close beside other data: a
// frame below one would overwrite that.
func smallStacks(pid int) bool {
	f, err := elf.Open(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return true // who knows
	}
	defer f.Close()
	return f.Section(".note.go.buildid") != nil || f.Section(".gopclntab") != nil
}

// shadowStack tells whether the process keeps a second stack of return addresses
// (Documentation/arch/x86/shstk.rst): a return to elsewhere would end it.
func shadowStack(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		if features, ok := strings.CutPrefix(line, "x86_Thread_features:"); ok {
			return strings.Contains(features, "shstk")
		}
	}
	return false
}

// span is a part of a process's address space.
type span struct {
	begin, end uint64
	code       bool // may be read and executed
	writable   bool
}

// parseSpan reads a line of proc_pid_maps(5).
func parseSpan(line string) (s span, name string, err error) {
	var mode string
	if _, err := fmt.Sscanf(line, "%x-%x %4s", &s.begin, &s.end, &mode); err != nil {
		return s, "", err
	}
	if s.end < s.begin || len(mode) < 3 {
		return s, "", errors.New("makes no sense")
	}
	s.code = mode[0] == 'r' && mode[2] == 'x'
	s.writable = mode[0] == 'r' && mode[1] == 'w'
	if f := strings.Fields(line); len(f) > 5 {
		name = f[5]
	}
	return s, name, nil
}

// find looks in s for byte sequences and notes in at, one a sequence, where the
// first of each begins. It leaves alone what is not 0 already.
func find(mem io.ReaderAt, s span, at []uint64, what ...[]byte) error {
	const overlap = 16 // no sequence is longer
	b := make([]byte, min(s.end-s.begin, codeRead+overlap))
	for from := s.begin; from < s.end; from += codeRead {
		n := min(s.end-from, uint64(len(b)))
		if _, err := mem.ReadAt(b[:n], int64(from)); err != nil {
			return fmt.Errorf("read code at %#x: %w", from, err)
		}
		for i, w := range what {
			if at[i] != 0 {
				continue
			}
			if found := bytes.Index(b[:n], w); found >= 0 {
				at[i] = from + uint64(found)
			}
		}
	}
	return nil
}
