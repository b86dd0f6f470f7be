package repository

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"syscall"
	"testing"

	"fermata/imageio/manifest"
	"fermata/imageio/pack"
	"fermata/imageio/vfs"
)

// damagedEpochs lists the checkpoints that are not intact.
func damagedEpochs(t testing.TB, r *Repository) (epochs []uint64) {
	t.Helper()
	entries, err := r.Checkpoints(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !e.Intact() {
			epochs = append(epochs, e.Epoch)
		}
	}
	return epochs
}

// newPackOf is a pack with pages that the first checkpoint does not need.
func newPackOf(t testing.TB, r *Repository, m *manifest.Manifest) pack.ID {
	t.Helper()
	first, err := r.Manifest(t.Context(), m.Cluster, 1)
	if err != nil {
		t.Fatal(err)
	}
	m = &manifest.Manifest{Packs: slices.DeleteFunc(slices.Clone(m.Packs), func(id string) bool { return slices.Contains(first.Packs, id) })}
	return packWithPages(t, r, m)
}

// TestVerify_RecordsWhatItFinds: damage that one verification has found is known to all
// that name a checkpoint, in other processes and for other checkpoints, until it is gone.
func TestVerify_RecordsWhatItFinds(t *testing.T) {
	for _, encryption := range []string{"plain", "encrypted"} {
		t.Run(encryption, func(t *testing.T) {
			ctx := t.Context()
			fsys := newCrashFS(t, 1)
			cfg := smallConfig(fsys)
			if encryption == "encrypted" {
				cfg.Key = testKey(t, 1)
			}
			r := mustCreate(t, cfg)
			fiveGenerations(t, r)
			if got := damagedEpochs(t, r); got != nil {
				t.Fatalf("damaged: %v", got)
			}
			m, err := r.Manifest(ctx, "web", 3)
			if err != nil {
				t.Fatal(err)
			}
			first := newPackOf(t, r, m)
			spoil(t, r, fsys, first)
			if rep, err := r.Verify(ctx, m, VerifyOptions{}); err != nil || len(rep.Damage) == 0 || rep.Unrecorded != "" {
				t.Fatalf("%+v, %v", rep, err)
			}
			// Those that do not restore are recorded, although one of them was verified.
			var want []uint64
			for epoch := uint64(1); epoch <= 5; epoch++ {
				if _, err := restore(ctx, r, epoch); err != nil {
					want = append(want, epoch)
				}
			}
			if len(want) < 2 || len(want) > 4 {
				t.Fatalf("%v do not restore: the test shows little", want)
			}
			other := mustOpen(t, cfg, 5)
			if got := damagedEpochs(t, other); !slices.Equal(got, want) {
				t.Fatalf("recorded as damaged: %v, do not restore: %v", got, want)
			}
			k, err := other.KnownDamage(ctx, "web", 3)
			if err != nil || k == nil || len(k.Damage[0].Guests) == 0 || !strings.Contains(k.String(), first.String()) || !strings.Contains(k.String(), "guests ") {
				t.Fatalf("%v, %v", k, err)
			}
			// A check that reads little neither forgets it nor hides it.
			rep := mustCheck(t, other, CheckOptions{})
			if len(rep.Damage) != 1 || len(rep.Damage[0].Hits) != len(want) || !strings.Contains(rep.Damage[0].Reason, "not read again") {
				t.Fatalf("%+v", rep)
			}
			mustCheck(t, other, CheckOptions{ReadData: true, Part: 1, Parts: 2})
			mustCheck(t, other, CheckOptions{ReadData: true, Part: 2, Parts: 2})
			if got := damagedEpochs(t, other); !slices.Equal(got, want) {
				t.Fatalf("damaged: %v, want %v", got, want)
			}
			// The disk is back, and one that reads everything says so.
			spoil(t, r, fsys, first)
			if rep := mustCheck(t, other, CheckOptions{ReadData: true}); len(rep.Damage) != 0 || rep.Unrecorded != "" {
				t.Fatalf("%+v", rep)
			}
			if got := damagedEpochs(t, r); got != nil {
				t.Fatalf("damaged: %v", got)
			}
		})
	}
}

// TestRepair_ClearsTheRecord: what was repaired is intact.
func TestRepair_ClearsTheRecord(t *testing.T) {
	fsys := newCrashFS(t, 1)
	r := mustCreate(t, smallConfig(fsys))
	m := mustCheckpoint(t, r, 1, guestImages(1))
	spoil(t, r, fsys, packWithPages(t, r, m))
	mustCheck(t, r, CheckOptions{ReadData: true})
	if got := damagedEpochs(t, r); !slices.Equal(got, []uint64{1}) {
		t.Fatalf("damaged: %v", got)
	}
	mustCheckpoint(t, r, 2, guestImages(1)) // stores the pages again
	if rep, err := r.Repair(t.Context(), func(int, int) {}); err != nil || len(rep.Repaired) != 1 {
		t.Fatalf("%+v, %v", rep, err)
	}
	if got := damagedEpochs(t, r); got != nil {
		t.Fatalf("damaged: %v", got)
	}
}

