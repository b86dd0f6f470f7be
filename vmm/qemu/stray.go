package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"fermata/vmm"
)

// EndStrays ends every QEMU whose RAM lies in a directory, and says how many. It
// is for the moment in which a process exists and no record names it yet: a
// launcher that died there leaves one that nobody would find. memoryDir must be of
// one guest, and no launch into it be under way.
func EndStrays(ctx context.Context, memoryDir string) (ended int, err error) {
	dirs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return 0, err
	}
	want := filepath.Clean(memoryDir) + "/"
	var errs []error
	for _, file := range dirs {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil {
			continue
		}
		cmdline, err := os.ReadFile(file)
		if err != nil || !bytes.Contains(cmdline, []byte("memory-backend-file")) {
			continue // gone, or another program
		}
		// One of an older agent was told the path; ours inherits the file.
		if !bytes.Contains(cmdline, []byte(want)) && !hasOpen(pid, want) {
			continue
		}
		if err := endStray(ctx, pid); err != nil {
			errs = append(errs, fmt.Errorf("end process %d: %w", pid, err))
			continue
		}
		ended++
	}
	return ended, errors.Join(errs...)
}

// hasOpen reports whether a process has a file open whose path begins with prefix.
func hasOpen(pid int, prefix string) bool {
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		return false
	}
	for _, link := range links {
		if target, err := os.Readlink(link); err == nil && strings.HasPrefix(target, prefix) {
			return true
		}
	}
	return false
}

func endStray(ctx context.Context, pid int) error {
	stat, err := readStat(pid)
	if err != nil {
		return nil // gone
	}
	p, err := openProcess(pid, stat.started)
	if errors.Is(err, vmm.ErrGone) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(p.kill(ctx), p.release())
}
