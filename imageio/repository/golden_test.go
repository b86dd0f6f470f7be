package repository

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"fermata/imageio/vfs"
	"fermata/imageio/vfs/crashfs"
)

var update = flag.Bool("update", false, "rewrite golden files")

// TestTranscript_Checkpoint holds the order of all that a checkpoint changes:
// every sync stands where FORMAT.md needs it.
func TestTranscript_Checkpoint(t *testing.T) {
	fsys := newCrashFS(t, 1)
	cfg := smallConfig(fsys)
	cfg.Compression = "none"
	r := mustCreate(t, cfg)
	mustCheckpoint(t, r, 1, guestImages(1))
	mustCheckpoint(t, r, 4, map[string][]byte{"a": bytes.Repeat([]byte("shared with nobody"), 600)})
	for _, c := range []struct {
		golden string
		do     func() error
	}{
		{"write_finish_commit", func() error { return checkpoint(t.Context(), r, 2, guestImages(2)) }},
		{"abort", func() error { return r.Abort(t.Context(), "web", 3, "reason") }},
		{"delete_and_sweep", func() error { _, err := r.Delete(t.Context(), "web", 4); return err }},
	} {
		fsys.ResetLog()
		if err := c.do(); err != nil {
			t.Fatal(err)
		}
		wantGolden(t, filepath.Join("testdata", "transcript", c.golden+".txt"), fsys.Log()+"\n")
	}
}

// TestTranscript_Years holds the order of what looks after a repository.
func TestTranscript_Years(t *testing.T) {
	ctx := t.Context()
	config := func(fsys vfs.FS) Config {
		cfg := smallConfig(fsys)
		cfg.Compression = "none"
		return cfg
	}
	onePack := func(fsys vfs.FS) Config { // several are finished beside each other
		cfg := config(fsys)
		cfg.PackBytes = 1 << 20
		return cfg
	}
	for _, c := range []struct {
		golden  string
		prepare func(r *Repository, fsys *crashfs.FS)
		do      func(r *Repository) error
	}{
		{"prune_and_compact", func(r *Repository, _ *crashfs.FS) { fiveGenerations(t, r) },
			func(r *Repository) error { return pruneToTwo(ctx, r) }},
		{"repair", func(r *Repository, fsys *crashfs.FS) {
			m := mustCheckpoint(t, r, 1, guestImages(1))
			ids := packIDs(t, m)
			spoil(t, r, fsys, ids[0])
			if err := fsys.Remove(r.packPath(ids[len(ids)-1])); err != nil {
				t.Fatal(err)
			}
			mustCheck(t, r, CheckOptions{ReadData: true})
			if err := r.Refresh(ctx); err != nil {
				t.Fatal(err)
			}
			mustCheckpoint(t, r, 2, guestImages(1))
		}, func(r *Repository) error { _, err := r.Repair(ctx, func(int, int) {}); return err }},
		{"copy", func(r *Repository, _ *crashfs.FS) {},
			func(r *Repository) error {
				from := mustCreate(t, config(newCrashFS(t, 2)))
				fiveGenerations(t, from)
				_, err := from.Copy(ctx, r, "web", 5, quiet)
				return err
			}},
	} {
		fsys := newCrashFS(t, 1)
		cfg := config(fsys)
		if c.golden == "copy" {
			cfg = onePack(fsys)
		}
		r := mustCreate(t, cfg)
		c.prepare(r, fsys)
		fsys.ResetLog()
		if err := c.do(r); err != nil {
			t.Fatal(err)
		}
		wantGolden(t, filepath.Join("testdata", "transcript", c.golden+".txt"), fsys.Log()+"\n")
	}
}

// TestFormat1_ExportIsReadForEver imports a file that was exported when that was made.
// It is never written again: -update makes it if it is not there.
func TestFormat1_ExportIsReadForEver(t *testing.T) {
	ctx := t.Context()
	path := filepath.Join("testdata", "format1.fermata")
	if _, err := os.Stat(path); *update && errors.Is(err, os.ErrNotExist) {
		from := mustCreate(t, smallConfig(newCrashFS(t, 1)))
		mustCheckpoint(t, from, 1, guestImages(1))
		var b bytes.Buffer
		if err := errors.Join(from.Export(ctx, "web", 1, &b, ExportOptions{}), os.WriteFile(path, b.Bytes(), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r := mustCreate(t, smallConfig(newCrashFS(t, 2)))
	if _, _, err := r.Import(ctx, f, ImportOptions{}); err != nil {
		t.Fatal(err)
	}
	wantRestore(t, r, 1, guestImages(1))
}

func wantGolden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s:\n%s\nwant:\n%s", path, got, want)
	}
}

// TestFormat1_IsReadForEver reads a repository that was written when format 1
// was made. It is only ever added to: -update makes it if it is not there.
func TestFormat1_IsReadForEver(t *testing.T) {
	golden := filepath.Join("testdata", "format1")
	if _, err := os.Stat(golden); *update && os.IsNotExist(err) {
		writeFormat1(t, golden)
	}
	dir := filepath.Join(t.TempDir(), "repo")
	if err := os.CopyFS(dir, os.DirFS(golden)); err != nil {
		t.Fatal(err)
	}
	r, err := Open(t.Context(), Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	for epoch := uint64(1); epoch <= 3; epoch++ {
		wantRestore(t, r, epoch, guestImages(int(epoch)))
		m, err := r.Manifest(t.Context(), "web", epoch)
		if err != nil {
			t.Fatal(err)
		}
		if rep, err := r.Verify(t.Context(), m, VerifyOptions{}); err != nil || len(rep.Damage) != 0 {
			t.Fatalf("%+v, %v", rep, err)
		}
	}
	wantOutcome(t, r, 4, OutcomeAborted)
	wantOutcome(t, r, 5, OutcomeDeleted)
	if err := r.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	m := mustCheckpoint(t, r, 6, guestImages(3))
	if m.Stats.StoredBytes != 0 {
		t.Fatalf("pages of format 1 were stored again: %d bytes", m.Stats.StoredBytes)
	}
}

func writeFormat1(t *testing.T, dir string) {
	t.Helper()
	cfg := smallConfig(vfs.OS{})
	cfg.Dir = dir
	r := mustCreate(t, cfg)
	for i, compression := range []string{"s2", "zstd", "none"} {
		r.cfg.Compression = compression
		mustCheckpoint(t, r, uint64(i+1), guestImages(i+1))
	}
	if err := r.Abort(t.Context(), "web", 4, "golden"); err != nil {
		t.Fatal(err)
	}
	mustCheckpoint(t, r, 5, guestImages(1))
	if _, err := r.Delete(t.Context(), "web", 5); err != nil {
		t.Fatal(err)
	}
}
