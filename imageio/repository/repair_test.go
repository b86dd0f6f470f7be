package repository

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"fermata/imageio/manifest"
	"fermata/imageio/object"
	"fermata/imageio/pack"
	"fermata/imageio/vfs/crashfs"
)

func mustCheck(t testing.TB, r *Repository, opt CheckOptions) CheckReport {
	t.Helper()
	report, err := r.Check(t.Context(), opt)
	if err != nil {
		t.Fatal(err)
	}
	return report
}

// spoil flips a byte of the first page in a pack, or of a node if it has no page.
func spoil(t testing.TB, r *Repository, fsys *crashfs.FS, id pack.ID) {
	t.Helper()
	tr, err := pack.ReadTrailer(fsys, r.packPath(id), id, r.domain)
	if err != nil {
		t.Fatal(err)
	}
	at := max(0, slices.IndexFunc(tr.Objects, isPage))
	if err := fsys.FlipByte(r.packPath(id), tr.Runs[tr.Objects[at].Run].Offset+3, 0x10); err != nil {
		t.Fatal(err)
	}
}

func isPage(o pack.Object) bool { return o.Kind == object.KindPage }

// packWithPages is a pack of a checkpoint.
func packWithPages(t testing.TB, r *Repository, m *manifest.Manifest) pack.ID {
	t.Helper()
	for _, id := range packIDs(t, m) {
		tr, err := pack.ReadTrailer(r.fs, r.packPath(id), id, r.domain)
		if err != nil {
			t.Fatal(err)
		}
		if slices.ContainsFunc(tr.Objects, isPage) {
			return id
		}
	}
	t.Fatal("no pages")
	return pack.ID{}
}

func TestCheck_FindsAndAttributes(t *testing.T) {
	ctx := t.Context()
	fsys := newCrashFS(t, 1)
	r := mustCreate(t, smallConfig(fsys))
	fiveGenerations(t, r)
	whole := mustCheck(t, r, CheckOptions{ReadData: true})
	if len(whole.Damage) != 0 || whole.Checkpoints != 5 || whole.ReadPacks != whole.Packs || whole.Bytes == 0 {
		t.Fatalf("%+v", whole)
	}
	parts := 0
	for part := 1; part <= 3; part++ {
		parts += mustCheck(t, r, CheckOptions{ReadData: true, Part: part, Parts: 3}).ReadPacks
	}
	if parts != whole.Packs {
		t.Fatalf("three parts read %d packs of %d", parts, whole.Packs)
	}

	m, err := r.Manifest(ctx, "web", 3)
	if err != nil {
		t.Fatal(err)
	}
	first := packWithPages(t, r, m)
	spoil(t, r, fsys, first)
	if rep := mustCheck(t, r, CheckOptions{}); len(rep.Damage) != 0 || rep.Bytes != 0 {
		t.Fatalf("without reading: %+v", rep)
	}
	rep := mustCheck(t, r, CheckOptions{ReadData: true})
	if len(rep.Damage) != 1 || len(rep.Damage[0].Hits) == 0 {
		t.Fatalf("%+v", rep)
	}
	// What it says is lost is lost, and the rest is not.
	hit := map[uint64]bool{}
	for _, h := range rep.Damage[0].Hits {
		hit[h.Epoch] = true
	}
	for epoch := uint64(1); epoch <= 5; epoch++ {
		if _, err := restore(ctx, r, epoch); (err != nil) != hit[epoch] {
			t.Errorf("epoch %d: said to be hit: %v; restore: %v", epoch, hit[epoch], err)
		}
	}
	// The mark stays through a check that does not read, and goes with the damage.
	mustCheck(t, r, CheckOptions{})
	if _, err := fsys.Stat(r.damagedPath(first)); err != nil {
		t.Fatal("the mark is gone:", err)
	}
	spoil(t, r, fsys, first)
	mustCheck(t, r, CheckOptions{ReadData: true})
	if _, err := fsys.Stat(r.damagedPath(first)); err == nil {
		t.Fatal("the mark stays on a whole pack")
	}

	if err := fsys.Remove(r.packPath(first)); err != nil {
		t.Fatal(err)
	}
	if err := fsys.FlipByte(r.outcomePath(epochKey{"web", 2}), 40, 1); err != nil {
		t.Fatal(err)
	}
	rep = mustCheck(t, r, CheckOptions{})
	names := map[string]int{}
	for _, d := range rep.Damage {
		names[d.Object] = len(d.Hits)
	}
	if names["outcome of web@2"] != 1 || names[pack.Name(first)] == 0 || len(names) != 2 {
		t.Fatalf("%+v", rep)
	}
	for _, opt := range []CheckOptions{{Part: 1}, {Part: 4, Parts: 3}, {Parts: 3}, {Part: -1, Parts: -1}} {
		if _, err := r.Check(ctx, opt); err == nil {
			t.Errorf("%+v was accepted", opt)
		}
	}
}

