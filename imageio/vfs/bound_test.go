package vfs_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"fermata/imageio/vfs"
	"fermata/imageio/vfs/vfstest"
)

func TestBounds_IsAFileSystem(t *testing.T) {
	vfstest.Run(t, func(t *testing.T) (vfs.FS, string) {
		return (&vfs.Bounds{}).Within(t.Context(), vfs.OS{}, time.Minute), t.TempDir()
	})
}

// hanging is a file system of which each operation waits while it hangs.
type hanging struct {
	vfs.OS
	mu      sync.Mutex
	hangs   chan struct{} // guarded by mu; nil: it does not
	arrived chan string   // names of the operations that wait
}

func newHanging() *hanging { return &hanging{arrived: make(chan string, 1000)} }

func (h *hanging) hang() (heal func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	gone := make(chan struct{})
	h.hangs = gone
	return sync.OnceFunc(func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		close(gone)
		h.hangs = nil
	})
}

func (h *hanging) meet(what string) {
	h.mu.Lock()
	gone := h.hangs
	h.mu.Unlock()
	if gone != nil {
		h.arrived <- what
		<-gone
	}
}

func (h *hanging) Link(oldName, newName string) error {
	h.meet("link")
	return h.OS.Link(oldName, newName)
}
func (h *hanging) Remove(name string) error { h.meet("remove"); return h.OS.Remove(name) }
func (h *hanging) Stat(name string) (vfs.Info, error) {
	h.meet("stat")
	return h.OS.Stat(name)
}
func (h *hanging) Create(name string) (vfs.File, error) {
	h.meet("create")
	f, err := h.OS.Create(name)
	return hangingFile{f, h}, err
}
func (h *hanging) Open(name string) (vfs.File, error) {
	f, err := h.OS.Open(name)
	return hangingFile{f, h}, err
}

type hangingFile struct {
	vfs.File
	h *hanging
}

func (f hangingFile) ReadAt(p []byte, off int64) (int, error) {
	f.h.meet("read")
	return f.File.ReadAt(p, off)
}
func (f hangingFile) Write(p []byte) (int, error) { f.h.meet("write"); return f.File.Write(p) }

// TestBounds_GivesUp sees operations on a file system that hangs end with the
// context and with the limit, and take effect late without harm.
func TestBounds_GivesUp(t *testing.T) {
	h, dir := newHanging(), t.TempDir()
	name := filepath.Join(dir, "a")
	if err := os.WriteFile(name, []byte("contents"), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	bounds := &vfs.Bounds{}
	fsys := bounds.Within(ctx, h, 0)
	file, err := fsys.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	heal := h.hang()
	defer heal()
	why := errors.New("the caller has gone")
	linked, read := make(chan error, 1), make(chan error, 1)
	buf := make([]byte, 8)
	go func() { linked <- fsys.Link(name, name+"2") }()
	go func() {
		_, err := file.ReadAt(buf, 0)
		read <- err
	}()
	<-h.arrived
	<-h.arrived
	cancel(why)
	for what, ended := range map[string]chan error{"link": linked, "read": read} {
		if err := <-ended; !errors.Is(err, why) {
			t.Errorf("%s: %v, want the end of the context", what, err)
		}
	}
	if _, err := fsys.Stat(name); !errors.Is(err, why) {
		t.Errorf("stat after the end: %v", err)
	}
	if err := fsys.Remove(name); !errors.Is(err, vfs.ErrNoAnswer) {
		t.Errorf("remove beside stuck operations: %v, want no wait", err)
	}
	limited := bounds.Within(t.Context(), h, time.Millisecond)
	if _, err := limited.Stat(name); !errors.Is(err, vfs.ErrNoAnswer) {
		t.Errorf("stat: %v, want ErrNoAnswer", err)
	}
	clear(buf)
	heal()
	// What was given up takes effect, and reaches nobody's memory.
	for deadline := time.Now().Add(10 * time.Second); ; <-time.After(time.Millisecond) {
		_, err := os.Stat(name + "2")
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrNotExist) || time.Now().After(deadline) {
			t.Fatalf("the link that was given up: %v", err)
		}
	}
	if string(buf) != "\x00\x00\x00\x00\x00\x00\x00\x00" {
		t.Errorf("a read that was given up has changed its caller's memory: %q", buf)
	}
	// The end of a context does not keep its owner from cleaning up.
	for deadline := time.Now().Add(10 * time.Second); ; <-time.After(time.Millisecond) {
		err := fsys.Remove(name)
		if err == nil {
			break
		}
		if !errors.Is(err, vfs.ErrNoAnswer) || time.Now().After(deadline) {
			t.Fatalf("remove: %v", err)
		}
	}
	if err := file.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
}

// TestBounds_StuckOperationsAreFew asks a file system that hangs again and
// again: it does not collect a thread for each time.
func TestBounds_StuckOperationsAreFew(t *testing.T) {
	h := newHanging()
	heal := h.hang()
	defer heal()
	fsys := (&vfs.Bounds{}).Within(t.Context(), h, time.Millisecond)
	const attempts = 200
	for range attempts {
		if _, err := fsys.Stat("/"); !errors.Is(err, vfs.ErrNoAnswer) {
			t.Fatalf("stat: %v, want ErrNoAnswer", err)
		}
	}
	if n := len(h.arrived); n == 0 || n >= attempts {
		t.Errorf("%d of %d operations were begun", n, attempts)
	}
}
