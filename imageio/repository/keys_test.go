package repository

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"fermata/imageio/object"
	"fermata/imageio/seal"
	"fermata/imageio/vfs"
	"fermata/imageio/vfs/crashfs"
)

// testKey is the key of tests, the same every time: golden files are encrypted
// with the first.
func testKey(t testing.TB, n byte) *seal.Key {
	t.Helper()
	k, err := seal.NewKey(rand.NewChaCha8([32]byte{n, 0x5e}))
	if err != nil {
		t.Fatal(err)
	}
	return &k
}

// encrypted is a configuration with a key.
func encrypted(t testing.TB, cfg Config, n byte) Config {
	cfg.Key = testKey(t, n)
	return cfg
}

// TestEncrypted_HidesWhatIsStored: nothing of pages, of their hashes, or of what a
// manifest says can be found in any file, whatever was done.
func TestEncrypted_HidesWhatIsStored(t *testing.T) {
	ctx := t.Context()
	images := map[string][]byte{"confidential-guest": bytes.Repeat([]byte("a page that nobody may read here"), 128*9)}
	for i := range 9 {
		images["confidential-guest"][i*object.PageBytes] = byte(i)
	}
	page := object.Sum(images["confidential-guest"][:object.PageBytes])
	secrets := map[string][]byte{
		"a page": []byte("nobody may read"), "the hash of a page": page[:], "the name of a hash": []byte(page.String()),
		"a manifest": []byte("confidential-guest"), "a reason": []byte("said in confidence"),
	}
	search := func(key *seal.Key, compression string) (found []string, fsys *crashfs.FS) {
		fsys = newCrashFS(t, 1)
		cfg := smallConfig(fsys)
		cfg.Compression, cfg.Key = compression, key
		r := mustCreate(t, cfg)
		mustCheckpoint(t, r, 1, guestImages(1))
		mustCheckpoint(t, r, 2, images)
		if err := r.Abort(ctx, "web", 3, "said in confidence"); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Delete(ctx, "web", 1); err != nil {
			t.Fatal(err)
		}
		if err := pruneToTwo(ctx, r); err != nil {
			t.Fatal(err)
		}
		wantRestore(t, r, 2, images)
		var export bytes.Buffer
		if err := r.Export(ctx, "web", 2, &export, ExportOptions{}); err != nil {
			t.Fatal(err)
		}
		all := export.Bytes()
		for _, path := range allFiles(t, fsys, testDir) {
			data, err := vfs.ReadFile(fsys, path, 1<<30)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, data...)
		}
		for name, secret := range secrets {
			if bytes.Contains(all, secret) {
				found = append(found, name)
			}
		}
		return found, fsys
	}
	for _, compression := range []string{"none", "s2", "zstd"} {
		if found, _ := search(testKey(t, 1), compression); len(found) > 0 {
			t.Errorf("%s: found %q", compression, found)
		}
	}
	if found, _ := search(nil, "none"); len(found) < 4 { // the search finds what is there
		t.Errorf("not encrypted, only %q were found", found)
	}
}

func TestOpen_NeedsTheKey(t *testing.T) {
	ctx := t.Context()
	plain, sealed := smallConfig(newCrashFS(t, 1)), encrypted(t, smallConfig(newCrashFS(t, 2)), 1)
	mustCreate(t, plain)
	mustCheckpoint(t, mustCreate(t, sealed), 1, guestImages(1))
	wantRestore(t, mustOpen(t, sealed, 3), 1, guestImages(1))
	for _, c := range []struct {
		what string
		cfg  Config
		key  *seal.Key
		want error
		says string
	}{
		{"no key", sealed, nil, ErrKeyMissing, ""},
		{"another key", sealed, testKey(t, 2), ErrWrongKey, sealed.Key.ID()},
		{"a key for what is not encrypted", plain, testKey(t, 1), ErrNotEncrypted, ""},
	} {
		c.cfg.Key = c.key
		_, err := Open(ctx, c.cfg)
		if !errors.Is(err, c.want) || errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", c.what, err)
		}
	}
}

