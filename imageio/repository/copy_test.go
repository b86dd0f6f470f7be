package repository

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"fermata/imageio/object"
	"fermata/imageio/seal"
	"fermata/imageio/vfs"
	"fermata/imageio/vfs/crashfs"
)

func quiet(int64, int64) {}

// otherConfig is of a repository whose options differ in all that may.
func otherConfig(fsys vfs.FS) Config {
	return Config{FS: fsys, Dir: testDir, Compression: "zstd", RunBytes: 8 * object.PageBytes, Workers: 3, Random: rand.NewChaCha8([32]byte{7})}
}

func TestCopy_BringsWhatIsMissing(t *testing.T) {
	ctx := t.Context()
	from := mustCreate(t, smallConfig(newCrashFS(t, 1)))
	fiveGenerations(t, from)
	fsys := newCrashFS(t, 2)
	to := mustCreate(t, otherConfig(fsys))
	first, err := from.Copy(ctx, to, "web", 4, quiet)
	if err != nil || first.NewBytes == 0 || first.Present {
		t.Fatalf("%+v, %v", first, err)
	}
	second, err := from.Copy(ctx, to, "web", 5, quiet)
	if err != nil || second.NewBytes == 0 || second.NewBytes >= first.NewBytes {
		t.Fatalf("%+v, %v", second, err)
	}
	if again, err := from.Copy(ctx, to, "web", 5, quiet); err != nil || !again.Present || again.StoredBytes != 0 {
		t.Fatalf("%+v, %v", again, err)
	}
	wantLastTwo(t, mustOpen(t, otherConfig(fsys), 3))
	// And on, and back: the bytes are the same whatever the way.
	back := mustCreate(t, smallConfig(newCrashFS(t, 3)))
	if _, err := to.Copy(ctx, back, "web", 5, quiet); err != nil {
		t.Fatal(err)
	}
	wantRestore(t, back, 5, guestImages(5))
	if _, err := to.Sweep(ctx); err != nil {
		t.Fatal(err)
	}
	wantOnlyLiveFiles(t, to, fsys)

	if _, err := from.Copy(ctx, to, "web", 9, quiet); !errors.Is(err, ErrNotFound) {
		t.Errorf("no such checkpoint: %v", err)
	}
	if err := to.Abort(ctx, "web", 1, "test"); err != nil {
		t.Fatal(err)
	}
	if _, err := from.Copy(ctx, to, "web", 1, quiet); !errors.Is(err, ErrOutcomeDecided) {
		t.Errorf("an aborted epoch: %v", err)
	}
	// Another checkpoint under the same name is not taken for ours.
	other := mustCreate(t, smallConfig(newCrashFS(t, 4)))
	mustCheckpoint(t, other, 5, guestImages(1))
	if _, err := other.Copy(ctx, to, "web", 5, quiet); !errors.Is(err, ErrOutcomeDecided) {
		t.Errorf("another checkpoint: %v", err)
	}
}

func TestCopy_CrashAnywhere(t *testing.T) {
	from := mustCreate(t, smallConfig(newCrashFS(t, 1)))
	fiveGenerations(t, from)
	crashCase(t,
		func(to *Repository) {
			if _, err := from.Copy(t.Context(), to, "web", 4, quiet); err != nil {
				t.Fatal(err)
			}
		},
		func(ctx context.Context, to *Repository) error {
			_, err := from.Copy(ctx, to, "web", 5, quiet)
			return err
		},
		func(t *testing.T, to *Repository, fsys *crashfs.FS, done bool) {
			wantRestore(t, to, 4, guestImages(4))
			outcome, err := to.Outcome(t.Context(), "web", 5)
			if err != nil || done && outcome != OutcomeCommitted {
				t.Fatalf("%s, %v", outcome, err)
			}
			if _, err := from.Copy(t.Context(), to, "web", 5, quiet); err != nil {
				t.Fatal(err)
			}
			wantLastTwo(t, to)
			if _, err := to.Sweep(t.Context()); err != nil {
				t.Fatal(err)
			}
			wantLastTwo(t, to)
			wantOnlyLiveFiles(t, to, fsys)
		})
}

