// Package faultfs is a real file system that fails on demand: a directory, mounted
// through FUSE by this process, so that programs meet errors, slowness, short writes
// and hangs where they meet them in life, in system calls.
//
// Only tests import it. It needs root and /dev/fuse.
package faultfs

import (
	"context"
	"fmt"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// Op is an operation that can fail.
type Op string

const (
	Create Op = "create"
	Write  Op = "write"
	Read   Op = "read"
	Fsync  Op = "fsync"
	Link   Op = "link"
	Rename Op = "rename"
	Unlink Op = "unlink"
)

// Fault is what becomes of one operation. The zero value lets it be.
type Fault struct {
	Errno syscall.Errno // it fails with this
	// Part of a write is done, this many of its bytes: with an Errno it is torn, else
	// it is short. 0: none or all.
	Part int
	// Wait is until when it takes, at least. It ends early when the FS is unmounted.
	Wait <-chan struct{}
}

// FS is a mounted directory.
//
// Concurrency: all methods may be called from any goroutine.
type FS struct {
	server *fuse.Server
	closed chan struct{}

	mu    sync.Mutex
	rule  func(op Op, name string) Fault // guarded by mu; nil: no faults
	ops   map[Op]int                     // guarded by mu
	delay time.Duration                  // guarded by mu
	rate  int64                          // guarded by mu; bytes a second of writes; 0: no limit
	busy  time.Time                      // guarded by mu; until when writes are spent
}

// Mount mounts the directory backing at the directory point. Unmount it.
func Mount(backing, point string) (*FS, error) {
	f := &FS{closed: make(chan struct{}), ops: map[Op]int{}}
	root := &fs.LoopbackRoot{Path: backing}
	var st syscall.Stat_t
	if err := syscall.Stat(backing, &st); err != nil {
		return nil, fmt.Errorf("mount %s: %w", backing, err)
	}
	root.Dev = uint64(st.Dev)
	rootNode := &node{LoopbackNode: &fs.LoopbackNode{RootData: root}, fs: f}
	root.RootNode = rootNode
	server, err := fs.Mount(point, rootNode, &fs.Options{MountOptions: fuse.MountOptions{DirectMount: true, FsName: "faultfs"}})
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", point, err)
	}
	f.server = server
	return f, nil
}

// Unmount ends all waiting and takes the mount away.
func (f *FS) Unmount() error {
	close(f.closed)
	return f.server.Unmount()
}

// Rule decides on every operation from now on, with the name of the file without its
// directory. Nil: no faults. The FS calls it from goroutines of its own, one at a time:
// read the variables that a rule writes only after the next call of Rule, which
// synchronises with the last of them.
func (f *FS) Rule(rule func(op Op, name string) Fault) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rule = rule
}

// Slow makes every operation wait, and bounds the bytes a second of all writes
// together, 0 for no bound.
func (f *FS) Slow(delay time.Duration, bytesPerSecond int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.delay, f.rate, f.busy = delay, bytesPerSecond, time.Now()
}

// Ops counts the operations of a kind.
func (f *FS) Ops(op Op) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ops[op]
}

// meet has one operation wait and says what becomes of it.
func (f *FS) meet(op Op, name string, bytes int) Fault {
	f.mu.Lock()
	f.ops[op]++
	var fault Fault
	if f.rule != nil {
		fault = f.rule(op, name)
	}
	until := time.Now().Add(f.delay)
	if f.rate > 0 && op == Write {
		if f.busy.Before(time.Now()) {
			f.busy = time.Now()
		}
		f.busy = f.busy.Add(time.Duration(int64(bytes) * int64(time.Second) / f.rate))
		if f.busy.After(until) {
			until = f.busy
		}
	}
	f.mu.Unlock()
	if wait := time.Until(until); wait > 0 {
		select {
		case <-time.After(wait):
		case <-f.closed:
		}
	}
	if fault.Wait != nil {
		select {
		case <-fault.Wait:
		case <-f.closed:
		}
	}
	return fault
}

// node is a file or directory.
type node struct {
	*fs.LoopbackNode
	fs *FS
}

// WrapChild makes what is below it meet faults, too.
func (n *node) WrapChild(_ context.Context, ops fs.InodeEmbedder) fs.InodeEmbedder {
	return &node{LoopbackNode: ops.(*fs.LoopbackNode), fs: n.fs}
}

