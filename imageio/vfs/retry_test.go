package vfs_test

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"fermata/imageio/vfs"
	"fermata/imageio/vfs/crashfs"
	"fermata/imageio/vfs/vfstest"
)

// TestRetrying_Contract: a file system that fails nothing is as it was.
func TestRetrying_Contract(t *testing.T) {
	vfstest.Run(t, func(t *testing.T) (vfs.FS, string) {
		return vfs.Retrying(t.Context(), vfs.OS{}, time.Second), t.TempDir()
	})
}

// flaky fails the next operations, before or after it has done them.
type flaky struct {
	vfs.FS
	fails int
	errno syscall.Errno
	done  bool // although they fail, they are done
	calls int
}

func (f *flaky) meet(op func() error) error {
	f.calls++
	if f.fails == 0 {
		return op()
	}
	f.fails--
	if f.done {
		if err := op(); err != nil {
			return err
		}
	}
	return f.errno
}

func (f *flaky) Create(name string) (file vfs.File, err error) {
	err = f.meet(func() (err error) { file, err = f.FS.Create(name); return err })
	if err != nil && file != nil {
		_ = file.Close()
		file = nil
	}
	return file, err
}

func (f *flaky) Open(name string) (vfs.File, error) {
	var file vfs.File
	err := f.meet(func() (err error) { file, err = f.FS.Open(name); return err })
	if err != nil {
		return nil, err
	}
	return &flakyFile{file, f}, nil
}

func (f *flaky) Link(a, b string) error { return f.meet(func() error { return f.FS.Link(a, b) }) }
func (f *flaky) Rename(a, b string) error {
	return f.meet(func() error { return f.FS.Rename(a, b) })
}
func (f *flaky) Remove(a string) error  { return f.meet(func() error { return f.FS.Remove(a) }) }
func (f *flaky) Mkdir(a string) error   { return f.meet(func() error { return f.FS.Mkdir(a) }) }
func (f *flaky) SyncDir(a string) error { return f.meet(func() error { return f.FS.SyncDir(a) }) }

func (f *flaky) List(name string) (names []string, err error) {
	err = f.meet(func() (err error) { names, err = f.FS.List(name); return err })
	return names, err
}

func (f *flaky) Stat(name string) (info vfs.Info, err error) {
	err = f.meet(func() (err error) { info, err = f.FS.Stat(name); return err })
	return info, err
}

type flakyFile struct {
	vfs.File
	fs *flaky
}

func (f *flakyFile) ReadAt(p []byte, off int64) (n int, err error) {
	err = f.fs.meet(func() (err error) { n, err = f.File.ReadAt(p, off); return err })
	return n, err
}

// TestRetrying_PassingErrors has each operation fail twice, done or not, with errors of
// failovers: each has its effect once, and who asked hears of no error.
func TestRetrying_PassingErrors(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.EIO, syscall.ESTALE, syscall.ENOTCONN, syscall.ESHUTDOWN, syscall.ETIMEDOUT, syscall.EAGAIN, syscall.EINTR} {
		for _, done := range []bool{false, true} {
			if done && (errno == syscall.EAGAIN || errno == syscall.EINTR) {
				continue // these say that nothing was done
			}
			inner := &flaky{FS: crashfs.New(1), errno: errno, done: done}
			r := vfs.Retrying(t.Context(), inner, time.Minute)
			if err := inner.FS.Mkdir("/d"); err != nil {
				t.Fatal(err)
			}
			step := func(what string, op func() error) {
				t.Helper()
				inner.fails = 2
				err := op()
				if what == "link" && done && errors.Is(err, fs.ErrExist) {
					err = nil // the caller compares
				}
				if what == "sync directory" && errno == syscall.EIO {
					if !errors.Is(err, syscall.EIO) {
						t.Errorf("a failed fsync was forgotten: %v", err)
					}
					return
				}
				if err != nil {
					t.Errorf("%s after %v, done %v: %v", what, errno, done, err)
				}
			}
			var file vfs.File
			step("create", func() (err error) { file, err = r.Create("/d/a"); return err })
			inner.fails = 0
			if file == nil {
				t.Fatal("no file")
			}
			if _, err := file.Write([]byte("text")); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(file.Sync(), file.Close()); err != nil {
				t.Fatal(err)
			}
			step("link", func() error { return r.Link("/d/a", "/d/b") })
			step("rename", func() error { return r.Rename("/d/b", "/d/c") })
			step("mkdir", func() error { return r.Mkdir("/d/e") })
			step("sync directory", func() error { return r.SyncDir("/d") })
			inner.fails = 0
			step("stat", func() error { _, err := r.Stat("/d/c"); return err })
			step("read", func() error {
				f, err := r.Open("/d/c")
				if err != nil {
					return err
				}
				inner.fails = 2
				b := make([]byte, 4)
				_, err = f.ReadAt(b, 0)
				if string(b) != "text" {
					t.Errorf("read %q", b)
				}
				return errors.Join(err, f.Close())
			})
			step("remove", func() error { return r.Remove("/d/c") })
			step("list", func() error {
				names, err := r.List("/d")
				if len(names) != 2 {
					t.Errorf("left: %v", names)
				}
				return err
			})
		}
	}
}

// TestRetrying_GivesUp: errors that do not pass end what was asked, and others are none of
// its business.
func TestRetrying_GivesUp(t *testing.T) {
	inner := &flaky{FS: crashfs.New(1), errno: syscall.ESTALE, fails: 1 << 30}
	begun := time.Now()
	if _, err := vfs.Retrying(t.Context(), inner, 200*time.Millisecond).List("/"); !errors.Is(err, syscall.ESTALE) || inner.calls < 3 {
		t.Errorf("%v after %d attempts", err, inner.calls)
	}
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("it took %s", took)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	inner.calls = 0
	if _, err := vfs.Retrying(ctx, inner, time.Hour).List("/"); !errors.Is(err, syscall.ESTALE) || inner.calls != 1 {
		t.Errorf("%v after %d attempts, although nobody waits", err, inner.calls)
	}
	inner.errno, inner.calls = syscall.ENOSPC, 0
	if err := vfs.Retrying(t.Context(), inner, time.Hour).Mkdir("/x"); !errors.Is(err, syscall.ENOSPC) || inner.calls != 1 {
		t.Errorf("%v after %d attempts", err, inner.calls)
	}
	inner.fails = 0
	if _, err := vfs.Retrying(t.Context(), inner, time.Hour).Open(filepath.Join("/", "nothing")); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}
