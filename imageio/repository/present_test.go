package repository

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"fermata/imageio/vfs"
)

// A repository whose file system is not mounted any more looks empty. None of its
// checkpoints is damaged, or not there, for that.
func TestPresent_AbsenceIsNoDamage(t *testing.T) {
	ctx := t.Context()
	dir := filepath.Join(t.TempDir(), "repository")
	cfg := smallConfig(vfs.OS{})
	cfg.Dir = dir
	created := mustCreate(t, cfg)
	m := mustCheckpoint(t, created, 1, guestImages(1))
	opened, err := Open(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	away := dir + ".away"
	for name, r := range map[string]*Repository{"created": created, "opened": opened, "within": opened.Within(ctx, 0)} {
		if err := errors.Join(os.Rename(dir, away), os.Mkdir(dir, 0o700)); err != nil {
			t.Fatal(err)
		}
		for what, ask := range map[string]func() error{
			"read packs":       func() error { _, err := r.NewReader(ctx, m.Packs); return err },
			"read manifest":    func() error { _, err := r.Manifest(ctx, m.Cluster, m.Epoch); return err },
			"list checkpoints": func() error { _, err := r.Checkpoints(ctx, m.Cluster); return err },
			"abort":            func() error { return r.Abort(ctx, m.Cluster, m.Epoch+1, "test") },
			"commit":           func() error { return r.Commit(ctx, m) },
		} {
			if err := ask(); !errors.Is(err, ErrAway) || errors.Is(err, ErrCorrupt) || errors.Is(err, ErrNotFound) {
				t.Errorf("%s, %s: %v, want that the repository is away", name, what, err)
			}
		}
		if err := errors.Join(os.Remove(dir), os.Rename(away, dir)); err != nil {
			t.Fatal(err)
		}
		if _, err := r.NewReader(ctx, m.Packs); err != nil {
			t.Errorf("%s: the repository is back: %v", name, err)
		}
	}
}
