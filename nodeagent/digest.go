package nodeagent

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"fermata/nodeagent/journal"
	"fermata/protocol/fault"
)

// digestPiece is how much of a file is read at a time: some milliseconds of work, after
// which others have their turn.
const digestPiece = 4 << 20

// settledAfter is how old the last change of a file must be for its digest to be remembered:
// a later write within the clock's tick would leave the same times (a few milliseconds,
// current_time in fs/inode.c; network file systems count in seconds).
const settledAfter = 2 * time.Second

// digests knows the contents of files by their SHA-256. It reads a file once and
// remembers it, also across restarts of the agent, by what changes with every write: device,
// inode, size and the times of the last change. One file is read at a time.
//
// Concurrency: safe for use by several goroutines.
type digests struct {
	journal *journal.Journal
	reading chan struct{}                 // a lock that a context can give up waiting for
	pace    func(work func() error) error // does a piece of work when others leave room for it
	settled time.Duration                 // settledAfter, but for tests
}

func newDigests(j *journal.Journal, pace func(func() error) error) *digests {
	return &digests{journal: j, reading: make(chan struct{}, 1), pace: pace, settled: settledAfter}
}

// of returns the digest of an open file, and what it was taken of. On error (busy) the file
// was being written to.
func (d *digests) of(ctx context.Context, f *os.File) (journal.Digest, error) {
	select {
	case d.reading <- struct{}{}:
		defer func() { <-d.reading }()
	case <-ctx.Done():
		return journal.Digest{}, fmt.Errorf("wait to read %s: %w", f.Name(), context.Cause(ctx))
	}
	is, err := statDigest(f)
	if err != nil {
		return is, err
	}
	was, err := d.journal.Digest(is.Device, is.Inode)
	if err != nil {
		return is, err
	}
	if is.SHA256 = was.SHA256; is == was {
		return is, nil
	}
	begun := time.Now()
	if is.SHA256, err = d.read(ctx, f); err != nil {
		return is, fmt.Errorf("read %s: %w", f.Name(), err)
	}
	again, err := statDigest(f)
	if again.SHA256 = is.SHA256; err == nil && again != is {
		err = fault.New(fault.Busy, "%s was written to while it was read", f.Name())
	}
	if err != nil {
		return is, err
	}
	if begun.Sub(time.Unix(0, max(is.ModifiedNS, is.ChangedNS))) < d.settled {
		return is, nil
	}
	return is, d.journal.PutDigest(is)
}

func (d *digests) read(ctx context.Context, f *os.File) (string, error) {
	h, buf := sha256.New(), make([]byte, digestPiece)
	for offset := int64(0); ; {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		var n int
		err := d.pace(func() (err error) {
			n, err = f.ReadAt(buf, offset)
			h.Write(buf[:n])
			return err
		})
		offset += int64(n)
		if errors.Is(err, io.EOF) {
			return fmt.Sprintf("%x", h.Sum(nil)), nil
		}
		if err != nil {
			return "", err
		}
	}
}

// beside does a piece of work that guests run beside and nobody waits for.
func (a *Agent) beside(work func() error) error {
	return a.pacer.do(func() bool { return false }, work)
}

// statDigest is a digest without the digest: what a file is known by.
func statDigest(f *os.File) (d journal.Digest, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return d, err
	}
	var st unix.Stat_t
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = unix.Fstat(int(fd), &st) }); err != nil {
		return d, err
	}
	if inner != nil {
		return d, &os.PathError{Op: "stat", Path: f.Name(), Err: inner}
	}
	return journal.Digest{
		Device: st.Dev, Inode: st.Ino, Size: st.Size, ModifiedNS: st.Mtim.Nano(), ChangedNS: st.Ctim.Nano(),
	}, nil
}
