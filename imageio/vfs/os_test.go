package vfs_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"fermata/imageio/vfs"
	"fermata/imageio/vfs/vfstest"
)

func TestOS(t *testing.T) {
	for _, direct := range []bool{false, true} {
		t.Run(fmt.Sprintf("direct=%v", direct), func(t *testing.T) {
			vfstest.Run(t, func(t *testing.T) (vfs.FS, string) { return vfs.OS{Direct: direct}, t.TempDir() })
		})
	}
}

func TestThrottled(t *testing.T) {
	vfstest.Run(t, func(t *testing.T) (vfs.FS, string) { return vfs.Throttled(vfs.OS{}, 1<<30), t.TempDir() })
}

// TestThrottled_BoundsWrites: the bound is that of all files together. It cannot be
// met by being slow, and is missed only by going too fast.
func TestThrottled_BoundsWrites(t *testing.T) {
	const rate, bytes = 16 << 20, 4 << 20
	fsys := vfs.Throttled(vfs.OS{}, rate)
	begun := time.Now()
	for i := range 2 {
		if err := vfs.WriteFile(fsys, filepath.Join(t.TempDir(), fmt.Sprint(i)), make([]byte, bytes)); err != nil {
			t.Fatal(err)
		}
	}
	// The first burst of 1 MiB is free.
	if least := time.Duration(float64(2*bytes-1<<20) / rate * float64(time.Second)); time.Since(begun) < least {
		t.Errorf("%d bytes in %s, at least %s", 2*bytes, time.Since(begun), least)
	}
}

// TestOS_DirectAndReserved writes whole pages and then a part of one around the page
// cache into room that was reserved, and leaves neither too much nor too little.
func TestOS_DirectAndReserved(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	f, err := vfs.OS{Direct: true}.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.(vfs.Preallocator).Preallocate(8 << 20); err != nil {
		t.Fatal(err)
	}
	data := make([]byte, 2<<20+100)
	for i := range data {
		data[i] = byte(i / 4096 * 7)
	}
	for _, part := range [][]byte{data[:1<<20], data[1<<20 : 2<<20], data[2<<20:]} {
		if n, err := f.Write(part); err != nil || n != len(part) {
			t.Fatal(n, err)
		}
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(name)
	if err != nil || !bytes.Equal(got, data) {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	var st syscall.Stat_t
	if err := syscall.Stat(name, &st); err != nil {
		t.Fatal(err)
	}
	if took := st.Blocks * 512; took > 4<<20 {
		t.Errorf("%d bytes take %d", len(data), took)
	}
}
