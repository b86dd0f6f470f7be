package repository

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"

	"fermata/imageio/vfs"
	"fermata/imageio/vfs/crashfs"
)

// crashSeeds is how many different losses each crash point is tried with; the
// file system picks strict, lucky and random ones.
const crashSeeds = 4

// crashCase cuts the power after each changing operation of do, on a
// repository that prepare made, and hands what is left to check.
func crashCase(t *testing.T, prepare func(*Repository), do func(context.Context, *Repository) error,
	check func(t *testing.T, r *Repository, fsys *crashfs.FS, done bool),
) {
	t.Helper()
	run := func(seed uint64, crashAt int) (fsys *crashfs.FS, ops int, err error) {
		fsys = newCrashFS(t, seed)
		r := mustCreate(t, crashConfig(t, fsys, seed))
		prepare(r)
		before := fsys.Ops()
		fsys.ResetLog()
		if crashAt >= 0 {
			fsys.CrashAfter(crashAt)
		}
		err = do(t.Context(), r)
		return fsys, fsys.Ops() - before, err
	}
	var totals [2]int // without and with a key, which makes packs longer
	for seed := range totals {
		var err error
		if _, totals[seed], err = run(uint64(seed), -1); err != nil {
			t.Fatal(err)
		}
		if totals[seed] < 3 {
			t.Fatalf("%d operations prove nothing", totals[seed])
		}
	}
	for k := range max(totals[0], totals[1]) + 1 {
		for seed := range uint64(crashSeeds) {
			total := totals[seed%2]
			if k > total {
				continue
			}
			ok := t.Run(fmt.Sprintf("op%03d-seed%d", k, seed), func(t *testing.T) {
				fsys, _, err := run(seed, k)
				if k < total && err == nil && !fsys.Crashed() {
					t.Fatalf("no crash at operation %d of %d", k, total)
				}
				log := fsys.Log()
				after := fsys.Reboot()
				defer func() {
					if t.Failed() {
						t.Logf("operations:\n%s", log)
					}
				}()
				check(t, mustOpen(t, crashConfig(t, after, seed), 9), after, err == nil)
			})
			if !ok {
				return // the first failure says enough
			}
		}
	}
}

// crashConfig has a key for every second seed.
func crashConfig(t testing.TB, fsys vfs.FS, seed uint64) Config {
	if seed%2 == 1 {
		return encrypted(t, smallConfig(fsys), 1)
	}
	return smallConfig(fsys)
}

func prepareOne(t *testing.T) func(*Repository) {
	return func(r *Repository) { mustCheckpoint(t, r, 1, guestImages(1)) }
}

func TestCommit_CrashAnywhere(t *testing.T) {
	crashCase(t, prepareOne(t),
		func(ctx context.Context, r *Repository) error { return checkpoint(ctx, r, 2, guestImages(2)) },
		func(t *testing.T, r *Repository, fsys *crashfs.FS, done bool) {
			wantRestore(t, r, 1, guestImages(1))
			outcome, err := r.Outcome(t.Context(), "web", 2)
			if err != nil {
				t.Fatal(err)
			}
			switch outcome {
			case OutcomeCommitted:
				wantRestore(t, r, 2, guestImages(2))
			case OutcomeNone:
				if done {
					t.Fatal("the commit was told and is gone")
				}
				if err := r.Abort(t.Context(), "web", 2, "crash"); err != nil {
					t.Fatal(err)
				}
			default:
				t.Fatalf("outcome %s", outcome)
			}
			mustCheckpoint(t, r, 3, guestImages(3))
			if _, err := r.Sweep(t.Context()); err != nil {
				t.Fatal(err)
			}
			wantRestore(t, r, 1, guestImages(1))
			wantRestore(t, r, 3, guestImages(3))
			wantOnlyLiveFiles(t, r, fsys)
		})
}

func TestAbort_CrashAnywhere(t *testing.T) {
	crashCase(t,
		func(r *Repository) {
			mustCheckpoint(t, r, 1, guestImages(1))
			if _, err := write(t.Context(), r, 2, guestImages(2)); err != nil {
				t.Fatal(err)
			}
		},
		func(ctx context.Context, r *Repository) error {
			if err := r.Abort(ctx, "web", 2, "n2 is silent"); err != nil {
				return err
			}
			_, err := r.Sweep(ctx)
			return err
		},
		func(t *testing.T, r *Repository, fsys *crashfs.FS, done bool) {
			wantRestore(t, r, 1, guestImages(1))
			outcome, err := r.Outcome(t.Context(), "web", 2)
			if err != nil || outcome != OutcomeAborted && (done || outcome != OutcomeNone) {
				t.Fatalf("outcome %s, %v", outcome, err)
			}
			if err := r.Abort(t.Context(), "web", 2, "again"); err != nil {
				t.Fatal(err)
			}
			if _, err := r.Sweep(t.Context()); err != nil {
				t.Fatal(err)
			}
			wantRestore(t, r, 1, guestImages(1))
			wantOnlyLiveFiles(t, r, fsys)
		})
}

