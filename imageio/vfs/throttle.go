package vfs

import (
	"context"
	"errors"

	"golang.org/x/time/rate"
)

// Throttled is inner with a bound on the bytes that are written to all its files
// together, each second. Reading is not bounded: a restart is in a hurry.
func Throttled(inner FS, bytesPerSecond int64) FS {
	return &throttled{FS: inner, limiter: rate.NewLimiter(rate.Limit(bytesPerSecond), throttleBurst)}
}

// throttleBurst is what is written at once: a chunk of a pack.
const throttleBurst = 1 << 20

type throttled struct {
	FS
	limiter *rate.Limiter
}

func (t *throttled) Create(name string) (File, error) {
	f, err := t.FS.Create(name)
	if err != nil {
		return nil, err
	}
	return &throttledFile{f, t.limiter}, nil
}

type throttledFile struct {
	File
	limiter *rate.Limiter
}

func (f *throttledFile) Write(p []byte) (n int, err error) {
	for len(p) > 0 {
		some := p[:min(len(p), throttleBurst)]
		if err := f.limiter.WaitN(context.Background(), len(some)); err != nil {
			return n, err
		}
		m, err := f.File.Write(some)
		n += m
		if err != nil {
			return n, err
		}
		p = p[len(some):]
	}
	return n, nil
}

// Preallocate implements Preallocator where the file does.
func (f *throttledFile) Preallocate(bytes int64) error {
	p, ok := f.File.(Preallocator)
	if !ok {
		return errors.ErrUnsupported
	}
	return p.Preallocate(bytes)
}
