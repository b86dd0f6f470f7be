package faultfs

import "testing"

// Temp mounts an empty directory for one test, and returns where.
func Temp(t testing.TB) (*FS, string) {
	t.Helper()
	point := t.TempDir()
	f, err := Mount(t.TempDir(), point)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Unmount(); err != nil {
			t.Error(err)
		}
	})
	return f, point
}
