package repository

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"fermata/imageio/manifest"
	"fermata/imageio/object"
)

// TestHold_KeepsWhatARestartReads deletes, prunes and sweeps a checkpoint while a restart
// reads it: the restart ends well, and the space is free once it has.
func TestHold_KeepsWhatARestartReads(t *testing.T) {
	ctx := t.Context()
	fsys := newCrashFS(t, 1)
	coordinator := mustCreate(t, smallConfig(fsys))
	m := mustCheckpoint(t, coordinator, 1, guestImages(1))
	mustCheckpoint(t, coordinator, 2, map[string][]byte{"a": noise(2, 3*object.PageBytes)})
	operator := mustOpen(t, smallConfig(fsys), 3) // another process, on another node
	if err := coordinator.Hold(ctx, m, 3); err != nil {
		t.Fatal(err)
	}
	if _, err := planAndPrune(ctx, operator, PruneOptions{Retention: Retention{Last: 1}, CompactBelow: 1}); err != nil {
		t.Fatal(err)
	}
	wantOutcome(t, operator, 1, OutcomeDeleted)
	report, err := operator.Sweep(ctx)
	if err != nil || !slices.Contains(report.InFlight, Round{Cluster: "web", Epoch: 3}) {
		t.Fatalf("%+v, %v: the restart is not in flight", report, err)
	}
	got, err := restoreOf(ctx, coordinator, m)
	if err != nil || fmt.Sprint(got) != fmt.Sprint(guestImages(1)) {
		t.Fatalf("the restart reads something else: %v", err)
	}
	for range 2 {
		if err := coordinator.Release(ctx, "web", 3); err != nil {
			t.Fatal(err)
		}
	}
	if report, err = operator.Sweep(ctx); err != nil || report.Packs == 0 || len(report.InFlight) != 0 {
		t.Fatalf("%+v, %v: nothing is free after the restart", report, err)
	}
	wantOnlyLiveFiles(t, operator, fsys)
}

// TestHold_CrossesADeletion puts a Hold before each rename and removal of a deletion with
// its sweep: either the restart hears that the checkpoint is gone, or it reads all of it.
func TestHold_CrossesADeletion(t *testing.T) {
	ctx := t.Context()
	held, gone := 0, 0
	for k := 1; ; k++ {
		_, holder, deleter, before := twoProcesses(t)
		m, err := holder.Manifest(ctx, "web", 1)
		if err != nil {
			t.Fatal(err)
		}
		n, holdErr := 0, error(nil)
		*before = func(string, string) {
			if n++; n == k {
				holdErr = holder.Hold(ctx, m, 2)
			}
		}
		if _, err := deleter.Delete(ctx, "web", 1); err != nil {
			t.Fatal(err)
		}
		if n < k {
			break
		}
		switch {
		case errors.Is(holdErr, ErrNotFound):
			gone++
		case holdErr != nil:
			t.Fatal(holdErr)
		default:
			held++
			if _, err := deleter.Sweep(ctx); err != nil {
				t.Fatal(err)
			}
			if _, err := restoreOf(ctx, holder, m); err != nil {
				t.Fatalf("step %d: %v", k, err)
			}
		}
	}
	if held == 0 || gone == 0 {
		t.Errorf("%d held, %d came too late: the test shows little", held, gone)
	}
}

// restoreOf reads a checkpoint whose manifest may be gone.
func restoreOf(ctx context.Context, r *Repository, m *manifest.Manifest) (map[string][]byte, error) {
	rd, err := r.NewReader(ctx, m.Packs)
	if err != nil {
		return nil, err
	}
	images := map[string][]byte{}
	for _, g := range m.Guests {
		if images[g.Name], err = rd.ReadBytes(ctx, RefOf(g.Objects[0]), 1<<30); err != nil {
			return nil, err
		}
	}
	return images, nil
}

// TestHold_OfOneWhoDied: what a restart has left behind is let go with its epoch.
func TestHold_OfOneWhoDied(t *testing.T) {
	ctx := t.Context()
	fsys := newCrashFS(t, 1)
	r := mustCreate(t, smallConfig(fsys))
	m := mustCheckpoint(t, r, 1, guestImages(1))
	if err := r.Hold(ctx, m, 2); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Delete(ctx, "web", 1); err != nil {
		t.Fatal(err)
	}
	if err := r.Abort(ctx, "web", 2, "abandoned"); err != nil {
		t.Fatal(err)
	}
	if report, err := r.Sweep(ctx); err != nil || report.Packs != len(m.Packs) {
		t.Fatalf("%+v, %v", report, err)
	}
	wantOnlyLiveFiles(t, r, fsys)
}

func TestOwn_OneInstallation(t *testing.T) {
	ctx := t.Context()
	fsys := newCrashFS(t, 1)
	r := mustCreate(t, smallConfig(fsys))
	if _, err := r.Owner(ctx); !errors.Is(err, ErrNotFound) {
		t.Fatal(err)
	}
	for range 2 {
		if err := r.Own(ctx, "aaaa", "east"); err != nil {
			t.Fatal(err)
		}
	}
	other := mustOpen(t, smallConfig(fsys), 2)
	var owned *OwnedError
	if err := other.Own(ctx, "bbbb", "west"); !errors.As(err, &owned) || owned.Owner.Name != "east" {
		t.Fatal(err)
	}
	if was, err := other.Disown(ctx); err != nil || was.Installation != "aaaa" {
		t.Fatalf("%+v, %v", was, err)
	}
	if err := other.Own(ctx, "bbbb", "west"); err != nil {
		t.Fatal(err)
	}
	if err := r.Own(ctx, "aaaa", "east"); !errors.Is(err, ErrOwned) {
		t.Fatal(err)
	}
	// A record that cannot be read lets nobody in, and can be removed.
	if err := fsys.FlipByte(r.ownerPath(), 40, 1); err != nil {
		t.Fatal(err)
	}
	if err := r.Own(ctx, "bbbb", "west"); !errors.Is(err, ErrCorrupt) {
		t.Fatal(err)
	}
	if _, err := r.Disown(ctx); err != nil {
		t.Fatal(err)
	}
}