func TestDelete_CrashAnywhere(t *testing.T) {
	crashCase(t,
		func(r *Repository) {
			mustCheckpoint(t, r, 1, guestImages(1))
			mustCheckpoint(t, r, 2, guestImages(2))
		},
		func(ctx context.Context, r *Repository) error {
			_, err := r.Delete(ctx, "web", 1)
			return err
		},
		func(t *testing.T, r *Repository, fsys *crashfs.FS, done bool) {
			wantRestore(t, r, 2, guestImages(2))
			outcome, err := r.Outcome(t.Context(), "web", 1)
			if err != nil {
				t.Fatal(err)
			}
			switch {
			case outcome == OutcomeCommitted && !done:
				wantRestore(t, r, 1, guestImages(1))
			case outcome != OutcomeDeleted:
				t.Fatalf("outcome %s", outcome)
			}
			if _, err := r.Delete(t.Context(), "web", 1); err != nil {
				t.Fatal(err)
			}
			wantOutcome(t, r, 1, OutcomeDeleted)
			wantRestore(t, r, 2, guestImages(2))
			wantOnlyLiveFiles(t, r, fsys)
		})
}

// TestSweep_CrashAnywhereKeepsWhatIsClaimed kills sweeps while a round that
// relies on packs of a deleted checkpoint waits for its outcome.
func TestSweep_CrashAnywhereKeepsWhatIsClaimed(t *testing.T) {
	crashCase(t,
		func(r *Repository) {
			mustCheckpoint(t, r, 1, guestImages(1))
			if _, err := write(t.Context(), r, 2, guestImages(2)); err != nil {
				t.Fatal(err)
			}
		},
		func(ctx context.Context, r *Repository) error {
			_, err := r.Delete(ctx, "web", 1)
			return err
		},
		func(t *testing.T, r *Repository, fsys *crashfs.FS, _ bool) {
			// The manifest that the first process would have committed.
			m, err := write(t.Context(), r, 2, guestImages(2))
			if err != nil {
				t.Fatal(err)
			}
			if m.Stats.StoredBytes != 0 {
				t.Fatalf("%d bytes of claimed packs were lost", m.Stats.StoredBytes)
			}
			if err := r.Commit(t.Context(), m); err != nil {
				t.Fatal(err)
			}
			if _, err := r.Delete(t.Context(), "web", 1); err != nil {
				t.Fatal(err)
			}
			wantRestore(t, r, 2, guestImages(2))
			wantOnlyLiveFiles(t, r, fsys)
		})
}

func TestCreate_CrashAnywhere(t *testing.T) {
	// Creation makes 256 directories; a crash amid them is a crash before the
	// record, so only the first and last operations are tried.
	fsys := newCrashFS(t, 1)
	mustCreate(t, crashConfig(t, fsys, 1))
	total := fsys.Ops()
	for k := total - 15; k <= total; k++ {
		for seed := range uint64(crashSeeds) {
			fsys := newCrashFS(t, seed)
			fsys.CrashAfter(k)
			_, err := Create(t.Context(), crashConfig(t, fsys, seed))
			after := fsys.Reboot()
			_, openErr := Open(t.Context(), crashConfig(t, after, seed))
			if openErr != nil && (err == nil || !errors.Is(openErr, ErrNotRepository)) {
				t.Fatalf("crash at %d of %d: create %v, open %v", k, total, err, openErr)
			}
			if openErr != nil {
				cfg := crashConfig(t, after, seed)
				cfg.Random = rand.NewChaCha8([32]byte{3}) // another process, other names
				mustCreate(t, cfg)
			}
			mustCheckpoint(t, mustOpen(t, crashConfig(t, after, seed), 2), 1, guestImages(1))
		}
	}
}

// TestFullDisk_HarmsNothing fills the disk at every operation of a checkpoint.
func TestFullDisk_HarmsNothing(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.ENOSPC, syscall.EIO} {
		for k := 0; ; k++ {
			fsys := newCrashFS(t, 1)
			r := mustCreate(t, smallConfig(fsys))
			mustCheckpoint(t, r, 1, guestImages(1))
			before := fsys.Ops()
			fsys.FailAt(k, errno)
			err := checkpoint(t.Context(), r, 2, guestImages(2))
			reached := fsys.Ops()-before > k
			fsys.Inject(nil)
			if err != nil && !errors.Is(err, errno) {
				t.Fatalf("operation %d: %v does not say %v", k, err, errno)
			}
			wantRestore(t, r, 1, guestImages(1))
			outcome, oerr := r.Outcome(t.Context(), "web", 2)
			if oerr != nil || err == nil && outcome != OutcomeCommitted {
				t.Fatalf("operation %d: outcome %s, %v", k, outcome, oerr)
			}
			if outcome == OutcomeNone {
				if err := r.Abort(t.Context(), "web", 2, "disk is full"); err != nil {
					t.Fatal(err)
				}
			}
			mustCheckpoint(t, r, 3, guestImages(3))
			if _, err := r.Sweep(t.Context()); err != nil {
				t.Fatal(err)
			}
			wantRestore(t, r, 1, guestImages(1))
			wantRestore(t, r, 3, guestImages(3))
			wantOnlyLiveFiles(t, r, fsys)
			if !reached {
				break
			}
		}
	}
}
