package repository

import (
	"errors"
	"strings"
	"syscall"
	"testing"

	"fermata/imageio/object"
	"fermata/imageio/pack"
	"fermata/imageio/vfs/crashfs"
)

// forge replaces a pack by one in which every record is right but the bytes of
// one page are not those of its id, as a writer with bad memory would leave it.
func forge(t *testing.T, r *Repository, fsys *crashfs.FS, id pack.ID) (page object.ID) {
	t.Helper()
	path := r.packPath(id)
	tr, err := pack.ReadTrailer(fsys, path, id, nil)
	if err != nil {
		t.Fatal(err)
	}
	f, err := fsys.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	enc, err := pack.NewEncoder(pack.Raw, 1)
	if err != nil {
		t.Fatal(err)
	}
	w, err := pack.Create(fsys, path+".forged", path, tr.Header, pack.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, run := range tr.Runs {
		stored, err := pack.ReadRun(f, run, nil)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := new(pack.Decoder).Decode(nil, run, stored)
		if err != nil {
			t.Fatal(err)
		}
		objects := tr.Objects[run.First : run.First+run.Count]
		for _, o := range objects {
			if o.Kind == object.KindPage && page.IsZero() {
				page = o.ID
				raw[o.Offset+9] ^= 1
			}
		}
		forged, err := enc.Encode(nil, raw)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Append(forged, objects); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Finalise(); err != nil {
		t.Fatal(err)
	}
	return page
}

// TestRead_TrustsNothingButHashes is R4: checksums that fit do not help a page
// whose hash does not.
func TestRead_TrustsNothingButHashes(t *testing.T) {
	ctx := t.Context()
	fsys := newCrashFS(t, 1)
	r := mustCreate(t, smallConfig(fsys))
	m := mustCheckpoint(t, r, 1, guestImages(1))
	page := forge(t, r, fsys, packIDs(t, m)[0])
	var d *CorruptError
	if _, err := restore(ctx, r, 1); !errors.As(err, &d) || !strings.Contains(d.Object, page.String()) {
		t.Fatalf("a forged page: %v", err)
	}
	rep, err := r.Verify(ctx, m, VerifyOptions{})
	if err != nil || len(rep.Damage) != 1 || !strings.Contains(rep.Damage[0].Object, page.String()) || len(rep.Damage[0].Guests) == 0 {
		t.Fatalf("%+v, %v", rep, err)
	}
}

// TestOutcome_ToldIsDurable: the commit's link was made, its directory not yet
// synced. Whoever is told of the outcome now must not lose it.
func TestOutcome_ToldIsDurable(t *testing.T) {
	for seed := range uint64(20) {
		fsys := newCrashFS(t, seed)
		r := mustCreate(t, smallConfig(fsys))
		mustCheckpoint(t, r, 1, guestImages(1))
		m, err := write(t.Context(), r, 2, guestImages(2))
		if err != nil {
			t.Fatal(err)
		}
		linked := false
		fsys.Inject(func(op crashfs.Op) error {
			linked = linked || op.Kind == "link"
			if linked && op.Kind == "syncdir" {
				return syscall.EIO
			}
			return nil
		})
		if err := r.Commit(t.Context(), m); !errors.Is(err, syscall.EIO) {
			t.Fatal(err)
		}
		fsys.Inject(nil)
		wantOutcome(t, r, 2, OutcomeCommitted)
		after := mustOpen(t, smallConfig(fsys.Reboot()), 2)
		wantOutcome(t, after, 2, OutcomeCommitted)
		wantRestore(t, after, 2, guestImages(2))
	}
}
