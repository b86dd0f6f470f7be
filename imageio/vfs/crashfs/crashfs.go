// Package crashfs is a file system in memory for tests of durability. It can
// cut the power after any operation, and it forgets at Reboot what a real file
// system may forget: unsynced contents, in whole or in part, and unsynced
// names, each on its own. It can also make any operation fail.
//
// Only the operations that change something are counted and logged: create,
// write, sync, link, rename, remove, mkdir and syncdir.
package crashfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"

	"fermata/imageio/vfs"
)

// ErrCrashed is what every operation answers after the power was cut.
var ErrCrashed = errors.New("power cut")

// Op is one operation about to happen.
type Op struct {
	Seq  int    // number among the changing operations since New or Reboot; -1 for the others
	Kind string // create, write, sync, …; open, read, list and stat do not change anything
	Name string
}

// FS is the file system. Its paths are slash-separated; "/" exists.
//
// Concurrency: all methods may be called from any goroutine.
type FS struct {
	mu      sync.Mutex
	seed    uint64
	rng     *rand.Rand     // guarded by mu
	root    *node          // guarded by mu, with all below it
	seq     int            // guarded by mu; changing operations so far
	crashAt int            // guarded by mu; -1 for never
	crashed bool           // guarded by mu
	hook    func(Op) error // guarded by mu
	log     []string       // guarded by mu
}

var _ vfs.FS = (*FS)(nil)

// New returns an empty file system. The seed decides what crashes lose.
func New(seed uint64) *FS {
	return &FS{seed: seed, rng: rand.New(rand.NewPCG(seed, 0x66e6d)), root: newDir(), crashAt: -1}
}

// CrashAfter cuts the power once n more changing operations have happened.
func (f *FS) CrashAfter(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.crashAt = f.seq + n
}

// Inject makes hook decide over every operation from now on: an error of it is
// the operation's answer, and the operation does not happen; a write may have
// left a part of its bytes, as a full disk does. Nil ends it. The hook must
// not call back into the file system.
func (f *FS) Inject(hook func(Op) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hook = hook
}

// FailAt makes the changing operation n (from now, 0 the next) fail with err.
func (f *FS) FailAt(n int, err error) {
	at := f.Ops() + n
	f.Inject(func(op Op) error {
		if op.Seq == at {
			return err
		}
		return nil
	})
}

// Ops counts the changing operations so far.
func (f *FS) Ops() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.seq
}

// Crashed says that the power was cut.
func (f *FS) Crashed() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.crashed
}

// Log is the transcript of the changing operations, one a line.
func (f *FS) Log() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return strings.Join(f.log, "\n")
}

// ResetLog begins a new transcript.
func (f *FS) ResetLog() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.log = nil
}

// Reboot returns what a machine finds after the power is cut now. The old file
// system answers ErrCrashed from here on.
func (f *FS) Reboot() *FS {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.crashed = true
	n := New(f.seed + 1)
	n.root = f.root.survivors(pickLoss(f.rng), map[*node]*node{})
	return n
}

// begin admits one operation. Callers hold f.mu.
func (f *FS) begin(kind, name string, changes bool) error {
	if changes && !f.crashed && f.crashAt >= 0 && f.seq >= f.crashAt {
		f.crashed = true
	}
	if f.crashed {
		return &fs.PathError{Op: kind, Path: name, Err: ErrCrashed}
	}
	seq := -1
	if changes {
		seq = f.seq
		f.seq++
	}
	if f.hook != nil {
		if err := f.hook(Op{Seq: seq, Kind: kind, Name: name}); err != nil {
			return &fs.PathError{Op: kind, Path: name, Err: err}
		}
	}
	return nil
}

func (f *FS) note(format string, args ...any) { f.log = append(f.log, fmt.Sprintf(format, args...)) }

// lookup finds a node. Callers hold f.mu.
func (f *FS) lookup(name string) (*node, bool) {
	n := f.root
	for part := range strings.SplitSeq(path.Clean(name), "/") {
		if part == "" || part == "." {
			continue
		}
		if !n.isDir {
			return nil, false
		}
		next, ok := n.names[part]
		if !ok {
			return nil, false
		}
		n = next
	}
	return n, true
}

// parent finds the directory of name. Callers hold f.mu.
func (f *FS) parent(op, name string) (dir *node, base string, err error) {
	dir, ok := f.lookup(path.Dir(path.Clean(name)))
	if !ok {
		return nil, "", &fs.PathError{Op: op, Path: name, Err: syscall.ENOENT}
	}
	if !dir.isDir {
		return nil, "", &fs.PathError{Op: op, Path: name, Err: syscall.ENOTDIR}
	}
	return dir, path.Base(path.Clean(name)), nil
}

func (f *FS) Create(name string) (vfs.File, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.begin("create", name, true); err != nil {
		return nil, err
	}
	dir, base, err := f.parent("create", name)
	if err != nil {
		return nil, err
	}
	if _, taken := dir.names[base]; taken {
		return nil, &fs.PathError{Op: "create", Path: name, Err: syscall.EEXIST}
	}
	n := &node{}
	dir.change(change{add: base, node: n})
	f.note("create %s", name)
	return &handle{fs: f, node: n, name: name, writable: true}, nil
}

func (f *FS) Open(name string) (vfs.File, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.begin("open", name, false); err != nil {
		return nil, err
	}
	n, ok := f.lookup(name)
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: name, Err: syscall.ENOENT}
	}
	return &handle{fs: f, node: n, name: name}, nil
}