// TestRepair_TimeMends damages packs in each way there is. As long as a later
// checkpoint has stored the pages again, everything comes back.
func TestRepair_TimeMends(t *testing.T) {
	harms := map[string]func(t *testing.T, r *Repository, fsys *crashfs.FS, id pack.ID){
		"flipped byte": func(t *testing.T, r *Repository, fsys *crashfs.FS, id pack.ID) { spoil(t, r, fsys, id) },
		"gone": func(t *testing.T, r *Repository, fsys *crashfs.FS, id pack.ID) {
			if err := fsys.Remove(r.packPath(id)); err != nil {
				t.Fatal(err)
			}
		},
		"no trailer": func(t *testing.T, r *Repository, fsys *crashfs.FS, id pack.ID) {
			info, err := fsys.Stat(r.packPath(id))
			if err != nil {
				t.Fatal(err)
			}
			if err := fsys.FlipByte(r.packPath(id), info.Size-5, 1); err != nil {
				t.Fatal(err)
			}
		},
	}
	for name, harm := range harms {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			fsys := newCrashFS(t, 1)
			r := mustCreate(t, smallConfig(fsys))
			m := mustCheckpoint(t, r, 1, guestImages(1))
			for _, id := range packIDs(t, m) {
				harm(t, r, fsys, id)
			}
			before, err := r.Repair(ctx, func(int, int) {})
			if err != nil || len(before.Repaired) != 0 || len(before.Left.Damage) == 0 {
				t.Fatalf("nothing to mend with: %+v, %v", before, err)
			}
			// The check has marked the packs: the same guests are stored anew.
			again := mustOpen(t, smallConfig(fsys), 3)
			if m := mustCheckpoint(t, again, 2, guestImages(1)); m.Stats.StoredBytes == 0 {
				t.Fatal("a damaged pack was relied on")
			}
			report, err := again.Repair(ctx, func(int, int) {})
			if err != nil || len(report.Found.Damage) == 0 || len(report.Repaired) != len(m.Packs) || len(report.Left.Damage) != 0 {
				t.Fatalf("%+v, %v", report, err)
			}
			for _, p := range []*Repository{r, again, mustOpen(t, smallConfig(fsys), 4)} {
				wantRestore(t, p, 1, guestImages(1))
				wantRestore(t, p, 2, guestImages(1))
			}
			if _, err := r.Sweep(ctx); err != nil {
				t.Fatal(err)
			}
			wantRestore(t, r, 1, guestImages(1))
			wantOnlyLiveFiles(t, r, fsys)
		})
	}
}

// TestRepair_GivesNothingUp: of a pack that is lost in part, what is left stays.
func TestRepair_GivesNothingUp(t *testing.T) {
	ctx := t.Context()
	fsys := newCrashFS(t, 1)
	r := mustCreate(t, smallConfig(fsys))
	m := mustCheckpoint(t, r, 1, guestImages(1))
	for _, id := range packIDs(t, m) {
		spoil(t, r, fsys, id)
	}
	if report, err := r.Repair(ctx, func(int, int) {}); err != nil || len(report.Repaired) != 0 {
		t.Fatalf("%+v, %v", report, err)
	}
	for _, id := range packIDs(t, m) {
		spoil(t, r, fsys, id) // the disk is back
	}
	wantRestore(t, r, 1, guestImages(1))
	if report, err := r.Repair(ctx, func(int, int) {}); err != nil || len(report.Found.Damage) != 0 {
		t.Fatalf("%+v, %v", report, err)
	}
}

func TestRepair_CrashAnywhere(t *testing.T) {
	crashCase(t,
		func(r *Repository) {
			m := mustCheckpoint(t, r, 1, guestImages(1))
			fsys := r.cfg.FS.(*crashfs.FS)
			for i, id := range packIDs(t, m) {
				if i%2 == 0 {
					spoil(t, r, fsys, id)
				} else if err := errors.Join(fsys.Remove(r.packPath(id)), fsys.SyncDir(r.packDir(id))); err != nil {
					t.Fatal(err)
				}
			}
			mustCheck(t, r, CheckOptions{ReadData: true})
			if err := r.Refresh(t.Context()); err != nil {
				t.Fatal(err)
			}
			mustCheckpoint(t, r, 2, guestImages(1))
		},
		func(ctx context.Context, r *Repository) error {
			_, err := r.Repair(ctx, func(int, int) {})
			return err
		},
		func(t *testing.T, r *Repository, fsys *crashfs.FS, done bool) {
			wantRestore(t, r, 2, guestImages(1))
			if done {
				wantRestore(t, r, 1, guestImages(1))
			}
			report, err := r.Repair(t.Context(), func(int, int) {})
			if err != nil || len(report.Left.Damage) != 0 {
				t.Fatalf("%+v, %v", report, err)
			}
			if _, err := r.Sweep(t.Context()); err != nil {
				t.Fatal(err)
			}
			wantRestore(t, r, 1, guestImages(1))
			wantRestore(t, r, 2, guestImages(1))
			wantOnlyLiveFiles(t, r, fsys)
		})
}