func TestExport_ImportedIsTheSame(t *testing.T) {
	ctx := t.Context()
	from := mustCreate(t, smallConfig(newCrashFS(t, 1)))
	fiveGenerations(t, from)
	var file bytes.Buffer
	if err := from.Export(ctx, "web", 5, &file, ExportOptions{}); err != nil {
		t.Fatal(err)
	}
	whole := file.Bytes()
	for _, cfg := range []Config{otherConfig(newCrashFS(t, 2)), smallConfig(newCrashFS(t, 2))} {
		to := mustCreate(t, cfg)
		m, report, err := to.Import(ctx, bytes.NewReader(whole), ImportOptions{})
		if err != nil || m.Epoch != 5 || report.NewBytes == 0 {
			t.Fatalf("%+v, %v", report, err)
		}
		wantRestore(t, to, 5, guestImages(5))
		if _, report, err := to.Import(ctx, bytes.NewReader(whole), ImportOptions{}); err != nil || !report.Present {
			t.Fatalf("again: %+v, %v", report, err)
		}
	}
	// Into the repository that it came from, after it was deleted there: the epoch
	// is used.
	if _, err := from.Delete(ctx, "web", 5); err != nil {
		t.Fatal(err)
	}
	if _, _, err := from.Import(ctx, bytes.NewReader(whole), ImportOptions{}); !errors.Is(err, ErrOutcomeDecided) {
		t.Fatalf("into a deleted epoch: %v", err)
	}
}

// TestImport_DamageIsFound cuts a stream at every place, and flips bytes all over
// it: nothing is committed that is not whole.
func TestImport_DamageIsFound(t *testing.T) {
	for _, c := range []struct {
		name, magic string
		key         *seal.Key
	}{{"plain", "FMEXPRUN", nil}, {"encrypted", "FMSEALED", testKey(t, 1)}} {
		t.Run(c.name, func(t *testing.T) { importDamaged(t, c.magic, c.key) })
	}
}

func importDamaged(t *testing.T, magic string, key *seal.Key) {
	ctx := t.Context()
	from := mustCreate(t, smallConfig(newCrashFS(t, 1)))
	mustCheckpoint(t, from, 1, guestImages(1))
	var file bytes.Buffer
	if err := from.Export(ctx, "web", 1, &file, ExportOptions{Key: key}); err != nil {
		t.Fatal(err)
	}
	whole := file.Bytes()
	try := func(what string, at int, data []byte) {
		t.Helper()
		to := mustCreate(t, smallConfig(newCrashFS(t, 2)))
		if _, _, err := to.Import(ctx, bytes.NewReader(data), ImportOptions{Key: key}); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("%s at %d of %d: %v", what, at, len(whole), err)
		}
		wantOutcome(t, to, 1, OutcomeNone)
	}
	for at := 0; at < len(whole); at += 1 + len(whole)/150 {
		try("cut", at, whole[:at])
		flipped := bytes.Clone(whole)
		flipped[at] ^= 0x21
		try("flip", at, flipped)
	}
	// A frame that is left out leaves a hole.
	next := func(from int) int { return from + bytes.Index(whole[from:], []byte(magic)) }
	first := next(0)
	second := next(first + 8)
	third := next(second + 8)
	try("left out", second, append(bytes.Clone(whole[:second]), whole[third:]...))
	if key != nil { // elsewhere order is of no account
		fourth := next(third + 8)
		try("exchanged", second, slices.Concat(whole[:second], whole[third:fourth], whole[second:third], whole[fourth:]))
	}
	// A stream of another kind.
	to := mustCreate(t, smallConfig(newCrashFS(t, 3)))
	if _, _, err := to.Import(ctx, strings.NewReader("not an export at all, whatever it may be"), ImportOptions{}); !errors.Is(err, ErrCorrupt) {
		t.Fatal(err)
	}
}
