package repository

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"fermata/imageio/object"
	"fermata/imageio/pack"
	"fermata/imageio/vfs"
)

// TestDamage_OneFlippedByteIsFoundAndNamed flips bytes all over a repository.
// Each flip must be found by whoever reads the record, and named; restores give
// the right bytes or an error, never wrong bytes.
func TestDamage_OneFlippedByteIsFoundAndNamed(t *testing.T) {
	const flipsPerFile = 80
	for _, compression := range []string{"s2", "zstd", "none", "encrypted"} {
		t.Run(compression, func(t *testing.T) {
			ctx := t.Context()
			fsys := newCrashFS(t, 1)
			cfg := smallConfig(fsys)
			if cfg.Compression = compression; compression == "encrypted" {
				cfg.Compression, cfg.Key = "s2", testKey(t, 1)
			}
			r := mustCreate(t, cfg)
			mustCheckpoint(t, r, 1, guestImages(1))
			m := mustCheckpoint(t, r, 2, guestImages(2))
			rng := rand.New(rand.NewPCG(11, 12))
			flips := 0
			defer func() {
				if flips < 350 { // 1,400 in the four runs
					t.Errorf("%d flips prove little", flips)
				}
			}()
			for _, path := range allFiles(t, fsys, testDir) {
				if strings.HasSuffix(path, claimSuffix) {
					continue // of a decided epoch: nobody reads it
				}
				info, err := fsys.Stat(path)
				if err != nil {
					t.Fatal(err)
				}
				for range flipsPerFile {
					flips++
					off, mask := rng.Int64N(info.Size), byte(1+rng.IntN(255))
					flip := func() {
						if err := fsys.FlipByte(path, off, mask); err != nil {
							t.Fatal(err)
						}
					}
					flip()
					name := fmt.Sprintf("%s, byte %d of %d ^ %02x", path, off, info.Size, mask)
					switch {
					case strings.HasSuffix(path, recordName):
						_, err := Open(ctx, cfg)
						wantNamed(t, name, err, "repository record")
					case strings.HasSuffix(path, keySuffix):
						_, err := Open(ctx, cfg)
						wantNamed(t, name, err, "wrapped data key")
					case strings.HasSuffix(path, outcomeSuffix):
						checkDamagedOutcome(t, r, name)
					default:
						checkDamagedPack(t, r, name, path)
					}
					flip()
				}
			}
			if rep, err := r.Verify(ctx, m, VerifyOptions{}); err != nil || len(rep.Damage) != 0 {
				t.Fatalf("after all flips were undone: %+v, %v", rep, err)
			}
			for _, path := range allFiles(t, fsys, testDir) {
				if strings.HasSuffix(path, damagedSuffix) && strings.Contains(path, m.Packs[0]) {
					t.Errorf("%s is still marked", path)
				}
			}
		})
	}
}

func wantNamed(t *testing.T, what string, err error, object string) {
	t.Helper()
	var d *CorruptError
	if !errors.Is(err, ErrCorrupt) || !errors.As(err, &d) || !strings.Contains(d.Object, object) {
		t.Fatalf("%s: got %v, want damage of %s", what, err, object)
	}
}

func checkDamagedOutcome(t *testing.T, r *Repository, what string) {
	t.Helper()
	entries, err := r.Checkpoints(t.Context(), "web")
	if err != nil || len(entries) != 2 {
		t.Fatalf("%s: %d entries, %v", what, len(entries), err)
	}
	damaged := 0
	for _, e := range entries {
		if e.Err != nil {
			damaged++
			wantNamed(t, what, e.Err, fmt.Sprintf("outcome of web@%d", e.Epoch))
		}
	}
	if damaged != 1 {
		t.Fatalf("%s: %d damaged entries", what, damaged)
	}
}