// TestDiff_CountsWhatDiffers compares with what a comparison of the bytes says.
func TestDiff_CountsWhatDiffers(t *testing.T) {
	ctx := t.Context()
	r := mustCreate(t, smallConfig(newCrashFS(t, 1)))
	rng := rand.New(rand.NewPCG(3, 4))
	base := image(1, 5*object.LeafBytes+777)
	changed := append([]byte(nil), base...)
	want := int64(0)
	for page := range object.PageCount(int64(len(base))) {
		if rng.IntN(300) == 0 {
			changed[page*object.PageBytes] ^= 0x55
			want += min(object.PageBytes, int64(len(base))-page*object.PageBytes)
		}
	}
	a := mustCheckpoint(t, r, 1, map[string][]byte{"a": base, "b": image(2, 9000), "c": image(3, 100)})
	b := mustCheckpoint(t, r, 2, map[string][]byte{"a": changed, "b": image(2, 9000), "d": image(4, 5000)})
	diffs, err := r.Diff(ctx, a, b)
	if err != nil {
		t.Fatal(err)
	}
	if len(diffs) != 3 || diffs[0].Guest != "a" || !diffs[1].Removed || diffs[1].Guest != "c" || !diffs[2].Added {
		t.Fatalf("%+v", diffs)
	}
	if got := diffs[0].Images; want == 0 || len(got) != 1 || got[0].ChangedBytes != want || got[0].SizeA != int64(len(base)) {
		t.Fatalf("%+v, want %d bytes changed", got, want)
	}
	if back, err := r.Diff(ctx, b, a); err != nil || back[0].Images[0].ChangedBytes != want {
		t.Fatalf("the other way: %+v, %v", back, err)
	}
	// Images of two sizes: what only one has counts.
	c := mustCheckpoint(t, r, 3, map[string][]byte{"a": base[:2*object.LeafBytes]})
	diffs, err = r.Diff(ctx, a, c)
	if err != nil || diffs[0].Images[0].ChangedBytes != int64(len(base))-2*object.LeafBytes {
		t.Fatalf("%+v, %v", diffs, err)
	}
	if same, err := r.Diff(ctx, a, a); err != nil || len(same) != 0 {
		t.Fatalf("with itself: %+v, %v", same, err)
	}
}

func TestStats_CountsPages(t *testing.T) {
	ctx := t.Context()
	r := mustCreate(t, smallConfig(newCrashFS(t, 1)))
	page := func(b byte) []byte {
		p := make([]byte, object.PageBytes)
		for i := range p {
			p[i] = b
		}
		return p
	}
	join := func(pages ...byte) (out []byte) {
		for _, b := range pages {
			out = append(out, page(b)...)
		}
		return out
	}
	mustCheckpoint(t, r, 1, map[string][]byte{"a": join(1, 0, 2, 1), "b": join(1, 3)})
	mustCheckpoint(t, r, 2, map[string][]byte{"a": join(1, 0, 4, 1)})
	s, err := r.Stats(ctx, func(int, int) {})
	if err != nil {
		t.Fatal(err)
	}
	const p = object.PageBytes
	if s.RawBytes != 10*p || s.NonZeroBytes != 8*p || s.UniqueBytes != 4*p || s.Packs == 0 || s.NeededBytes != s.StoredBytes {
		t.Fatalf("%+v", s)
	}
	c := s.Checkpoints[0]
	if len(s.Checkpoints) != 2 || c.UniqueBytes != 3*p || c.NewBytes != 3*p || s.Checkpoints[1].NewBytes != p || len(c.Guests) != 2 {
		t.Fatalf("%+v", s.Checkpoints)
	}
	if a := c.Guests[0]; a.Name != "a" || a.RawBytes != 4*p || a.NonZeroBytes != 3*p || a.UniqueBytes != 2*p || a.NewBytes != 2*p {
		t.Fatalf("%+v", a)
	}
	if b := c.Guests[1]; b.NewBytes != p || b.UniqueBytes != 2*p {
		t.Fatalf("%+v", b)
	}
}
