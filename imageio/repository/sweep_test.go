package repository

import (
	"context"
	"errors"
	"strings"
	"testing"

	"fermata/imageio/object"
	"fermata/imageio/vfs"
	"fermata/imageio/vfs/crashfs"
)

// stepFS calls before ahead of each renaming or removal, so that a test can
// put another process's step exactly there.
type stepFS struct {
	vfs.FS
	before func(op, name string)
}

func (s *stepFS) Rename(oldName, newName string) error {
	s.before("rename", newName)
	return s.FS.Rename(oldName, newName)
}

func (s *stepFS) Remove(name string) error {
	s.before("remove", name)
	return s.FS.Remove(name)
}

// twoProcesses returns a repository as two processes see it. Epoch 1 is
// committed; the second process sweeps, with before ahead of its steps.
func twoProcesses(t *testing.T) (fsys *crashfs.FS, writer, sweeper *Repository, before *func(op, name string)) {
	t.Helper()
	fsys = newCrashFS(t, 1)
	writer = mustCreate(t, smallConfig(fsys))
	mustCheckpoint(t, writer, 1, guestImages(1))
	step := func(string, string) {}
	cfg := smallConfig(&stepFS{FS: fsys, before: func(op, name string) { step(op, name) }})
	return fsys, writer, mustOpen(t, cfg, 5), &step
}

// TestSweep_ClaimBeforeCondemning: the round claims an old pack after the sweep
// has looked and before it condemns. The second look must see the claim.
func TestSweep_ClaimBeforeCondemning(t *testing.T) {
	ctx := t.Context()
	fsys, writer, sweeper, before := twoProcesses(t)
	var finished bool
	var commitErr error
	*before = func(op, name string) {
		if op != "rename" || !strings.Contains(name, condemnedInfix) || finished {
			return
		}
		finished = true
		m, err := write(ctx, writer, 2, guestImages(1))
		if err == nil {
			err = writer.Commit(ctx, m)
		}
		commitErr = err
	}
	if _, err := sweeper.Delete(ctx, "web", 1); err != nil {
		t.Fatal(err)
	}
	if !finished || commitErr != nil {
		t.Fatalf("round ran: %v, %v", finished, commitErr)
	}
	wantRestore(t, writer, 2, guestImages(1))
	if _, err := sweeper.Sweep(ctx); err != nil {
		t.Fatal(err)
	}
	wantRestore(t, writer, 2, guestImages(1))
	wantOnlyLiveFiles(t, writer, fsys)
}

// TestSweep_ClaimAfterCondemning: the round comes later than the sweep. It must
// fail, as its pack is about to go, and the next round must work.
func TestSweep_ClaimAfterCondemning(t *testing.T) {
	ctx := t.Context()
	fsys, writer, sweeper, before := twoProcesses(t)
	var finished bool
	var finishErr error
	*before = func(op, name string) {
		if op == "remove" && strings.Contains(name, condemnedInfix) && !finished {
			finished = true
			_, finishErr = write(ctx, writer, 2, guestImages(1))
		}
	}
	if _, err := sweeper.Delete(ctx, "web", 1); err != nil {
		t.Fatal(err)
	}
	if !finished || !errors.Is(finishErr, ErrPackMissing) {
		t.Fatalf("round ran: %v, %v", finished, finishErr)
	}
	if err := writer.Abort(ctx, "web", 2, "swept"); err != nil {
		t.Fatal(err)
	}
	mustCheckpoint(t, writer, 3, guestImages(1))
	wantRestore(t, writer, 3, guestImages(1))
	if _, err := sweeper.Sweep(ctx); err != nil {
		t.Fatal(err)
	}
	wantOnlyLiveFiles(t, writer, fsys)
}