// TestKeys_AreRotated: what was stored under one key is read under the next, and not
// under the first any more.
func TestKeys_AreRotated(t *testing.T) {
	ctx := t.Context()
	fsys := newCrashFS(t, 1)
	old := encrypted(t, smallConfig(fsys), 1)
	next := encrypted(t, smallConfig(fsys), 2)
	r := mustCreate(t, old)
	mustCheckpoint(t, r, 1, guestImages(1))
	if err := r.RemoveKey(old.Key.ID()); !errors.Is(err, ErrKeyInUse) {
		t.Fatalf("the last key: %v", err)
	}
	for range 2 {
		if err := r.AddKey(*next.Key); err != nil {
			t.Fatal(err)
		}
	}
	if ids, err := r.Keys(); err != nil || len(ids) != 2 || !slices.IsSorted(ids) {
		t.Fatalf("%q, %v", ids, err)
	}
	// What a killed AddKey may have left.
	left := r.keyPath(old.Key.ID()) + ".0123456789abcdef" + tempSuffix
	if err := vfs.WriteFile(fsys, left, []byte("wrapped for the old key")); err != nil {
		t.Fatal(err)
	}
	r = mustOpen(t, next, 2)
	if err := r.RemoveKey(old.Key.ID()); err != nil {
		t.Fatal(err)
	}
	if err := r.RemoveKey(old.Key.ID()); !errors.Is(err, ErrNotFound) {
		t.Fatalf("removed twice: %v", err)
	}
	if _, err := fsys.Stat(left); err == nil {
		t.Error("a wrapping for the old key is left")
	}
	if _, err := Open(ctx, old); !errors.Is(err, ErrWrongKey) {
		t.Fatalf("the old key: %v", err)
	}
	wantRestore(t, r, 1, guestImages(1))
	if m := mustCheckpoint(t, r, 2, guestImages(1)); m.Stats.StoredBytes != 0 {
		t.Errorf("equal pages were stored again under another key: %d bytes", m.Stats.StoredBytes)
	}
	if err := mustCreate(t, smallConfig(newCrashFS(t, 2))).AddKey(*next.Key); !errors.Is(err, ErrNotEncrypted) {
		t.Errorf("a key for what is not encrypted: %v", err)
	}
}

func TestAddKey_CrashAnywhere(t *testing.T) {
	fsys := newCrashFS(t, 1)
	r := mustCreate(t, encrypted(t, smallConfig(fsys), 1))
	before := fsys.Ops()
	if err := r.AddKey(*testKey(t, 2)); err != nil {
		t.Fatal(err)
	}
	total := fsys.Ops() - before
	for k := range total + 1 {
		for seed := range uint64(crashSeeds) {
			fsys := newCrashFS(t, seed)
			r := mustCreate(t, encrypted(t, smallConfig(fsys), 1))
			mustCheckpoint(t, r, 1, guestImages(1))
			fsys.CrashAfter(k)
			err := r.AddKey(*testKey(t, 2))
			after := fsys.Reboot()
			wantRestore(t, mustOpen(t, encrypted(t, smallConfig(after), 1), 2), 1, guestImages(1))
			second, openErr := Open(t.Context(), encrypted(t, smallConfig(after), 2))
			if openErr != nil && (err == nil || !errors.Is(openErr, ErrWrongKey)) {
				t.Fatalf("crash at %d of %d: add %v, open %v", k, total, err, openErr)
			}
			if openErr == nil {
				wantRestore(t, second, 1, guestImages(1))
			}
		}
	}
}

