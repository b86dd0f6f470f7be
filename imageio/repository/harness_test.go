package repository

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"fermata/imageio/manifest"
	"fermata/imageio/object"
	"fermata/imageio/pack"
	"fermata/imageio/vfs"
	"fermata/imageio/vfs/crashfs"
)

const testDir = "/repo"

// smallConfig makes small images fill several runs and packs, and one worker
// and one source of names make every run the same.
func smallConfig(fsys vfs.FS) Config {
	return Config{
		FS: fsys, Dir: testDir, RunBytes: 2 * object.PageBytes, PackBytes: 4 * object.PageBytes,
		Workers: 1, Random: rand.NewChaCha8([32]byte{1}), Patience: -1,
	}
}

func mustCreate(t testing.TB, cfg Config) *Repository {
	t.Helper()
	r, err := Create(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// mustOpen opens the repository as another process would, with names of its
// own and fresh knowledge.
func mustOpen(t testing.TB, cfg Config, seed byte) *Repository {
	t.Helper()
	cfg.Random = rand.NewChaCha8([32]byte{seed, 0xff})
	r, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	return r
}

// image returns size bytes of zero pages, repeated pages, compressible pages
// and noise. Images of neighbouring generations share most pages.
func image(generation, size int) []byte {
	b := make([]byte, size)
	for page := 0; page*object.PageBytes < size; page++ {
		p := b[page*object.PageBytes : min((page+1)*object.PageBytes, size)]
		rng := rand.New(rand.NewPCG(uint64(page), 7))
		if page%5 == generation%5 {
			rng = rand.New(rand.NewPCG(uint64(page), uint64(generation)+100))
		}
		switch rng.IntN(4) {
		case 0: // zeros
		case 1: // one of three pages
			for i := range p {
				p[i] = byte(1 + page%3)
			}
		case 2:
			copy(p, fmt.Sprintf("page %d with text", page))
			p[len(p)-1] = 1
		default:
			for i := range p {
				p[i] = byte(rng.Uint32())
			}
		}
	}
	return b
}

// guestImages is the state of a cluster of two guests.
func guestImages(generation int) map[string][]byte {
	return map[string][]byte{
		"a": image(generation, 12*object.PageBytes),
		"b": image(generation+1, 5*object.PageBytes+123),
	}
}

// write stores a generation without committing it.
func write(ctx context.Context, r *Repository, epoch uint64, images map[string][]byte) (*manifest.Manifest, error) {
	w, err := r.NewWriter(WriterConfig{Cluster: "web", Epoch: epoch, Node: "n1"})
	if err != nil {
		return nil, err
	}
	m := &manifest.Manifest{Cluster: "web", Epoch: epoch, CreatedUnixNS: int64(epoch)}
	names := make([]string, 0, len(images))
	for name := range images {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		ref, err := w.PutBytes(ctx, images[name])
		if err != nil {
			_ = w.Abort()
			return nil, err
		}
		m.Guests = append(m.Guests, manifest.Guest{Name: name, Node: "n1", Objects: []manifest.Object{
			{Kind: manifest.KindMemory, Name: "ram0", ID: ref.ID, SizeBytes: uint64(ref.Size)},
		}})
	}
	res, err := w.Finish(ctx)
	if err != nil {
		return nil, err
	}
	m.Packs = res.Packs
	m.Stats.StoredBytes = res.StoredBytes
	return m, nil
}

// checkpoint stores and commits a generation.
func checkpoint(ctx context.Context, r *Repository, epoch uint64, images map[string][]byte) error {
	m, err := write(ctx, r, epoch, images)
	if err != nil {
		return err
	}
	return r.Commit(ctx, m)
}

func mustCheckpoint(t testing.TB, r *Repository, epoch uint64, images map[string][]byte) *manifest.Manifest {
	t.Helper()
	if err := checkpoint(t.Context(), r, epoch, images); err != nil {
		t.Fatal(err)
	}
	m, err := r.Manifest(t.Context(), "web", epoch)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// restore reads all guests of a checkpoint.
func restore(ctx context.Context, r *Repository, epoch uint64) (map[string][]byte, error) {
	m, err := r.Manifest(ctx, "web", epoch)
	if err != nil {
		return nil, err
	}
	rd, err := r.NewReader(ctx, m.Packs)
	if err != nil {
		return nil, err
	}
	images := map[string][]byte{}
	for _, g := range m.Guests {
		b, err := rd.ReadBytes(ctx, RefOf(g.Objects[0]), 1<<30)
		if err != nil {
			return nil, err
		}
		images[g.Name] = b
	}
	return images, nil
}

func wantRestore(t testing.TB, r *Repository, epoch uint64, want map[string][]byte) {
	t.Helper()
	got, err := restore(t.Context(), r, epoch)
	if err != nil {
		t.Fatalf("epoch %d: %v", epoch, err)
	}
	if len(got) != len(want) {
		t.Fatalf("epoch %d: %d guests, want %d", epoch, len(got), len(want))
	}
	for name := range want {
		if !bytes.Equal(got[name], want[name]) {
			t.Fatalf("epoch %d: guest %s differs", epoch, name)
		}
	}
}

func wantOutcome(t testing.TB, r *Repository, epoch uint64, want Outcome) {
	t.Helper()
	got, err := r.Outcome(t.Context(), "web", epoch)
	if err != nil || got != want {
		t.Fatalf("epoch %d is %s (%v), want %s", epoch, got, err, want)
	}
}

// allFiles lists every file of a repository, but the names of directories.
func allFiles(t testing.TB, fsys vfs.FS, dir string) []string {
	t.Helper()
	names, err := fsys.List(dir)
	if err != nil {
		t.Fatal(err)
	}
	var files []string
	for _, name := range names {
		path := filepath.Join(dir, name)
		info, err := fsys.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.IsDir {
			files = append(files, allFiles(t, fsys, path)...)
		} else {
			files = append(files, path)
		}
	}
	return files
}

// wantOnlyLiveFiles checks that nothing is left but the record, outcomes, the
// packs of readable manifests, and where those have moved.
func wantOnlyLiveFiles(t testing.TB, r *Repository, fsys vfs.FS) {
	t.Helper()
	live := map[string]bool{}
	entries, err := r.Checkpoints(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Err != nil {
			t.Fatal(e.Err)
		}
		for _, p := range e.Manifest.Packs {
			live[p] = true
		}
	}
	files := allFiles(t, fsys, testDir)
	var moved []packFile
	for _, path := range files {
		if p, ok := parsePackName(filepath.Base(path)); ok && p.state == packMoved {
			moved = append(moved, p)
		}
	}
	allowed := map[string]bool{}
	for again := true; again; {
		again = false
		for _, p := range moved {
			if live[p.id.String()] {
				delete(live, p.id.String())
				live[p.to.String()], allowed[p.name], again = true, true, true
			}
		}
	}
	for _, path := range files {
		name := filepath.Base(path)
		p, isPack := parsePackName(name)
		switch {
		case allowed[name]:
			if info, err := fsys.Stat(path); err != nil || info.Size != 0 {
				t.Errorf("%s: %d bytes, %v", path, info.Size, err)
			}
		case name == recordName || strings.HasSuffix(name, outcomeSuffix) || strings.HasSuffix(name, keySuffix):
		case isPack && p.state == packFinal && live[p.id.String()]:
			delete(live, p.id.String())
		default:
			t.Errorf("left behind: %s", path)
		}
	}
	for p := range live {
		t.Errorf("%s%s is gone", "pack ", p)
	}
}

func packIDs(t testing.TB, m *manifest.Manifest) []pack.ID {
	t.Helper()
	var ids []pack.ID
	for _, s := range m.Packs {
		id, err := pack.ParseID(s)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, id)
	}
	return ids
}

func newCrashFS(t testing.TB, seed uint64) *crashfs.FS {
	t.Helper()
	return crashfs.New(seed)
}
