package faultfs_test

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"fermata/imageio/vfs"
	"fermata/imageio/vfs/faultfs"
	"fermata/imageio/vfs/vfstest"
	"fermata/protocol/mustrun"
)

// TestContract: without faults it is a file system like any other.
func TestContract(t *testing.T) {
	vfstest.Run(t, func(t *testing.T) (vfs.FS, string) {
		mustrun.Need(t, mustrun.FUSE)
		_, point := faultfs.Temp(t)
		return vfs.OS{}, point
	})
}

func TestFaults(t *testing.T) {
	mustrun.Need(t, mustrun.FUSE)
	f, point := faultfs.Temp(t)
	path := filepath.Join(point, "file")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	f.Rule(func(op faultfs.Op, name string) faultfs.Fault {
		if op == faultfs.Write && name == "file" {
			return faultfs.Fault{Errno: syscall.ENOSPC, Part: 3}
		}
		return faultfs.Fault{}
	})
	if _, err := file.Write([]byte("torn write")); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("write: %v", err)
	}
	short := 0
	f.Rule(func(op faultfs.Op, _ string) faultfs.Fault {
		if op == faultfs.Write {
			short++
			return faultfs.Fault{Part: 2}
		}
		return faultfs.Fault{}
	})
	n, err := file.WriteAt([]byte("short"), 0)
	f.Rule(nil)
	if n != 5 || err != nil || short != 3 {
		t.Errorf("short writes: %d bytes, %v, in %d pieces", n, err, short)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "short" {
		t.Errorf("%q, %v", got, err)
	}
	f.Slow(0, 1000)
	begun := time.Now()
	if _, err := file.Write(make([]byte, 100)); err != nil || time.Since(begun) < 90*time.Millisecond {
		t.Errorf("100 bytes at 1,000 a second took %s, %v", time.Since(begun), err)
	}
	f.Slow(0, 0)
	goOn := make(chan struct{})
	f.Rule(func(op faultfs.Op, _ string) faultfs.Fault { return faultfs.Fault{Wait: goOn} })
	done := make(chan error, 1)
	go func() { done <- file.Sync() }()
	select {
	case err := <-done:
		t.Fatalf("did not hang: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	close(goOn)
	if err := <-done; err != nil {
		t.Error(err)
	}
	f.Rule(nil)
}