// TestEncrypted_NothingStandsForAnother puts whole, authentic files in each other's
// place: an attacker who may write can destroy, and not deceive.
func TestEncrypted_NothingStandsForAnother(t *testing.T) {
	ctx := t.Context()
	fsys := newCrashFS(t, 1)
	cfg := encrypted(t, smallConfig(fsys), 1)
	r := mustCreate(t, cfg)
	mustCheckpoint(t, r, 1, guestImages(1))
	m := mustCheckpoint(t, r, 2, guestImages(2))
	if err := r.Abort(ctx, "web", 3, "test"); err != nil {
		t.Fatal(err)
	}
	foreign := mustCreate(t, smallConfig(newCrashFS(t, 2)))
	mustCheckpoint(t, foreign, 2, guestImages(3))
	other := mustCreate(t, encrypted(t, smallConfig(newCrashFS(t, 3)), 1)) // the same key, another data key
	mustCheckpoint(t, other, 2, guestImages(3))

	read := func(r *Repository, path string) []byte {
		data, err := vfs.ReadFile(r.fs, path, 1<<30)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	target := r.outcomePath(epochKey{"web", 2})
	right := read(r, target)
	put := func(path string, data []byte) {
		if err := errors.Join(fsys.Remove(path), vfs.WriteFile(fsys, path, data)); err != nil {
			t.Fatal(err)
		}
	}
	for what, data := range map[string][]byte{
		"the manifest of another epoch": read(r, r.outcomePath(epochKey{"web", 1})),
		"the tombstone of another":      read(r, r.outcomePath(epochKey{"web", 3})),
		"a manifest without encryption": read(foreign, foreign.outcomePath(epochKey{"web", 2})),
		"another repository's manifest": read(other, other.outcomePath(epochKey{"web", 2})),
	} {
		put(target, data)
		_, err := r.Manifest(ctx, "web", 2)
		wantNamed(t, what, err, "outcome of web@2")
	}
	put(target, right)
	// A whole pack under the name of another, and one that is not encrypted.
	ids := packIDs(t, m)
	path := r.packPath(ids[0])
	whole := read(r, path)
	for what, data := range map[string][]byte{"another pack": read(r, r.packPath(ids[1])), "a pack without encryption": func() []byte {
		fm, err := foreign.Manifest(ctx, "web", 2)
		if err != nil {
			t.Fatal(err)
		}
		return read(foreign, foreign.packPath(packIDs(t, fm)[0]))
	}()} {
		put(path, data)
		err := r.CheckReadable(ctx, m)
		wantNamed(t, what, err, ids[0].String())
	}
	put(path, whole)
	wantRestore(t, mustOpen(t, cfg, 4), 2, guestImages(2))
	// A repository that was made to look as if it were not encrypted gets no page.
	put(r.recordPath(), read(foreign, foreign.recordPath()))
	if _, err := Open(ctx, cfg); !errors.Is(err, ErrNotEncrypted) {
		t.Errorf("a record without encryption: %v", err)
	}
}

func TestExport_Encrypted(t *testing.T) {
	ctx := t.Context()
	from := mustCreate(t, encrypted(t, smallConfig(newCrashFS(t, 1)), 1))
	fiveGenerations(t, from)
	export := func(opt ExportOptions) []byte {
		var b bytes.Buffer
		if err := from.Export(ctx, "web", 5, &b, opt); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	plain := smallConfig(newCrashFS(t, 9))
	for _, c := range []struct {
		what string
		data []byte
		to   Config
		key  *seal.Key
		want error
	}{
		{"own key", export(ExportOptions{}), encrypted(t, plain, 1), nil, nil},
		{"own key, into one of another key", export(ExportOptions{}), encrypted(t, plain, 2), testKey(t, 1), nil},
		{"own key, into one that is not encrypted", export(ExportOptions{}), plain, testKey(t, 1), nil},
		{"without a key", export(ExportOptions{}), plain, nil, ErrKeyMissing},
		{"with the key of the destination", export(ExportOptions{}), encrypted(t, plain, 2), nil, ErrWrongKey},
		{"for another key", export(ExportOptions{Key: testKey(t, 2)}), encrypted(t, plain, 2), nil, nil},
		{"not encrypted", export(ExportOptions{Plain: true}), plain, nil, nil},
		{"not encrypted, into one that is", export(ExportOptions{Plain: true}), encrypted(t, plain, 1), nil, nil},
	} {
		c.to.FS = newCrashFS(t, 2)
		to := mustCreate(t, c.to)
		_, _, err := to.Import(ctx, bytes.NewReader(c.data), ImportOptions{Key: c.key})
		if !errors.Is(err, c.want) {
			t.Errorf("%s: %v", c.what, err)
		}
		if err != nil {
			wantOutcome(t, to, 5, OutcomeNone)
			continue
		}
		wantRestore(t, to, 5, guestImages(5))
	}
}

// TestFormat1_EncryptedIsReadForEver is TestFormat1_IsReadForEver for a repository
// with a key. It, too, is only ever added to.
func TestFormat1_EncryptedIsReadForEver(t *testing.T) {
	golden := filepath.Join("testdata", "format1-encrypted")
	if _, err := os.Stat(golden); *update && os.IsNotExist(err) {
		cfg := encrypted(t, smallConfig(vfs.OS{}), 1)
		cfg.Dir = golden
		r := mustCreate(t, cfg)
		mustCheckpoint(t, r, 1, guestImages(1))
		mustCheckpoint(t, r, 2, guestImages(2))
	}
	dir := filepath.Join(t.TempDir(), "repo")
	if err := os.CopyFS(dir, os.DirFS(golden)); err != nil {
		t.Fatal(err)
	}
	r := mustOpen(t, encrypted(t, Config{Dir: dir}, 1), 1)
	wantRestore(t, r, 1, guestImages(1))
	wantRestore(t, r, 2, guestImages(2))
	if m := mustCheckpoint(t, r, 3, guestImages(2)); m.Stats.StoredBytes != 0 {
		t.Fatalf("pages of format 1 were stored again: %d bytes", m.Stats.StoredBytes)
	}
}

// TestPrune_Encrypted compacts, restarts and copies as without a key.
func TestPrune_Encrypted(t *testing.T) {
	fsys := newCrashFS(t, 1)
	r := mustCreate(t, encrypted(t, smallConfig(fsys), 1))
	fiveGenerations(t, r)
	if err := pruneToTwo(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	wantLastTwo(t, r)
	wantOnlyLiveFiles(t, r, fsys)
	to := mustCreate(t, encrypted(t, otherConfig(newCrashFS(t, 2)), 2))
	if _, err := r.Copy(context.Background(), to, "web", 5, quiet); err != nil {
		t.Fatal(err)
	}
	wantRestore(t, to, 5, guestImages(5))
}

// FuzzDecodeWrapping: whatever a wrapped data key says, it is damage, or not for this
// key.
func FuzzDecodeWrapping(f *testing.F) {
	f.Add([]byte(`{"owner":"export","key":"0123456789abcdef","wrapped":"AAAA"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		w, err := decodeWrapping(body)
		if err == nil {
			_, err = w.open(*testKey(t, 1), exportOwner)
		}
		if !errors.Is(err, ErrCorrupt) {
			t.Fatalf("%q: %v", body, err)
		}
	})
}
