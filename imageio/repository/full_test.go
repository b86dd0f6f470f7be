package repository

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"fermata/imageio/object"
	"fermata/protocol/mustrun"
)

// fullDisk is a repository with five checkpoints on a file system of its own, and fill
// takes all the room that it has left.
func fullDisk(t *testing.T) (r *Repository, fill func()) {
	t.Helper()
	mustrun.Need(t, mustrun.FUSE) // for root, who may mount
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=12m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	r = mustCreate(t, realConfig(filepath.Join(dir, "repository")))
	if err := r.KeepReserve(t.Context()); err != nil {
		t.Fatal(err)
	}
	for epoch := uint64(1); epoch <= 5; epoch++ {
		mustCheckpoint(t, r, epoch, map[string][]byte{"a": noise(epoch, 100*object.PageBytes)})
	}
	return r, func() {
		f, err := os.OpenFile(filepath.Join(dir, "filler"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for block := make([]byte, 4096); err == nil; {
			_, err = f.Write(block)
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatal(err)
		}
	}
}

// noise is bytes that no compression makes smaller.
func noise(seed uint64, size int) []byte {
	b := make([]byte, size)
	rng := rand.New(rand.NewPCG(seed, 99))
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

// TestPrune_OnAFullFileSystem: what frees space must not need any.
func TestPrune_OnAFullFileSystem(t *testing.T) {
	ctx := t.Context()
	r, fill := fullDisk(t)
	fill()
	if err := checkpoint(ctx, r, 6, map[string][]byte{"a": noise(6, 100*object.PageBytes)}); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("the file system is not full: %v", err)
	}
	report, err := planAndPrune(ctx, r, PruneOptions{Retention: Retention{Last: 1}, CompactBelow: 0.5})
	if err != nil || report.Deleted != 4 || report.FreedBytes < 4*100*object.PageBytes {
		t.Fatalf("%+v, %v", report, err)
	}
	wantRestore(t, r, 5, map[string][]byte{"a": noise(5, 100*object.PageBytes)})
	// There is room for a checkpoint, and for the next time that there is none.
	mustCheckpoint(t, r, 7, map[string][]byte{"a": noise(7, 100*object.PageBytes)})
	for epoch := uint64(8); epoch < 10; epoch++ {
		if err := errors.Join(os.Remove(filepath.Join(filepath.Dir(r.cfg.Dir), "filler")), r.KeepReserve(ctx)); err != nil {
			t.Fatal(err)
		}
		fill()
		if freed, err := r.Delete(ctx, "web", epoch-1); err != nil || freed < 100*object.PageBytes {
			t.Fatalf("delete on a full file system: %d bytes, %v", freed, err)
		}
		mustCheckpoint(t, r, epoch, map[string][]byte{"a": noise(epoch, 100*object.PageBytes)})
	}
}

// TestPrune_SweepsFirstWithoutAReserve: what a failed round has left behind makes room for
// the tombstones.
func TestPrune_SweepsFirstWithoutAReserve(t *testing.T) {
	ctx := t.Context()
	r, fill := fullDisk(t)
	r.spendReserve()
	if _, err := write(ctx, r, 6, map[string][]byte{"a": noise(6, 50*object.PageBytes)}); err != nil {
		t.Fatal(err)
	}
	if err := r.Abort(ctx, "web", 6, "it failed"); err != nil {
		t.Fatal(err)
	}
	fill()
	report, err := planAndPrune(ctx, r, PruneOptions{Retention: Retention{Last: 1}})
	if err != nil || report.Deleted != 4 {
		t.Fatalf("%+v, %v", report, err)
	}
}
