package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

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
	// As memoryObject writes it into the arguments.
	want := []byte(filepath.Clean(memoryDir) + "/")
	var errs []error
	for _, file := range dirs {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil {
			continue
		}
		cmdline, err := os.ReadFile(file)
		if err != nil || !bytes.Contains(cmdline, []byte("memory-backend-file")) || !bytes.Contains(cmdline, want) {
			continue // gone, or another program
		}
		if err := endStray(ctx, pid); err != nil {
			errs = append(errs, fmt.Errorf("end process %d: %w", pid, err))
			continue
		}
		ended++
	}
	return ended, errors.Join(errs...)
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
