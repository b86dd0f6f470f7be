package repository

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"fermata/imageio/manifest"
	"fermata/imageio/object"
	"fermata/imageio/vfs"
	"fermata/imageio/vfs/crashfs"
)

// keepTwo compacts whatever is not needed whole.
var keepTwo = PruneOptions{Retention: Retention{Last: 2}, CompactBelow: 1, MemoryBytes: 4096}

func planAndPrune(ctx context.Context, r *Repository, opt PruneOptions) (PruneReport, error) {
	plan, err := r.PlanPrune(ctx, opt)
	if err != nil {
		return PruneReport{}, err
	}
	return r.Prune(ctx, plan)
}

// fiveGenerations leaves packs of which a part is needed by the last two.
func fiveGenerations(t testing.TB, r *Repository) {
	t.Helper()
	for g := 1; g <= 5; g++ {
		mustCheckpoint(t, r, uint64(g), guestImages(g))
	}
}

func bytesIn(t testing.TB, fsys vfs.FS, dir string) (sum uint64) {
	t.Helper()
	for _, path := range allFiles(t, fsys, dir) {
		info, err := fsys.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		sum += uint64(info.Size)
	}
	return sum
}

func wantLastTwo(t testing.TB, r *Repository) {
	t.Helper()
	wantRestore(t, r, 4, guestImages(4))
	wantRestore(t, r, 5, guestImages(5))
}

func TestPrune_KeepsWhatIsNeededAndNothingElse(t *testing.T) {
	ctx := t.Context()
	fsys := newCrashFS(t, 1)
	r := mustCreate(t, smallConfig(fsys))
	fiveGenerations(t, r)
	before := bytesIn(t, fsys, r.packsDir())

	plan, err := r.PlanPrune(ctx, keepTwo)
	if err != nil {
		t.Fatal(err)
	}
	if got := bytesIn(t, fsys, r.packsDir()); got != before || len(plan.Checkpoints) != 5 || plan.CompactPacks == 0 || plan.NoCompaction != "" {
		t.Fatalf("%d bytes of %d after the plan %+v", got, before, plan)
	}
	report, err := r.Prune(ctx, plan)
	if err != nil {
		t.Fatal(err)
	}
	after := bytesIn(t, fsys, r.packsDir())
	if report.Deleted != 3 || report.Compacted != plan.CompactPacks || before-after != report.FreedBytes-report.WrittenBytes {
		t.Fatalf("%d bytes, then %d: %+v, planned %+v", before, after, report, plan)
	}
	for _, p := range []*Repository{r, mustOpen(t, smallConfig(fsys), 7)} {
		wantLastTwo(t, p)
	}
	wantOnlyLiveFiles(t, r, fsys)
	for _, epoch := range []uint64{4, 5} {
		m, err := r.Manifest(ctx, "web", epoch)
		if err != nil {
			t.Fatal(err)
		}
		if rep, err := r.Verify(ctx, m, VerifyOptions{}); err != nil || len(rep.Damage) > 0 {
			t.Fatalf("epoch %d: %+v, %v", epoch, rep, err)
		}
	}
	// Nothing is left to do, and no pack holds what nobody needs.
	if plan, err = r.PlanPrune(ctx, keepTwo); err != nil || plan.CompactPacks+plan.GarbagePacks != 0 {
		t.Fatalf("second plan: %+v, %v", plan, err)
	}
	// What was compacted is found again: nothing is stored a second time.
	if m := mustCheckpoint(t, mustOpen(t, smallConfig(fsys), 8), 6, guestImages(5)); m.Stats.StoredBytes != 0 {
		t.Fatalf("%d bytes were stored again", m.Stats.StoredBytes)
	}
}

// TestPrune_AgainAndAgain lets packs move from one to the next.
func TestPrune_AgainAndAgain(t *testing.T) {
	ctx := t.Context()
	fsys := newCrashFS(t, 1)
	r := mustCreate(t, smallConfig(fsys))
	for g := 1; g <= 12; g++ {
		mustCheckpoint(t, r, uint64(g), guestImages(g))
		if g < 3 {
			continue
		}
		if _, err := planAndPrune(ctx, r, keepTwo); err != nil {
			t.Fatal(err)
		}
		wantRestore(t, r, uint64(g-1), guestImages(g-1))
		wantRestore(t, r, uint64(g), guestImages(g))
		wantOnlyLiveFiles(t, r, fsys)
	}
}

