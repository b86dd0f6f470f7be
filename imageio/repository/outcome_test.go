package repository

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"fermata/imageio/manifest"
	"fermata/imageio/vfs"
)

func TestCommit_AgainIsSuccess(t *testing.T) {
	fsys := newCrashFS(t, 1)
	r := mustCreate(t, smallConfig(fsys))
	m := mustCheckpoint(t, r, 1, guestImages(1))
	if err := r.Commit(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	if err := mustOpen(t, smallConfig(fsys), 2).Commit(t.Context(), m); err != nil {
		t.Fatalf("by another process: %v", err)
	}
}

// TestOutcome_FirstStands is R1: whatever comes second fails and is told what
// stands.
func TestOutcome_FirstStands(t *testing.T) {
	ctx := t.Context()
	fsys := newCrashFS(t, 1)
	r := mustCreate(t, smallConfig(fsys))
	m, err := write(ctx, r, 1, guestImages(1))
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Commit(ctx, m); err != nil {
		t.Fatal(err)
	}
	wantDecided := func(err error, stands Outcome) {
		t.Helper()
		var d *DecidedError
		if !errors.Is(err, ErrOutcomeDecided) || !errors.As(err, &d) || d.Outcome != stands {
			t.Fatalf("got %v, want that it is %s", err, stands)
		}
	}
	wantDecided(r.Abort(ctx, "web", 1, "late"), OutcomeCommitted)
	other := *m
	other.Label = "another"
	wantDecided(r.Commit(ctx, &other), OutcomeCommitted)

	if err := r.Abort(ctx, "web", 2, "first"); err != nil {
		t.Fatal(err)
	}
	if err := r.Abort(ctx, "web", 2, "second"); err != nil {
		t.Fatalf("abort again: %v", err)
	}
	late := *m
	late.Epoch = 2
	wantDecided(r.Commit(ctx, &late), OutcomeAborted)

	if _, err := r.Delete(ctx, "web", 1); err != nil {
		t.Fatal(err)
	}
	wantDecided(r.Abort(ctx, "web", 1, "late"), OutcomeDeleted)
	wantDecided(r.Commit(ctx, m), OutcomeDeleted)
}

// TestOutcome_RaceHasOneWinner lets many coordinators, deposed or not, decide
// one epoch on a real file system.
func TestOutcome_RaceHasOneWinner(t *testing.T) {
	dir := t.TempDir() + "/repo"
	cfg := Config{Dir: dir, FS: vfs.OS{}}
	r := mustCreate(t, cfg)
	for epoch := uint64(1); epoch <= 8; epoch++ {
		const racers = 8
		errs := make([]error, racers)
		var wg sync.WaitGroup
		for i := range racers {
			wg.Go(func() {
				other, err := Open(t.Context(), cfg)
				if err != nil {
					errs[i] = err
					return
				}
				if i%4 == 0 {
					errs[i] = other.Abort(t.Context(), "web", epoch, "")
				} else {
					errs[i] = other.Commit(t.Context(), &manifest.Manifest{Cluster: "web", Epoch: epoch, FenceToken: uint64(i)})
				}
			})
		}
		wg.Wait()
		outcome, err := r.Outcome(t.Context(), "web", epoch)
		if err != nil {
			t.Fatal(err)
		}
		winners := 0
		for i, err := range errs {
			switch {
			case err == nil:
				winners++
				if (i%4 == 0) != (outcome == OutcomeAborted) {
					t.Fatalf("epoch %d is %s, but racer %d was told it won", epoch, outcome, i)
				}
			case !errors.Is(err, ErrOutcomeDecided):
				t.Fatal(err)
			}
		}
		if outcome == OutcomeCommitted && winners != 1 || outcome == OutcomeAborted && winners == 0 {
			t.Fatalf("epoch %d is %s with %d winners", epoch, outcome, winners)
		}
	}
}

func TestCommit_RefusesMissingPack(t *testing.T) {
	r := mustCreate(t, smallConfig(newCrashFS(t, 1)))
	m := &manifest.Manifest{Cluster: "web", Epoch: 1, Packs: []string{strings.Repeat("ab", 16)}}
	if err := r.Commit(t.Context(), m); !errors.Is(err, ErrPackMissing) {
		t.Fatal(err)
	}
	wantOutcome(t, r, 1, OutcomeNone)
}

func TestNames_NoPathTricks(t *testing.T) {
	ctx := t.Context()
	fsys := newCrashFS(t, 1)
	r := mustCreate(t, smallConfig(fsys))
	before := strings.Join(allFiles(t, fsys, "/"), "\n")
	for _, bad := range []string{"", "..", "../x", "a/b", "A", "a.b", "ä", "a\x00", strings.Repeat("a", 64)} {
		_, wErr := r.NewWriter(WriterConfig{Cluster: bad, Epoch: 1, Node: "n"})
		_, oErr := r.Outcome(ctx, bad, 1)
		_, cErr := r.Checkpoints(ctx, bad)
		_, lErr := r.LastEpoch(ctx, bad)
		_, mErr := r.Manifest(ctx, bad, 1)
		_, dErr := r.Delete(ctx, bad, 1)
		for i, err := range []error{
			wErr, oErr, cErr, lErr, mErr, dErr, r.Abort(ctx, bad, 1, ""),
			r.Commit(ctx, &manifest.Manifest{Cluster: bad, Epoch: 1}),
		} {
			if err == nil {
				t.Errorf("call %d took the cluster %q", i, bad)
			}
		}
	}
	if after := strings.Join(allFiles(t, fsys, "/"), "\n"); after != before {
		t.Fatalf("files have changed:\n%s", after)
	}
}

func TestList_OldestFirstWithoutTombstones(t *testing.T) {
	ctx := t.Context()
	fsys := newCrashFS(t, 1)
	r := mustCreate(t, smallConfig(fsys))
	if last, err := r.LastEpoch(ctx, "web"); err != nil || last != 0 {
		t.Fatalf("last epoch of nothing: %d, %v", last, err)
	}
	for _, epoch := range []uint64{10, 2, 9} {
		mustCheckpoint(t, r, epoch, guestImages(int(epoch)))
	}
	if err := r.Abort(ctx, "web", 11, "x"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Delete(ctx, "web", 9); err != nil {
		t.Fatal(err)
	}
	if err := r.Abort(ctx, "db", 1, "x"); err != nil {
		t.Fatal(err)
	}
	entries, err := r.Checkpoints(ctx, "web")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range entries {
		got = append(got, fmt.Sprintf("%d/%d", e.Epoch, e.Manifest.Epoch))
	}
	if fmt.Sprint(got) != "[2/2 10/10]" {
		t.Fatalf("checkpoints: %v", got)
	}
	if last, err := r.LastEpoch(ctx, "web"); err != nil || last != 11 {
		t.Fatalf("last epoch %d, %v", last, err)
	}
	if clusters, err := r.Clusters(ctx); err != nil || fmt.Sprint(clusters) != "[db web]" {
		t.Fatalf("clusters %v, %v", clusters, err)
	}
	if _, err := r.Manifest(ctx, "web", 9); !errors.Is(err, ErrNotFound) {
		t.Fatal(err)
	}
	if _, err := r.Delete(ctx, "web", 77); !errors.Is(err, ErrNotFound) {
		t.Fatal(err)
	}
	if _, err := r.Delete(ctx, "web", 11); !errors.Is(err, ErrNotFound) {
		t.Fatal(err)
	}
}
