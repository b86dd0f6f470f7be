package vfs

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// ErrNoAnswer says that a file system has not answered in time. What it was
// asked for may have been done, or may still be.
var ErrNoAnswer = errors.New("the file system does not answer")

const (
	// maxStuck bounds the operations that nobody waits for any more. Each holds a
	// thread until the kernel answers, and a Go program ends at 10,000 of them.
	maxStuck = 64
	// cleanBudget is how long a bounded file system whose context has ended still
	// waits for the removal of a file: it is done when all is well, and left to a
	// sweep when it is not.
	cleanBudget = 2 * time.Second
)

// Bounds counts the operations of one file system that nobody waits for any more.
//
// Concurrency: safe for use by several goroutines.
type Bounds struct {
	stuck   atomic.Int32
	buffers sync.Pool // of *[]byte, lent to reads
}

// Within is fsys for somebody who cannot wait for ever: an operation is given up
// when ctx ends, and when it has taken longer than limit (0: no limit). A system
// call cannot be called back, so what was given up goes on by itself, and may
// take effect later. While too many of them do, every operation is refused.
//
// A file that is written after an operation on it was given up is not to be
// relied on, and the bytes given to that Write are not to be changed.
func (b *Bounds) Within(ctx context.Context, fsys FS, limit time.Duration) FS {
	return &bounded{ctx: ctx, bounds: b, fs: fsys, limit: limit}
}

type bounded struct {
	ctx    context.Context // of the one who asked for this file system
	bounds *Bounds
	fs     FS
	limit  time.Duration
}

// outcome is how an operation ended.
type outcome[T any] struct {
	value T
	err   error
}

// await runs one operation and waits for it, but not for ever. undo gets what
// an operation that was given up yields after all; it may be nil.
func await[T any](b *bounded, what, name string, op func() (T, error), undo func(T)) (T, error) {
	if err := b.ctx.Err(); err != nil {
		var none T
		return none, fmt.Errorf("%s %s: %w", what, name, context.Cause(b.ctx))
	}
	return awaitUntil(b, b.ctx.Done(), b.limit, what, name, op, undo)
}

func awaitUntil[T any](b *bounded, ended <-chan struct{}, limit time.Duration, what, name string, op func() (T, error), undo func(T)) (none T, _ error) {
	if n := b.bounds.stuck.Load(); n >= maxStuck {
		return none, fmt.Errorf("%s %s: %w: %d operations are stuck", what, name, ErrNoAnswer, n)
	}
	var givenUp atomic.Bool
	answer := make(chan outcome[T], 1)
	go func() {
		v, err := op()
		answer <- outcome[T]{v, err}
		if !givenUp.CompareAndSwap(false, true) { // nobody waits
			b.bounds.stuck.Add(-1)
			if err == nil && undo != nil {
				undo(v)
			}
		}
	}()
	var expired <-chan time.Time
	if limit > 0 {
		timer := time.NewTimer(limit)
		defer timer.Stop()
		expired = timer.C
	}
	var err error
	select {
	case o := <-answer:
		return o.value, o.err
	case <-ended:
		err = fmt.Errorf("%s %s: %w", what, name, context.Cause(b.ctx))
	case <-expired:
		err = fmt.Errorf("%s %s: %w (waited %s)", what, name, ErrNoAnswer, limit)
	}
	b.bounds.stuck.Add(1)
	if !givenUp.CompareAndSwap(false, true) { // it has ended in this moment
		b.bounds.stuck.Add(-1)
		o := <-answer
		return o.value, o.err
	}
	return none, err
}

// clean is await for what is also done once the context has ended.
func clean(b *bounded, what, name string, op func() error) error {
	run := func() (struct{}, error) { return struct{}{}, op() }
	if b.ctx.Err() == nil {
		_, err := await(b, what, name, run, nil)
		return err
	}
	if b.bounds.stuck.Load() > 0 {
		return fmt.Errorf("%s %s: %w", what, name, ErrNoAnswer)
	}
	_, err := awaitUntil(b, nil, cleanBudget, what, name, run, nil)
	return err
}