// TestPrune_OldReaderReadsOn: a restart that has begun goes on, though its packs
// have moved twice since.
func TestPrune_OldReaderReadsOn(t *testing.T) {
	ctx := t.Context()
	fsys := newCrashFS(t, 1)
	r := mustCreate(t, smallConfig(fsys))
	fiveGenerations(t, r)
	m, err := r.Manifest(ctx, "web", 5)
	if err != nil {
		t.Fatal(err)
	}
	rd, err := r.NewReader(ctx, m.Packs)
	if err != nil {
		t.Fatal(err)
	}
	other := mustOpen(t, smallConfig(fsys), 3)
	for _, opt := range []PruneOptions{keepTwo, {Retention: Retention{Last: 1}, CompactBelow: 1}} {
		if report, err := planAndPrune(ctx, other, opt); err != nil || report.Compacted == 0 {
			t.Fatalf("%+v, %v", report, err)
		}
		for i, g := range m.Guests {
			got, err := rd.ReadBytes(ctx, RefOf(g.Objects[0]), 1<<30)
			if err != nil || string(got) != string(guestImages(5)[g.Name]) {
				t.Fatalf("guest %d: %v", i, err)
			}
		}
	}
}

func TestPrune_CrashAnywhere(t *testing.T) {
	crashCase(t,
		func(r *Repository) { fiveGenerations(t, r) },
		func(ctx context.Context, r *Repository) error {
			_, err := planAndPrune(ctx, r, keepTwo)
			return err
		},
		func(t *testing.T, r *Repository, fsys *crashfs.FS, _ bool) {
			wantLastTwo(t, r)
			if _, err := planAndPrune(t.Context(), r, keepTwo); err != nil {
				t.Fatal(err)
			}
			if _, err := r.Sweep(t.Context()); err != nil {
				t.Fatal(err)
			}
			wantLastTwo(t, r)
			wantOnlyLiveFiles(t, r, fsys)
			mustCheckpoint(t, r, 6, guestImages(6))
			wantRestore(t, r, 6, guestImages(6))
		})
}

// everyStep runs do in one process, and beside ahead of its k-th step in another,
// for every k; then check.
func everyStep(t *testing.T, do, beside func(context.Context, *Repository) error, check func(t *testing.T, r *Repository, fsys *crashfs.FS)) {
	t.Helper()
	for k := 0; ; k++ {
		reached := false
		ok := t.Run(fmt.Sprintf("step%03d", k), func(t *testing.T) {
			fsys := newCrashFS(t, 1)
			fiveGenerations(t, mustCreate(t, smallConfig(fsys)))
			other := mustOpen(t, smallConfig(fsys), 4)
			n := 0
			step := &stepFS{FS: fsys, before: func(string, string) {
				if n++; n == k+1 {
					reached = true
					if err := beside(t.Context(), other); err != nil {
						t.Errorf("beside: %v", err)
					}
				}
			}}
			if err := do(t.Context(), mustOpen(t, smallConfig(step), 5)); err != nil {
				t.Errorf("do: %v", err)
			}
			check(t, mustOpen(t, smallConfig(fsys), 6), fsys)
			if t.Failed() {
				t.Logf("operations:\n%s", fsys.Log())
			}
		})
		if !ok || !reached {
			return
		}
	}
}

func pruneToTwo(ctx context.Context, r *Repository) error {
	_, err := planAndPrune(ctx, r, keepTwo)
	return err
}