func checkDamagedPack(t *testing.T, r *Repository, what, path string) {
	t.Helper()
	_, base, _ := strings.Cut(path[len(testDir):], "packs/")
	id := strings.TrimSuffix(base[3:], packSuffix)
	for epoch := uint64(1); epoch <= 2; epoch++ {
		m, err := r.Manifest(t.Context(), "web", epoch)
		if err != nil {
			t.Fatal(err)
		}
		needs := strings.Contains(strings.Join(m.Packs, " "), id)
		rep, err := r.Verify(t.Context(), m, VerifyOptions{})
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if needs != (len(rep.Damage) > 0) {
			t.Fatalf("%s: epoch %d needs the pack: %v, damage: %+v", what, epoch, needs, rep.Damage)
		}
		hit := map[string]bool{}
		for _, d := range rep.Damage {
			if !strings.Contains(d.Object, id) && !strings.Contains(d.Reason, id) {
				t.Fatalf("%s: damage names %q", what, d.Object)
			}
			for _, g := range d.Guests {
				hit[g] = true
			}
		}
		checkRestoreAgainstVerify(t, r, what, epoch, hit)
	}
}

// checkRestoreAgainstVerify: a guest that Verify does not name restores, one
// that cannot be restored was named.
func checkRestoreAgainstVerify(t *testing.T, r *Repository, what string, epoch uint64, hit map[string]bool) {
	t.Helper()
	m, err := r.Manifest(t.Context(), "web", epoch)
	if err != nil {
		t.Fatal(err)
	}
	rd, err := r.NewReader(t.Context(), m.Packs)
	if err != nil {
		if !errors.Is(err, ErrCorrupt) {
			t.Fatalf("%s: %v", what, err)
		}
		return
	}
	want := guestImages(int(epoch))
	for _, g := range m.Guests {
		got, err := rd.ReadBytes(t.Context(), RefOf(g.Objects[0]), 1<<30)
		switch {
		case err == nil && string(got) != string(want[g.Name]):
			t.Fatalf("%s: guest %s of epoch %d was restored wrong", what, g.Name, epoch)
		case err != nil && !errors.Is(err, ErrCorrupt):
			t.Fatalf("%s: %v", what, err)
		case err != nil && !hit[g.Name]:
			t.Fatalf("%s: guest %s of epoch %d: %v, but verify names only %v", what, g.Name, epoch, err, hit)
		case err == nil && hit[g.Name]:
			t.Fatalf("%s: guest %s of epoch %d restores, but verify names it", what, g.Name, epoch)
		}
	}
}

func TestVerify_MissingPackHitsItsGuests(t *testing.T) {
	ctx := t.Context()
	fsys := newCrashFS(t, 1)
	r := mustCreate(t, smallConfig(fsys))
	images := map[string][]byte{"a": image(1, 20*object.PageBytes), "z": make([]byte, 3*object.PageBytes)}
	m := mustCheckpoint(t, r, 1, images)
	if rep, err := r.Verify(ctx, m, VerifyOptions{}); err != nil || len(rep.Damage) != 0 || rep.Bytes == 0 {
		t.Fatalf("%+v, %v", rep, err)
	}
	for _, id := range packIDs(t, m) {
		if err := fsys.Remove(r.packPath(id)); err != nil {
			t.Fatal(err)
		}
	}
	rep, err := r.Verify(ctx, m, VerifyOptions{})
	if err != nil || len(rep.Damage) != len(m.Packs) {
		t.Fatalf("%+v, %v", rep, err)
	}
	for _, d := range rep.Damage {
		if fmt.Sprint(d.Guests) != "[a z]" {
			t.Errorf("%s hits %v", d.Object, d.Guests)
		}
	}
	if _, err := r.NewReader(ctx, m.Packs); !errors.Is(err, ErrCorrupt) {
		t.Fatal(err)
	}
}

// TestVerify_DamagedPackIsNotReliedUpon: without the mark, one bad page would
// spoil every later checkpoint.
func TestVerify_DamagedPackIsNotReliedUpon(t *testing.T) {
	ctx := t.Context()
	fsys := newCrashFS(t, 1)
	r := mustCreate(t, smallConfig(fsys))
	m := mustCheckpoint(t, r, 1, guestImages(1))
	bad := packIDs(t, m)[0]
	if err := fsys.FlipByte(r.packPath(bad), 2000, 1); err != nil {
		t.Fatal(err)
	}
	rep, err := r.Verify(ctx, m, VerifyOptions{})
	if err != nil || len(rep.Damage) == 0 {
		t.Fatalf("%+v, %v", rep, err)
	}
	for name, p := range map[string]*Repository{"the same process": r, "another": mustOpen(t, smallConfig(fsys), 8)} {
		epoch := uint64(len(name))
		mustCheckpoint(t, p, epoch, guestImages(1))
		wantRestore(t, p, epoch, guestImages(1))
	}
}