func (b *bounded) simply(what, name string, op func() error) error {
	_, err := await(b, what, name, func() (struct{}, error) { return struct{}{}, op() }, nil)
	return err
}

// Create implements FS.
func (b *bounded) Create(name string) (File, error) {
	return b.open("create", name, func() (File, error) { return b.fs.Create(name) })
}

// Open implements FS.
func (b *bounded) Open(name string) (File, error) {
	return b.open("open", name, func() (File, error) { return b.fs.Open(name) })
}

func (b *bounded) open(what, name string, op func() (File, error)) (File, error) {
	f, err := await(b, what, name, op, func(f File) { _ = f.Close() })
	if err != nil {
		return nil, err
	}
	return &boundedFile{file: f, fs: b, name: name}, nil
}

// Link implements FS.
func (b *bounded) Link(oldName, newName string) error {
	return b.simply("link", newName, func() error { return b.fs.Link(oldName, newName) })
}

// Rename implements FS.
func (b *bounded) Rename(oldName, newName string) error {
	return b.simply("rename", newName, func() error { return b.fs.Rename(oldName, newName) })
}

// Remove implements FS.
func (b *bounded) Remove(name string) error {
	return clean(b, "remove", name, func() error { return b.fs.Remove(name) })
}

// Mkdir implements FS.
func (b *bounded) Mkdir(name string) error {
	return b.simply("make directory", name, func() error { return b.fs.Mkdir(name) })
}

// SyncDir implements FS.
func (b *bounded) SyncDir(name string) error {
	return b.simply("sync directory", name, func() error { return b.fs.SyncDir(name) })
}

// List implements FS.
func (b *bounded) List(name string) ([]string, error) {
	return await(b, "list", name, func() ([]string, error) { return b.fs.List(name) }, nil)
}

// Stat implements FS.
func (b *bounded) Stat(name string) (Info, error) {
	return await(b, "stat", name, func() (Info, error) { return b.fs.Stat(name) }, nil)
}

type boundedFile struct {
	file File
	fs   *bounded
	name string
}

// ReadAt implements io.ReaderAt. The file system never sees p: the kernel may
// still write into the buffer of a read that was given up, and p is used for
// something else by then.
func (f *boundedFile) ReadAt(p []byte, off int64) (int, error) {
	buf, ok := f.fs.bounds.buffers.Get().(*[]byte)
	if !ok || cap(*buf) < len(p) {
		fresh := make([]byte, len(p))
		buf = &fresh
	}
	own := (*buf)[:len(p)]
	n, err := await(f.fs, "read", f.name, func() (int, error) {
		n, err := f.file.ReadAt(own, off)
		return n, answered{err}
	}, nil)
	var a answered
	if !errors.As(err, &a) {
		return 0, err // given up, and the buffer with it
	}
	copy(p, own[:n])
	f.fs.bounds.buffers.Put(buf)
	return n, a.error
}

// answered is the error of an operation that was not given up.
type answered struct{ error }

// Write implements io.Writer.
func (f *boundedFile) Write(p []byte) (int, error) {
	return await(f.fs, "write", f.name, func() (int, error) { return f.file.Write(p) }, nil)
}

// Sync implements File.
func (f *boundedFile) Sync() error { return f.fs.simply("sync", f.name, f.file.Sync) }

// Close implements io.Closer.
func (f *boundedFile) Close() error { return clean(f.fs, "close", f.name, f.file.Close) }

// Preallocate implements Preallocator where the file does.
func (f *boundedFile) Preallocate(bytes int64) error {
	p, ok := f.file.(Preallocator)
	if !ok {
		return errors.ErrUnsupported
	}
	return f.fs.simply("preallocate", f.name, func() error { return p.Preallocate(bytes) })
}
