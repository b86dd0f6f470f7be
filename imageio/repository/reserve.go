package repository

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"
)

// reserveBytes is what the reserve holds: room for some dozens of tombstones and whatever
// directories grow by, also where blocks are large.
const reserveBytes = 1 << 20

func (r *Repository) reservePath() string { return filepath.Join(r.cfg.Dir, reserveName) }

// KeepReserve makes sure that the repository has its reserve: a file of no meaning, which
// is given up when the file system is full, because deleting needs some room, too.
func (r *Repository) KeepReserve(context.Context) error {
	if _, err := r.fs.Stat(r.reservePath()); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	temp := r.reservePath() + tempSuffix
	if err := r.fs.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) { // of one who was killed
		return fmt.Errorf("keep a reserve: %w", err)
	}
	data := make([]byte, reserveBytes)
	_, _ = rand.Read(data) // never fails; a file system that compresses must not save the room
	err := r.writeNamed(temp, r.reservePath(), data)
	if errors.Is(err, fs.ErrExist) || errors.Is(err, fs.ErrNotExist) {
		return nil // another process makes it
	}
	if err != nil {
		return fmt.Errorf("keep a reserve: %w", err)
	}
	return nil
}

// spendReserve gives the reserve up and reports whether that made room.
func (r *Repository) spendReserve() bool {
	return r.fs.Remove(r.reservePath()) == nil && r.fs.SyncDir(r.cfg.Dir) == nil
}

// isFull reports whether a file system has no room, or the user none left of it.
func isFull(err error) bool { return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) }

// buryFull is bury where there may be no room for a tombstone: it spends the reserve, and
// sweeps, before it gives up. swept gets what that sweep did.
func (r *Repository) buryFull(ctx context.Context, e epochKey, swept func(SweepReport)) error {
	err := r.bury(ctx, e)
	if isFull(err) && r.spendReserve() {
		err = r.bury(ctx, e)
	}
	if !isFull(err) {
		return err
	}
	report, serr := r.Sweep(ctx) // what aborted rounds and earlier deletions have left
	swept(report)
	if serr != nil {
		return errors.Join(err, serr)
	}
	return r.bury(ctx, e)
}
