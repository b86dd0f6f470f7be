package repository

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"fermata/imageio/vfs"
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
