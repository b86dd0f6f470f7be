package labrun

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Process is a process that uses a directory.
type Process struct {
	PID     int
	Command string   // its command line
	Files   []string // what it has open
}

// Name is the name of its program.
func (p Process) Name() string {
	program, _, _ := strings.Cut(p.Command, " ")
	return filepath.Base(program)
}

func (p Process) String() string { return fmt.Sprintf("process %d (%s)", p.PID, p.Command) }

// Using lists the processes but this one that name a path below dir on their command
// line, or have a file below it open, as QEMUs have that are given descriptors alone.
func Using(dir string) ([]Process, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("look for processes: %w", err)
	}
	below := strings.TrimSuffix(dir, "/") + "/"
	var out []Process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		command, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil || len(command) == 0 {
			continue // it has ended, or is the kernel's
		}
		p := Process{PID: pid, Command: string(bytes.ReplaceAll(bytes.TrimRight(command, "\x00"), []byte{0}, []byte{' '})), Files: openFiles(e.Name())}
		isBelow := func(file string) bool { return strings.HasPrefix(file, below) }
		if strings.Contains(p.Command, below) || slices.ContainsFunc(p.Files, isBelow) {
			out = append(out, p)
		}
	}
	return out, nil
}

// openFiles are the paths of what a process has open; none of one that has ended.
func openFiles(pid string) (paths []string) {
	dir := filepath.Join("/proc", pid, "fd")
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if target, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil {
			paths = append(paths, target)
		}
	}
	return paths
}