func (f *FS) Link(oldName, newName string) error {
	return f.twoNames("link", oldName, newName, func(dir *node, oldBase, newBase string) error {
		if _, taken := dir.names[newBase]; taken {
			return syscall.EEXIST
		}
		dir.change(change{add: newBase, node: dir.names[oldBase]})
		return nil
	})
}

func (f *FS) Rename(oldName, newName string) error {
	return f.twoNames("rename", oldName, newName, func(dir *node, oldBase, newBase string) error {
		dir.change(change{remove: oldBase, add: newBase, node: dir.names[oldBase]})
		return nil
	})
}

func (f *FS) twoNames(op, oldName, newName string, do func(dir *node, oldBase, newBase string) error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.begin(op, newName, true); err != nil {
		return err
	}
	if path.Dir(path.Clean(oldName)) != path.Dir(path.Clean(newName)) {
		return &fs.PathError{Op: op, Path: newName, Err: syscall.EXDEV}
	}
	dir, oldBase, err := f.parent(op, oldName)
	if err != nil {
		return err
	}
	if _, ok := dir.names[oldBase]; !ok {
		return &fs.PathError{Op: op, Path: oldName, Err: syscall.ENOENT}
	}
	if err := do(dir, oldBase, path.Base(newName)); err != nil {
		return &fs.PathError{Op: op, Path: newName, Err: err}
	}
	f.note("%s %s -> %s", op, oldName, path.Base(newName))
	return nil
}

func (f *FS) Remove(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.begin("remove", name, true); err != nil {
		return err
	}
	dir, base, err := f.parent("remove", name)
	if err != nil {
		return err
	}
	n, ok := dir.names[base]
	if !ok {
		return &fs.PathError{Op: "remove", Path: name, Err: syscall.ENOENT}
	}
	if n.isDir {
		return &fs.PathError{Op: "remove", Path: name, Err: syscall.EISDIR}
	}
	dir.change(change{remove: base})
	f.note("remove %s", name)
	return nil
}

func (f *FS) Mkdir(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.begin("mkdir", name, true); err != nil {
		return err
	}
	dir, base, err := f.parent("mkdir", name)
	if err != nil {
		return err
	}
	if _, taken := dir.names[base]; taken {
		return &fs.PathError{Op: "mkdir", Path: name, Err: syscall.EEXIST}
	}
	dir.change(change{add: base, node: newDir()})
	f.note("mkdir %s", name)
	return nil
}

func (f *FS) SyncDir(name string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.begin("syncdir", name, true); err != nil {
		return err
	}
	n, ok := f.lookup(name)
	if !ok {
		return &fs.PathError{Op: "syncdir", Path: name, Err: syscall.ENOENT}
	}
	n.syncNames()
	f.note("syncdir %s", name)
	return nil
}

func (f *FS) List(name string) ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.begin("list", name, false); err != nil {
		return nil, err
	}
	n, ok := f.lookup(name)
	if !ok {
		return nil, &fs.PathError{Op: "list", Path: name, Err: syscall.ENOENT}
	}
	if !n.isDir {
		return nil, &fs.PathError{Op: "list", Path: name, Err: syscall.ENOTDIR}
	}
	names := make([]string, 0, len(n.names))
	for name := range n.names {
		names = append(names, name)
	}
	slices.Sort(names)
	return names, nil
}

func (f *FS) Stat(name string) (vfs.Info, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.begin("stat", name, false); err != nil {
		return vfs.Info{}, err
	}
	n, ok := f.lookup(name)
	if !ok {
		return vfs.Info{}, &fs.PathError{Op: "stat", Path: name, Err: syscall.ENOENT}
	}
	return vfs.Info{Size: int64(len(n.data)), IsDir: n.isDir}, nil
}

// FlipByte changes one byte of a file behind everybody's back, durably.
func (f *FS) FlipByte(name string, off int64, mask byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	n, ok := f.lookup(name)
	if !ok || off < 0 || off >= int64(len(n.data)) || mask == 0 {
		return fmt.Errorf("flip byte %d of %s: %w", off, name, fs.ErrInvalid)
	}
	n.data = slices.Clone(n.data) // an open handle reads the new bytes, a clone of the tree keeps its own
	n.data[off] ^= mask
	return nil
}

// handle is an open file.
type handle struct {
	fs       *FS
	node     *node
	name     string
	writable bool
}

func (h *handle) Write(p []byte) (int, error) {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	if !h.writable {
		return 0, &fs.PathError{Op: "write", Path: h.name, Err: syscall.EBADF}
	}
	if err := h.fs.begin("write", h.name, true); err != nil {
		n := h.fs.rng.IntN(len(p) + 1)
		h.node.data = append(h.node.data, p[:n]...)
		return n, err
	}
	h.node.data = append(h.node.data, p...)
	h.fs.note("write %s %d", h.name, len(p))
	return len(p), nil
}

func (h *handle) Sync() error {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	if err := h.fs.begin("sync", h.name, true); err != nil {
		return err
	}
	h.node.synced = len(h.node.data)
	h.fs.note("sync %s", h.name)
	return nil
}

func (h *handle) ReadAt(p []byte, off int64) (int, error) {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	if err := h.fs.begin("read", h.name, false); err != nil {
		return 0, err
	}
	if off < 0 {
		return 0, &fs.PathError{Op: "read", Path: h.name, Err: syscall.EINVAL}
	}
	if off >= int64(len(h.node.data)) {
		return 0, io.EOF
	}
	n := copy(p, h.node.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (h *handle) Close() error { return nil }