// afterAll checks what must hold when all is quiet again.
func afterAll(t *testing.T, r *Repository, fsys *crashfs.FS) {
	t.Helper()
	wantLastTwo(t, r)
	if err := pruneToTwo(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	wantLastTwo(t, r)
	wantOnlyLiveFiles(t, r, fsys)
}

func TestPrune_BesideItself(t *testing.T) { everyStep(t, pruneToTwo, pruneToTwo, afterAll) }

func TestPrune_BesideASweep(t *testing.T) {
	sweep := func(ctx context.Context, r *Repository) error {
		_, err := r.Sweep(ctx)
		return err
	}
	t.Run("sweep in prune", func(t *testing.T) { everyStep(t, pruneToTwo, sweep, afterAll) })
	t.Run("prune in delete", func(t *testing.T) {
		everyStep(t, func(ctx context.Context, r *Repository) error {
			_, err := r.Delete(ctx, "web", 3)
			return err
		}, pruneToTwo, afterAll)
	})
}

// TestPrune_BesideARound puts a round that relies on what only a deleted
// checkpoint needed anywhere into a prune. It is committed and right, or it fails
// for its packs, and the next one is right.
func TestPrune_BesideARound(t *testing.T) {
	old := guestImages(2) // of which nothing newer needs all
	everyStep(t, pruneToTwo, func(ctx context.Context, r *Repository) error {
		err := checkpoint(ctx, r, 6, old)
		if errors.Is(err, ErrPackMissing) {
			return r.Abort(ctx, "web", 6, "overtaken")
		}
		return err
	}, func(t *testing.T, r *Repository, _ *crashfs.FS) {
		outcome, err := r.Outcome(t.Context(), "web", 6)
		if err != nil {
			t.Fatal(err)
		}
		wantRestore(t, r, 5, guestImages(5))
		switch outcome {
		case OutcomeNone:
			return // the prune had fewer steps
		case OutcomeCommitted:
			wantRestore(t, r, 6, old)
		default:
			wantOutcome(t, r, 6, OutcomeAborted)
			mustCheckpoint(t, r, 7, old)
			wantRestore(t, r, 7, old)
		}
		if _, err := planAndPrune(t.Context(), r, PruneOptions{Retention: Retention{Last: 1}, CompactBelow: 1}); err != nil {
			t.Fatal(err)
		}
		last, err := r.LastEpoch(t.Context(), "web")
		if err != nil {
			t.Fatal(err)
		}
		wantRestore(t, r, last, old)
	})
}

// TestPrune_BesideAClaim has a round claim its packs amid a prune, and commit when
// that is over.
func TestPrune_BesideAClaim(t *testing.T) {
	old := guestImages(2)
	var written *manifest.Manifest
	everyStep(t, func(ctx context.Context, r *Repository) error {
		written = nil
		return pruneToTwo(ctx, r)
	}, func(ctx context.Context, r *Repository) error {
		m, err := write(ctx, r, 6, old)
		if errors.Is(err, ErrPackMissing) {
			return nil
		}
		written = m
		return err
	}, func(t *testing.T, r *Repository, _ *crashfs.FS) {
		if written == nil {
			return
		}
		if err := r.Commit(t.Context(), written); err != nil {
			t.Fatal(err)
		}
		wantRestore(t, r, 6, old)
	})
}

// TestPrune_InARound puts a prune anywhere into a round: packs move while it writes,
// claims and commits.
func TestPrune_InARound(t *testing.T) {
	old := guestImages(2)
	everyStep(t, func(ctx context.Context, r *Repository) error {
		err := checkpoint(ctx, r, 6, old)
		if errors.Is(err, ErrPackMissing) {
			return r.Abort(ctx, "web", 6, "overtaken")
		}
		return err
	}, pruneToTwo, func(t *testing.T, r *Repository, _ *crashfs.FS) {
		wantRestore(t, r, 5, guestImages(5))
		if outcome, err := r.Outcome(t.Context(), "web", 6); err != nil || outcome == OutcomeNone {
			t.Fatalf("%v, %v", outcome, err)
		} else if outcome == OutcomeCommitted {
			wantRestore(t, r, 6, old)
		}
	})
}

// TestPrune_DamageStopsCompactionOnly: what cannot be followed is not compacted,
// what can be swept is.
func TestPrune_DamageStopsCompactionOnly(t *testing.T) {
	ctx := t.Context()
	fsys := newCrashFS(t, 1)
	r := mustCreate(t, smallConfig(fsys))
	fiveGenerations(t, r)
	m, err := r.Manifest(ctx, "web", 5)
	if err != nil {
		t.Fatal(err)
	}
	lost := packIDs(t, m)[0]
	if err := fsys.Remove(r.packPath(lost)); err != nil {
		t.Fatal(err)
	}
	plan, err := r.PlanPrune(ctx, keepTwo)
	if err != nil || plan.NoCompaction == "" || plan.GarbagePacks == 0 {
		t.Fatalf("%+v, %v", plan, err)
	}
	report, err := r.Prune(ctx, plan)
	if err != nil || report.Swept != plan.GarbagePacks || report.Compacted != 0 {
		t.Fatalf("%+v, %v", report, err)
	}
}

func TestRetention_Decide(t *testing.T) {
	at := func(s string) int64 {
		when, err := time.Parse("2006-01-02 15:04", s)
		if err != nil {
			t.Fatal(err)
		}
		return when.UnixNano()
	}
	var entries []Entry
	for i, c := range []struct{ when, label string }{
		{"2026-01-05 10:00", ""}, // Monday
		{"2026-01-06 10:00", "golden"},
		{"2026-01-07 09:10", ""},
		{"2026-01-07 09:50", ""},
		{"2026-01-07 10:20", ""},
		{"2026-01-12 08:00", ""}, // Monday
		{"2026-01-12 08:30", ""},
	} {
		entries = append(entries, Entry{Epoch: uint64(i + 1), Manifest: &manifest.Manifest{CreatedUnixNS: at(c.when), Label: c.label}})
	}
	entries = append(entries, Entry{Epoch: 8, Err: errors.New("torn")})
	for _, tc := range []struct {
		rule Retention
		want string
	}{
		{Retention{}, "1 2 3 4 5 6 7 8"},
		{Retention{Last: 1}, "7 8"},
		{Retention{Last: 3}, "5 6 7 8"},
		{Retention{Labelled: true}, "2 7 8"},
		{Retention{Hourly: 3}, "4 5 7 8"},
		{Retention{Daily: 2}, "5 7 8"},
		{Retention{Daily: 9}, "1 2 5 7 8"},
		{Retention{Weekly: 9}, "5 7 8"},
		{Retention{Last: 2, Weekly: 2, Labelled: true}, "2 5 6 7 8"},
	} {
		var kept []string
		for i, d := range tc.rule.decide("web", entries) {
			if d.Epoch != uint64(i+1) || d.Why == "" && d.Keep {
				t.Errorf("%+v: decision %+v", tc.rule, d)
			}
			if d.Keep {
				kept = append(kept, fmt.Sprint(d.Epoch))
			}
		}
		if got := strings.Join(kept, " "); got != tc.want {
			t.Errorf("%+v keeps %s, want %s", tc.rule, got, tc.want)
		}
	}
	if err := (Retention{Last: -1}).Validate(); err == nil {
		t.Error("a negative count was accepted")
	}
}

// TestRetention_CountsIntactOnes: a damaged checkpoint takes no place of an intact one,
// and the newest intact one is never deleted.
func TestRetention_CountsIntactOnes(t *testing.T) {
	for _, tc := range []struct {
		damaged string // epochs of five, an hour apart
		rule    Retention
		want    string
	}{
		{"5", Retention{Last: 1}, "4 5"},
		{"4 5", Retention{Last: 1}, "3 4 5"},
		{"4", Retention{Last: 1}, "5"},
		{"4", Retention{Last: 2}, "3 4 5"},
		{"1 2 3 4 5", Retention{Last: 1}, "1 2 3 4 5"},
		{"2 3 4 5", Retention{Last: 3}, "1 2 3 4 5"},
		{"5", Retention{Hourly: 1}, "4 5"},
		{"5", Retention{Labelled: true}, "4 5"},
		{"5", Retention{}, "1 2 3 4 5"},
	} {
		var entries []Entry
		for epoch := uint64(1); epoch <= 5; epoch++ {
			e := Entry{Epoch: epoch, Manifest: &manifest.Manifest{CreatedUnixNS: int64(epoch) * int64(time.Hour)}}
			if strings.Contains(tc.damaged, fmt.Sprint(epoch)) {
				e.Damage = &KnownDamage{Damage: []Damage{{Object: "pack"}}}
			}
			entries = append(entries, e)
		}
		var kept []string
		for _, d := range tc.rule.decide("web", entries) {
			if d.Keep {
				kept = append(kept, fmt.Sprint(d.Epoch))
			}
			if d.Damaged != strings.Contains(tc.damaged, fmt.Sprint(d.Epoch)) {
				t.Errorf("%+v", d)
			}
		}
		if got := strings.Join(kept, " "); got != tc.want {
			t.Errorf("damaged %s, %+v keeps %s, want %s", tc.damaged, tc.rule, got, tc.want)
		}
	}
}

// TestIDSet compares the set with a map.
func TestIDSet(t *testing.T) {
	var s idSet
	known := map[object.ID]bool{}
	for i := range 5000 {
		id := object.Sum(fmt.Append(nil, i/2))
		if s.has(id) != known[id] || s.add(id) == known[id] {
			t.Fatalf("object %d", i)
		}
		known[id] = true
	}
}

// TestSweep_GivesBackWhatMovedNowhere: a compaction was killed after it gave a pack
// the name of another one, which a sweep that had looked before has removed.
func TestSweep_GivesBackWhatMovedNowhere(t *testing.T) {
	fsys := newCrashFS(t, 1)
	r := mustCreate(t, smallConfig(fsys))
	m := mustCheckpoint(t, r, 1, guestImages(1))
	for _, id := range packIDs(t, m) {
		to, err := r.newPackID()
		if err != nil {
			t.Fatal(err)
		}
		if err := fsys.Rename(r.packPath(id), r.movedPath(id, to)); err != nil {
			t.Fatal(err)
		}
	}
	wantRestore(t, mustOpen(t, smallConfig(fsys), 2), 1, guestImages(1))
	if _, err := r.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantRestore(t, r, 1, guestImages(1))
	wantOnlyLiveFiles(t, r, fsys)
}