// TestPrune_KeepsTheOnlyIntactOne: damage in the newest checkpoint must not cost the good
// ones before it.
func TestPrune_KeepsTheOnlyIntactOne(t *testing.T) {
	ctx := t.Context()
	fsys := newCrashFS(t, 1)
	r := mustCreate(t, smallConfig(fsys))
	mustCheckpoint(t, r, 1, guestImages(1))
	mustCheckpoint(t, r, 2, guestImages(2))
	before, err := r.Manifest(ctx, "web", 2)
	if err != nil {
		t.Fatal(err)
	}
	m := mustCheckpoint(t, r, 3, guestImages(4))
	for _, id := range packIDs(t, m) {
		if !slices.Contains(before.Packs, id.String()) { // of the newest alone
			spoil(t, r, fsys, id)
		}
	}
	if _, err := r.Verify(ctx, m, VerifyOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := planAndPrune(ctx, r, PruneOptions{Retention: Retention{Last: 1}}); err != nil {
		t.Fatal(err)
	}
	wantOutcome(t, r, 1, OutcomeDeleted)
	wantOutcome(t, r, 3, OutcomeCommitted)
	wantRestore(t, r, 2, guestImages(2))
	// A record goes with its checkpoint.
	if _, err := r.Delete(ctx, "web", 3); err != nil {
		t.Fatal(err)
	}
	if _, err := fsys.Stat(r.damageRecordPath(epochKey{"web", 3})); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("the record of a deleted checkpoint: %v", err)
	}
}

// sealedFS is a file system on which nothing can be written.
type sealedFS struct{ vfs.FS }

func (sealedFS) Create(name string) (vfs.File, error) {
	return nil, fmt.Errorf("create %s: %w", name, syscall.EROFS)
}

// TestVerify_ReportsWhatItCannotRecord: a file system that can only be read hides no
// damage.
func TestVerify_ReportsWhatItCannotRecord(t *testing.T) {
	fsys := newCrashFS(t, 1)
	m := mustCheckpoint(t, mustCreate(t, smallConfig(fsys)), 1, guestImages(1))
	cfg := smallConfig(sealedFS{fsys})
	r := mustOpen(t, cfg, 3)
	spoil(t, r, fsys, packWithPages(t, r, m))
	rep, err := r.Verify(t.Context(), m, VerifyOptions{})
	if err != nil || len(rep.Damage) == 0 || !strings.Contains(rep.Unrecorded, "read-only") {
		t.Fatalf("%+v, %v", rep, err)
	}
	if rep := mustCheck(t, r, CheckOptions{ReadData: true}); len(rep.Damage) == 0 || !strings.Contains(rep.Unrecorded, "read-only") {
		t.Fatalf("%+v", rep)
	}
}

// TestKnownDamage_OfATornRecord: a record that cannot be understood hides nothing, and a
// verification puts it right.
func TestKnownDamage_OfATornRecord(t *testing.T) {
	ctx := t.Context()
	fsys := newCrashFS(t, 1)
	r := mustCreate(t, smallConfig(fsys))
	m := mustCheckpoint(t, r, 1, guestImages(1))
	if err := vfs.WriteFile(fsys, r.damageRecordPath(epochKey{"web", 1}), []byte("torn")); err != nil {
		t.Fatal(err)
	}
	k, err := r.KnownDamage(ctx, "web", 1)
	if err != nil || k == nil || !strings.Contains(k.String(), "the whole checkpoint") {
		t.Fatalf("%v, %v", k, err)
	}
	if _, err := r.Verify(ctx, m, VerifyOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := damagedEpochs(t, r); got != nil {
		t.Fatalf("damaged: %v", got)
	}
}

// TestCheck_SameInputSameReport: neither the order in which trailers arrive nor how often
// somebody looks changes what is said to cost what, and what is known is not written again.
func TestCheck_SameInputSameReport(t *testing.T) {
	fsys := newCrashFS(t, 1)
	cfg := smallConfig(fsys)
	cfg.Compression = "none"
	r := mustCreate(t, cfg)
	ids := packIDs(t, mustCheckpoint(t, r, 1, guestImages(1)))
	spoil(t, r, fsys, ids[0])
	if err := fsys.Remove(r.packPath(ids[len(ids)-1])); err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("%+v", mustCheck(t, r, CheckOptions{ReadData: true}))
	fsys.ResetLog()
	for range 40 {
		if got := fmt.Sprintf("%+v", mustCheck(t, r, CheckOptions{ReadData: true})); got != want {
			t.Fatalf("first %s\nthen %s", want, got)
		}
	}
	if log := fsys.Log(); strings.Contains(log, damageSuffix) {
		t.Errorf("written again: %s", log)
	}
}

func FuzzDecodeDamage(f *testing.F) {
	f.Add([]byte(`{"cluster":"web","epoch":1,"found_unix_ns":1,"damage":[{"object":"pack a","reason":"wrong hash","guests":["a"]}]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		data, err := damageKind().Encode(body)
		if err != nil {
			return
		}
		k, err := decodeDamage(epochKey{"web", 1}, data)
		if err != nil && !errors.Is(err, ErrCorrupt) {
			t.Fatal(err)
		}
		if err == nil && k.String() == "" {
			t.Fatal("damage without a word")
		}
	})
}
