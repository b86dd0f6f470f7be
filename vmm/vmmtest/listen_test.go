package vmmtest_test

import (
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"fermata/vmm/vmmtest"
)

func TestListens(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	want := func(when string, want bool) {
		t.Helper()
		if got, err := vmmtest.Listens(path); got != want || err != nil {
			t.Errorf("%s: %t, %v, want %t", when, got, err, want)
		}
	}
	want("no file", false)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	want("bound", false)
	if err := unix.Listen(fd, 1); err != nil {
		t.Fatal(err)
	}
	want("listening", true)
	if err := unix.Close(fd); err != nil {
		t.Fatal(err)
	}
	want("closed, the file still there", false)
}
