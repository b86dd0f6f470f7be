package inject

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// syscallInstruction finds a system call instruction in the process. The vDSO
// (vdso(7)) has one where it falls back to the kernel.
func syscallInstruction(pid int) (uint64, error) {
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ESRCH):
		return 0, ErrGone
	case err != nil:
		return 0, err
	case len(maps) == 0:
		return 0, ErrGone // a zombie has no memory
	}
	for line := range strings.Lines(string(maps)) {
		if !strings.HasSuffix(strings.TrimSpace(line), "[vdso]") {
			continue
		}
		var begin, end uint64
		if _, err := fmt.Sscanf(line, "%x-%x ", &begin, &end); err != nil || end <= begin || end-begin > maxVDSO {
			return 0, fmt.Errorf("%w: its vDSO is at %q", ErrUnsupported, line)
		}
		return find(pid, begin, end)
	}
	if ends(pid) { // its memory goes first
		return 0, ErrGone
	}
	return 0, fmt.Errorf("%w: it has no vDSO", ErrUnsupported)
}

// maxVDSO bounds what is read of a vDSO, bytes; it has two pages.
const maxVDSO = 1 << 20

func find(pid int, begin, end uint64) (uint64, error) {
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if errors.Is(err, os.ErrPermission) {
		return 0, forbidden(pid)
	}
	code := make([]byte, end-begin)
	if err == nil {
		defer mem.Close()
		_, err = mem.ReadAt(code, int64(begin))
	}
	if err != nil {
		if ends(pid) { // its memory goes first, and the file with it
			return 0, ErrGone
		}
		return 0, fmt.Errorf("read vDSO: %w", err)
	}
	i := bytes.Index(code, []byte{0x0f, 0x05}) // syscall
	if i < 0 {
		return 0, fmt.Errorf("%w: no system call instruction in its vDSO", ErrUnsupported)
	}
	return begin + uint64(i), nil
}
