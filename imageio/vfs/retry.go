package vfs

import (
	"context"
	"errors"
	"io/fs"
	"sync/atomic"
	"syscall"
	"time"
)

// What a parallel file system says while one of its servers takes over from another is
// here, and how long it is asked again, for all operations:
//
//	List, Stat, Open, ReadAt          change nothing: asked again after any passing error
//	Mkdir, Remove, Rename, Link       may have been done although they failed: asked again, and
//	                                  "exists" or "not found" is then compared with what was asked
//	Create                            the same; the file that a failed attempt left is removed
//	SyncDir                           asked again, but not after EIO
//	Write, Sync, Close, Preallocate   never: what a failed fsync(2) had to write may be lost,
//	                                  and the next fsync would not say so
//
// A disk that cannot read says EIO, too, and will say it again. So a read of data after EIO is
// asked again for a shorter time, and only once a file.

// passing are the errors that may pass by themselves.
var passing = []error{
	syscall.EIO,       // GlusterFS and NFS (soft), amid a failover
	syscall.ESTALE,    // NFS and GlusterFS: the handle's server has changed
	syscall.ENOTCONN,  // FUSE: the connection to a server has ended
	syscall.ESHUTDOWN, // Lustre: this client was evicted, and connects again
	syscall.ETIMEDOUT, syscall.EHOSTDOWN, syscall.EHOSTUNREACH, syscall.ECONNRESET,
	syscall.EAGAIN, syscall.EINTR,
}

func isPassing(err error) bool {
	for _, p := range passing {
		if errors.Is(err, p) {
			return true
		}
	}
	return false
}

// neverDone reports whether an error says that nothing was done.
func neverDone(err error) bool {
	return errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EINTR)
}

const (
	// DefaultPatience is longer than a failover takes whose servers notice it by a
	// connection that ends. One that they notice by a ping that times out takes longer, and
	// fails what it meets.
	DefaultPatience = 10 * time.Second
	// dataPatience is for reads of data after EIO.
	dataPatience = 2 * time.Second

	firstPause   = 20 * time.Millisecond // doubles up to longestPause
	longestPause = time.Second
)

// Retrying is fsys whose operations are asked again after errors that may pass, for as long
// as patience, and until ctx ends.
func Retrying(ctx context.Context, fsys FS, patience time.Duration) FS {
	return &retrying{ctx: ctx, fs: fsys, patience: patience}
}

type retrying struct {
	ctx      context.Context // of the one who asked for this file system
	fs       FS
	patience time.Duration
}

// again calls op until it does not fail with an error that passes.
func (r *retrying) again(patience time.Duration, op func() error) error {
	begun, pause := time.Now(), firstPause
	for {
		err := op()
		if err == nil || !isPassing(err) || time.Since(begun)+pause > patience {
			return err
		}
		select {
		case <-time.After(pause):
		case <-r.ctx.Done():
			return err
		}
		pause = min(2*pause, longestPause)
	}
}

// Create implements FS.
func (r *retrying) Create(name string) (f File, err error) {
	doubtful := false
	err = r.again(r.patience, func() (err error) {
		f, err = r.fs.Create(name)
		if doubtful && errors.Is(err, fs.ErrExist) { // made by the attempt before
			if err = r.fs.Remove(name); err == nil {
				f, err = r.fs.Create(name)
			}
		}
		doubtful = doubtful || err != nil && isPassing(err) && !neverDone(err)
		return err
	})
	return f, err
}

// Open implements FS.
func (r *retrying) Open(name string) (File, error) {
	var f File
	err := r.again(r.patience, func() (err error) {
		f, err = r.fs.Open(name)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &retryingFile{File: f, fs: r}, nil
}

// Link implements FS. After an attempt that may have been done fs.ErrExist can mean
// ourselves: who needs to know compares what is there.
func (r *retrying) Link(oldName, newName string) error {
	return r.again(r.patience, func() error { return r.fs.Link(oldName, newName) })
}

// Rename implements FS.
func (r *retrying) Rename(oldName, newName string) error {
	doubtful := false
	return r.again(r.patience, func() error {
		err := r.fs.Rename(oldName, newName)
		if doubtful && errors.Is(err, fs.ErrNotExist) {
			if _, serr := r.fs.Stat(newName); serr == nil {
				return nil // the attempt before was done
			}
		}
		doubtful = doubtful || err != nil && isPassing(err) && !neverDone(err)
		return err
	})
}

// Remove implements FS.
func (r *retrying) Remove(name string) error {
	doubtful := false
	return r.again(r.patience, func() error {
		err := r.fs.Remove(name)
		if doubtful && errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		doubtful = doubtful || err != nil && isPassing(err) && !neverDone(err)
		return err
	})
}

// Mkdir implements FS.
func (r *retrying) Mkdir(name string) error {
	doubtful := false
	return r.again(r.patience, func() error {
		err := r.fs.Mkdir(name)
		if doubtful && errors.Is(err, fs.ErrExist) {
			return nil
		}
		doubtful = doubtful || err != nil && isPassing(err) && !neverDone(err)
		return err
	})
}

// SyncDir implements FS.
func (r *retrying) SyncDir(name string) error {
	var lost error
	err := r.again(r.patience, func() error {
		err := r.fs.SyncDir(name)
		if errors.Is(err, syscall.EIO) {
			lost = err
			return nil
		}
		return err
	})
	return errors.Join(lost, err)
}

// List implements FS.
func (r *retrying) List(name string) (names []string, err error) {
	err = r.again(r.patience, func() (err error) {
		names, err = r.fs.List(name)
		return err
	})
	return names, err
}

// Stat implements FS.
func (r *retrying) Stat(name string) (info Info, err error) {
	err = r.again(r.patience, func() (err error) {
		info, err = r.fs.Stat(name)
		return err
	})
	return info, err
}

// retryingFile is a file that is read.
type retryingFile struct {
	File
	fs  *retrying
	bad atomic.Bool // a read has gone on to fail with EIO: the disk cannot read
}

// ReadAt implements io.ReaderAt.
func (f *retryingFile) ReadAt(p []byte, off int64) (n int, err error) {
	read := func() error {
		n, err = f.File.ReadAt(p, off)
		return err
	}
	_ = read()
	if err == nil || !isPassing(err) {
		return n, err
	}
	patience := f.fs.patience
	if errors.Is(err, syscall.EIO) {
		if f.bad.Load() {
			return n, err
		}
		patience = min(patience, dataPatience)
	}
	if err := f.fs.again(patience, read); errors.Is(err, syscall.EIO) {
		f.bad.Store(true)
	}
	return n, err
}
