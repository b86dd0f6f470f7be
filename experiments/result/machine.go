package result

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Machine describes where it was measured, in general terms: enough to judge a
// figure by, nothing that names the machine.
type Machine struct {
	CPUs        int     `json:"cpus"`
	MemoryBytes uint64  `json:"memory_bytes"`
	Kernel      string  `json:"kernel"` // numbers alone, without the builder's suffix
	QEMU        string  `json:"qemu"`
	LoadAverage float64 `json:"load_average"` // of the minute before it began
}

// QEMU is the program that experiments run as their guests' machine.
const QEMU = "qemu-system-x86_64"

// loadUnit is one process in the kernel's fixed-point load averages
// (sysinfo(2), SI_LOAD_SHIFT).
const loadUnit = 1 << 16

// Here describes this machine.
func Here(ctx context.Context) (Machine, error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return Machine{}, fmt.Errorf("ask for the kernel: %w", err)
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return Machine{}, fmt.Errorf("ask for memory and load: %w", err)
	}
	version, err := QEMUVersion(ctx, QEMU)
	if err != nil {
		return Machine{}, err
	}
	return Machine{
		CPUs: runtime.NumCPU(), MemoryBytes: info.Totalram * uint64(info.Unit),
		Kernel: kernelNumbers(unix.ByteSliceToString(uts.Release[:])), QEMU: version,
		LoadAverage: round(float64(info.Loads[0]) / loadUnit),
	}, nil
}

// QEMUVersion asks a QEMU, by name or path, for its version.
func QEMUVersion(ctx context.Context, program string) (string, error) {
	out, err := exec.CommandContext(ctx, program, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("ask for QEMU's version: %w", err)
	}
	return qemuVersion(string(out))
}

// String is one line.
func (m Machine) String() string {
	return fmt.Sprintf("%d CPUs, %.0f GiB, Linux %s, QEMU %s, load average %s at the start",
		m.CPUs, float64(m.MemoryBytes)/(1<<30), m.Kernel, m.QEMU, number(m.LoadAverage))
}

// kernelNumbers keeps the leading digits and points of a release.
func kernelNumbers(release string) string {
	end := strings.IndexFunc(release, func(r rune) bool { return r != '.' && (r < '0' || r > '9') })
	if end < 0 {
		return release
	}
	return strings.TrimRight(release[:end], ".")
}

// qemuVersion finds the number in "QEMU emulator version 7.2.22 (Debian …)".
func qemuVersion(text string) (string, error) {
	_, rest, ok := strings.Cut(text, "version ")
	if fields := strings.Fields(rest); ok && len(fields) > 0 {
		return fields[0], nil
	}
	return "", errors.New("ask for QEMU's version: no version in its answer")
}