var (
	_ fs.NodeWrapChilder = (*node)(nil)
	_ fs.NodeCreater     = (*node)(nil)
	_ fs.NodeOpener      = (*node)(nil)
	_ fs.NodeLinker      = (*node)(nil)
	_ fs.NodeRenamer     = (*node)(nil)
	_ fs.NodeUnlinker    = (*node)(nil)
	_ fs.NodeFsyncer     = (*node)(nil)
)

func (n *node) Create(ctx context.Context, name string, flags, mode uint32, out *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	if f := n.fs.meet(Create, name, 0); f.Errno != 0 {
		return nil, nil, 0, f.Errno
	}
	inode, h, _, errno := n.LoopbackNode.Create(ctx, name, flags, mode, out)
	if errno != 0 {
		return nil, nil, 0, errno
	}
	return inode, &handle{h, n.fs, name}, fuse.FOPEN_DIRECT_IO, 0
}

func (n *node) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	h, _, errno := n.LoopbackNode.Open(ctx, flags)
	if errno != 0 {
		return nil, 0, errno
	}
	name, _ := n.Parent()
	return &handle{h, n.fs, name}, fuse.FOPEN_DIRECT_IO, 0
}

func (n *node) Link(ctx context.Context, target fs.InodeEmbedder, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	if f := n.fs.meet(Link, name, 0); f.Errno != 0 {
		return nil, f.Errno
	}
	return n.LoopbackNode.Link(ctx, target, name, out)
}

func (n *node) Rename(ctx context.Context, name string, parent fs.InodeEmbedder, to string, flags uint32) syscall.Errno {
	if f := n.fs.meet(Rename, to, 0); f.Errno != 0 {
		return f.Errno
	}
	return n.LoopbackNode.Rename(ctx, name, parent, to, flags)
}

func (n *node) Unlink(ctx context.Context, name string) syscall.Errno {
	if f := n.fs.meet(Unlink, name, 0); f.Errno != 0 {
		return f.Errno
	}
	return n.LoopbackNode.Unlink(ctx, name)
}

// Fsync is that of directories, and of files by their handle.
func (n *node) Fsync(ctx context.Context, h fs.FileHandle, flags uint32) syscall.Errno {
	if file, ok := h.(*handle); ok {
		return file.Fsync(ctx, flags)
	}
	name, _ := n.Parent()
	return n.fs.meet(Fsync, name, 0).Errno
}

// handle is an open file.
type handle struct {
	file fs.FileHandle
	fs   *FS
	name string
}

var (
	_ fs.FileReader    = (*handle)(nil)
	_ fs.FileWriter    = (*handle)(nil)
	_ fs.FileFsyncer   = (*handle)(nil)
	_ fs.FileFlusher   = (*handle)(nil)
	_ fs.FileReleaser  = (*handle)(nil)
	_ fs.FileGetattrer = (*handle)(nil)
)

func (h *handle) Read(ctx context.Context, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	if f := h.fs.meet(Read, h.name, len(dest)); f.Errno != 0 {
		return nil, f.Errno
	}
	return h.file.(fs.FileReader).Read(ctx, dest, off)
}

func (h *handle) Write(ctx context.Context, data []byte, off int64) (uint32, syscall.Errno) {
	f := h.fs.meet(Write, h.name, len(data))
	if f.Part > 0 && f.Part < len(data) {
		data = data[:f.Part]
	} else if f.Errno != 0 {
		return 0, f.Errno
	}
	n, errno := h.file.(fs.FileWriter).Write(ctx, data, off)
	if f.Errno != 0 {
		return 0, f.Errno // what was written stays
	}
	return n, errno
}

func (h *handle) Fsync(ctx context.Context, flags uint32) syscall.Errno {
	if f := h.fs.meet(Fsync, h.name, 0); f.Errno != 0 {
		return f.Errno
	}
	return h.file.(fs.FileFsyncer).Fsync(ctx, flags)
}

func (h *handle) Flush(ctx context.Context) syscall.Errno { return h.file.(fs.FileFlusher).Flush(ctx) }

func (h *handle) Release(ctx context.Context) syscall.Errno {
	return h.file.(fs.FileReleaser).Release(ctx)
}

func (h *handle) Getattr(ctx context.Context, out *fuse.AttrOut) syscall.Errno {
	return h.file.(fs.FileGetattrer).Getattr(ctx, out)
}