func TestSweep_KeepsRoundsInFlight(t *testing.T) {
	ctx := t.Context()
	fsys := newCrashFS(t, 1)
	r := mustCreate(t, smallConfig(fsys))
	m, err := write(ctx, r, 4, guestImages(1))
	if err != nil {
		t.Fatal(err)
	}
	w, err := r.NewWriter(WriterConfig{Cluster: "db", Epoch: 9, Node: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	if _, err := w.PutBytes(ctx, image(50, 100*object.PageBytes)); err != nil { // fills more than a pack
		t.Fatal(err)
	}
	report, err := mustOpen(t, smallConfig(fsys), 3).Sweep(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if report.Packs != 0 || report.Unfinished != 0 || len(report.InFlight) != 2 {
		t.Fatalf("%+v", report)
	}
	if err := r.Commit(ctx, m); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Finish(ctx); err != nil {
		t.Fatal(err)
	}
	wantRestore(t, r, 4, guestImages(1))
}

// TestSweep_StopsBeforeWhatItCannotRead: a manifest that is damaged may need
// any pack.
func TestSweep_StopsBeforeWhatItCannotRead(t *testing.T) {
	ctx := t.Context()
	fsys := newCrashFS(t, 1)
	r := mustCreate(t, smallConfig(fsys))
	mustCheckpoint(t, r, 1, guestImages(1))
	mustCheckpoint(t, r, 2, guestImages(2))
	if err := fsys.FlipByte(r.outcomePath(epochKey{"web", 2}), 40, 1); err != nil {
		t.Fatal(err)
	}
	_, err := r.Delete(ctx, "web", 1)
	var d *CorruptError
	if !errors.As(err, &d) || d.Object != "outcome of web@2" {
		t.Fatalf("sweep beside a damaged manifest: %v", err)
	}
	wantOutcome(t, r, 1, OutcomeDeleted)
	if err := fsys.FlipByte(r.outcomePath(epochKey{"web", 2}), 40, 1); err != nil {
		t.Fatal(err)
	}
	wantRestore(t, r, 2, guestImages(2))

	// Whoever gives the damaged checkpoint up can delete it.
	if err := fsys.FlipByte(r.outcomePath(epochKey{"web", 2}), 40, 1); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Delete(ctx, "web", 2); err != nil {
		t.Fatal(err)
	}
	wantOnlyLiveFiles(t, r, fsys)
}

// TestSweep_KilledBetweenLooks leaves condemned packs; readers must not notice.
func TestSweep_KilledBetweenLooks(t *testing.T) {
	ctx := t.Context()
	fsys := newCrashFS(t, 1)
	r := mustCreate(t, smallConfig(fsys))
	m := mustCheckpoint(t, r, 1, guestImages(1))
	for _, id := range packIDs(t, m) {
		if err := fsys.Rename(r.packPath(id), r.packDir(id)+"/"+id.String()+condemnedInfix+"0123456789abcdef"); err != nil {
			t.Fatal(err)
		}
	}
	wantRestore(t, mustOpen(t, smallConfig(fsys), 2), 1, guestImages(1))
	report, err := r.Sweep(ctx)
	if err != nil || report.Rescued != len(m.Packs) || report.Packs != 0 {
		t.Fatalf("%+v, %v", report, err)
	}
	wantRestore(t, r, 1, guestImages(1))
	wantOnlyLiveFiles(t, r, fsys)
}

// TestSweep_CancelledGivesBack: a sweep that cannot go on, wherever it is,
// leaves packs as they were.
func TestSweep_CancelledGivesBack(t *testing.T) {
	fsys, writer, sweeper, before := twoProcesses(t)
	doomed := map[string][]byte{"a": image(9, 80*object.PageBytes)}
	m := mustCheckpoint(t, writer, 2, doomed)
	if len(m.Packs) < 3 {
		t.Fatalf("%d packs prove nothing", len(m.Packs))
	}
	packs := func() (n int) {
		for _, path := range allFiles(t, fsys, writer.packsDir()) {
			if strings.HasSuffix(path, packSuffix) {
				n++
			} else {
				t.Errorf("left behind: %s", path)
			}
		}
		return n
	}
	all, most := packs(), 0
	for at := 1; ; at++ {
		ctx, cancel := context.WithCancel(t.Context())
		condemned := 0
		*before = func(op, name string) {
			if op == "rename" && strings.Contains(name, condemnedInfix) {
				if condemned++; condemned == at {
					cancel()
				}
			}
		}
		_, err := sweeper.Delete(ctx, "web", 2)
		cancel()
		most = max(most, condemned)
		if err == nil {
			break // there was nothing left to cancel at
		}
		if !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		if n := packs(); n != all {
			t.Fatalf("cancelled at pack %d: %d packs of %d are left", at, n, all)
		}
	}
	if most < 2 || packs() != all-most {
		t.Fatalf("condemned %d packs, %d of %d are left", most, packs(), all)
	}
	wantRestore(t, writer, 1, guestImages(1))
	wantOnlyLiveFiles(t, writer, fsys)
}

// TestDelete_KeepsSharedPacks also checks the number that is reported.
func TestDelete_KeepsSharedPacks(t *testing.T) {
	ctx := t.Context()
	fsys := newCrashFS(t, 1)
	r := mustCreate(t, smallConfig(fsys))
	for g := 1; g <= 6; g++ {
		mustCheckpoint(t, r, uint64(g), guestImages(g))
	}
	size := func() (sum uint64) {
		for _, path := range allFiles(t, fsys, r.packsDir()) {
			info, err := fsys.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			sum += uint64(info.Size)
		}
		return sum
	}
	for g := 1; g <= 5; g++ {
		before := size()
		freed, err := r.Delete(ctx, "web", uint64(g))
		if err != nil {
			t.Fatal(err)
		}
		if got := before - size(); got != freed {
			t.Fatalf("freed %d bytes, told %d", got, freed)
		}
		for rest := g + 1; rest <= 6; rest++ {
			wantRestore(t, r, uint64(rest), guestImages(rest))
		}
	}
	wantOnlyLiveFiles(t, r, fsys)
}

// TestWriter_AfterItsEpochWasSwept: a node that was cut off goes on writing for
// an epoch that was aborted and swept. It fails and harms nothing.
func TestWriter_AfterItsEpochWasSwept(t *testing.T) {
	ctx := t.Context()
	fsys := newCrashFS(t, 1)
	slow := mustCreate(t, smallConfig(fsys))
	w, err := slow.NewWriter(WriterConfig{Cluster: "web", Epoch: 1, Node: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.PutBytes(ctx, image(1, 30*object.PageBytes)); err != nil {
		t.Fatal(err)
	}
	other := mustOpen(t, smallConfig(fsys), 4)
	if err := other.Abort(ctx, "web", 1, "n1 is silent"); err != nil {
		t.Fatal(err)
	}
	if _, err := other.Sweep(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Finish(ctx); err == nil {
		t.Fatal("finished a pack that was swept")
	}
	mustCheckpoint(t, other, 2, guestImages(2))
	if _, err := other.Sweep(ctx); err != nil {
		t.Fatal(err)
	}
	wantRestore(t, other, 2, guestImages(2))
	wantOnlyLiveFiles(t, other, fsys)
}