func TestOpen_RefusesByName(t *testing.T) {
	ctx := t.Context()
	fsys := newCrashFS(t, 1)
	cfg := smallConfig(fsys)
	if _, err := Open(ctx, cfg); !errors.Is(err, ErrNotRepository) {
		t.Fatal(err)
	}
	r := mustCreate(t, cfg)
	if _, err := Create(ctx, cfg); !errors.Is(err, ErrExists) {
		t.Fatal(err)
	}
	if again := mustOpen(t, cfg, 2); again.ID() != r.ID() || len(r.ID()) != 32 {
		t.Fatalf("id %q, then %q", r.ID(), again.ID())
	}
	data, err := recordKind(encryptedRecord + 1).Encode([]byte("from the future"))
	if err != nil {
		t.Fatal(err)
	}
	if err := fsys.Remove(r.recordPath()); err != nil {
		t.Fatal(err)
	}
	if err := vfs.WriteFile(fsys, r.recordPath(), data); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(ctx, cfg); !errors.Is(err, ErrNewerFormat) {
		t.Fatal(err)
	}
}

func FuzzDecodeRecord(f *testing.F) {
	f.Add([]byte(`{"id":"00112233445566778899aabbccddeeff","hash":"sha-256","page_bytes":4096}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		data, err := recordKind(plainRecord).Encode(body) // the digest would stop nearly every mutation
		if err != nil {
			return
		}
		rec, err := decodeRecord(data)
		if err == nil && len(rec.ID) != 32 {
			t.Fatalf("id %q", rec.ID)
		}
	})
}

func FuzzDecodeClaim(f *testing.F) {
	f.Add([]byte(`{"cluster":"web","epoch":1,"node":"n1","packs":["00112233445566778899aabbccddeeff"]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		data, err := claimKind().Encode(body)
		if err != nil {
			return
		}
		if _, _, err := decodeClaim(epochKey{"web", 1}, data); err != nil && !errors.Is(err, ErrCorrupt) {
			t.Fatal(err)
		}
	})
}

// FuzzDecodeExportRun: whatever a stream holds, a run is refused or its objects fill it.
func FuzzDecodeExportRun(f *testing.F) {
	encoder, err := pack.NewEncoder(pack.S2, 1)
	if err != nil {
		f.Fatal(err)
	}
	var b bytes.Buffer
	x := &exporter{to: &b, encoder: encoder, target: 3 * object.PageBytes, compressed: make([]byte, pack.MaxStoredLen(pack.MaxRunBytes))}
	img := image(1, 3*object.PageBytes)
	for page := range slices.Chunk(img, object.PageBytes) {
		if err := x.add(object.KindPage, object.ID{}, page); err != nil {
			f.Fatal(err)
		}
	}
	if err := x.end(); err != nil {
		f.Fatal(err)
	}
	body, _, err := exportRunKind().Read(bytes.NewReader(b.Bytes()), nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(body)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, body []byte) {
		raw, objects, err := decodeExportRun(new(pack.Decoder), body, nil)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatalf("%v is no damage", err)
			}
			return
		}
		end := uint32(0)
		for _, o := range objects {
			if o.Offset != end || o.Length == 0 {
				t.Fatalf("object %+v behind %d", o, end)
			}
			end += o.Length
		}
		if int(end) != len(raw) {
			t.Fatalf("%d bytes of objects in %d", end, len(raw))
		}
	})
}

func FuzzParsePackName(f *testing.F) {
	const id = "00112233445566778899aabbccddeeff"
	for _, rest := range []string{".pack", ".pack.damaged", ".pack.condemned.0123456789abcdef", ".web.00000000000000000001.pack.tmp"} {
		f.Add(id + rest)
	}
	f.Fuzz(func(t *testing.T, name string) {
		p, ok := parsePackName(name)
		if ok && (p.name != name || !strings.HasPrefix(name, p.id.String()+".") || strings.ContainsAny(name, "/\x00")) {
			t.Fatalf("%q parsed as %+v", name, p)
		}
	})
}
