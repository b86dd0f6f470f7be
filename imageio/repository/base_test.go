package repository

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"fermata/imageio/extent"
	"fermata/imageio/manifest"
	"fermata/imageio/object"
	"fermata/imageio/vfs"
	"fermata/imageio/vfs/crashfs"
)

// refByHand names an image as FORMAT.md section 4 says, without the writer.
func refByHand(b []byte) Ref {
	size := int64(len(b))
	nodes := func(kind object.Kind, ids []object.ID) []object.ID {
		var out []object.ID
		for part := range slices.Chunk(ids, object.Fanout) {
			if allZero(part) {
				out = append(out, object.ID{})
			} else {
				out = append(out, object.Sum(object.AppendNode(nil, kind, part)))
			}
		}
		return out
	}
	var pages []object.ID
	for part := range slices.Chunk(b, object.PageBytes) {
		page := make([]byte, object.PageBytes)
		copy(page, part)
		if isZero(page) {
			pages = append(pages, object.ID{})
		} else {
			pages = append(pages, object.Sum(page))
		}
	}
	branches := nodes(object.KindBranch, nodes(object.KindLeaf, pages))
	return Ref{ID: object.Sum(object.AppendRoot(nil, object.Root{Size: size, Branches: branches})), Size: size}
}

// guestMemory is memory that remembers what was written to it, and the latest
// generation of it that is in the repository.
type guestMemory struct {
	b       []byte
	written extent.Set
	base    *Image
}

// write changes n bytes at off; value 0 makes zeros, others noise.
func (g *guestMemory) write(rng *rand.Rand, off, n int, value byte) {
	for i := range n {
		g.b[off+i] = value * byte(rng.Uint32())
	}
	g.written.Add(extent.Extent{Off: int64(off), Len: int64(n)})
}

// writeSome changes parts at random.
func (g *guestMemory) writeSome(rng *rand.Rand, patches int) {
	for range patches {
		if len(g.b) == 0 {
			return
		}
		off := rng.IntN(len(g.b))
		g.write(rng, off, min(len(g.b)-off, 1+rng.IntN(3*object.PageBytes)), byte(rng.IntN(3)))
	}
}

// options are those of the next generation.
func (g *guestMemory) options() PutOptions {
	return PutOptions{Base: g.base, Changed: &g.written}
}

// touchedBytes is how much must be read: the leaves that were written to.
func (g *guestMemory) touchedBytes() (n int64) {
	size := int64(len(g.b))
	for off := int64(0); off < size; off += object.LeafBytes {
		if part := (extent.Extent{Off: off, Len: min(object.LeafBytes, size-off)}); g.written.Overlaps(part) {
			n += part.Len
		}
	}
	return n
}

// stored makes img, which has been finished, the base of the next generation.
func (g *guestMemory) stored(img *Image) {
	g.base, g.written = img, extent.Set{}
}

// round stores a generation: each put gets the writer.
func round(ctx context.Context, r *Repository, epoch uint64, puts ...func(w *Writer) (*Image, error)) (*manifest.Manifest, []*Image, error) {
	w, err := r.NewWriter(WriterConfig{Cluster: "web", Epoch: epoch, Node: "n1"})
	if err != nil {
		return nil, nil, err
	}
	images, errs := make([]*Image, len(puts)), make([]error, len(puts))
	var wg sync.WaitGroup
	for i, put := range puts {
		wg.Go(func() { images[i], errs[i] = put(w) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, nil, errors.Join(err, w.Abort())
	}
	res, err := w.Finish(ctx)
	if err != nil {
		return nil, nil, err
	}
	m := &manifest.Manifest{Cluster: "web", Epoch: epoch, CreatedUnixNS: int64(epoch), Packs: res.Packs}
	for i, img := range images {
		m.Guests = append(m.Guests, manifest.Guest{Name: string(rune('a' + i)), Node: "n1", Objects: []manifest.Object{
			{Kind: manifest.KindMemory, Name: "ram0", ID: img.Ref.ID, SizeBytes: uint64(img.Ref.Size)},
		}})
	}
	return m, images, nil
}

// generation stores and commits the memory of one guest, on top of the last.
func (g *guestMemory) generation(t testing.TB, r *Repository, epoch uint64) *manifest.Manifest {
	t.Helper()
	m, images, err := round(t.Context(), r, epoch, g.put(t.Context(), g.options()))
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Commit(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	g.stored(images[0])
	return m
}

func (g *guestMemory) put(ctx context.Context, opt PutOptions) func(w *Writer) (*Image, error) {
	return func(w *Writer) (*Image, error) {
		return w.PutImage(ctx, bytes.NewReader(g.b), int64(len(g.b)), opt)
	}
}

// TestBase_Metamorphic: generations of two guests, stored side by side in any
// mixture of full, incremental and audited, have the names that their bytes
// have, and come back from the packs of their manifest alone, when all earlier
// checkpoints are gone too.
func TestBase_Metamorphic(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ctx := context.Background()
		o := drawOption(t)
		cfg := o.config(crashfs.New(1))
		r, err := Create(ctx, cfg)
		if err != nil {
			t.Fatal(err)
		}
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "content"), 2))
		a := &guestMemory{b: drawImage(t)}
		b := &guestMemory{b: bytes.Clone(a.b)} // so that pages are pending for both
		b.writeSome(rng, 2)
		guests := []*guestMemory{a, b}
		generations := rapid.Uint64Range(1, 5).Draw(t, "generations")
		for epoch := uint64(1); epoch <= generations; epoch++ {
			if epoch > 1 && rapid.IntRange(0, 5).Draw(t, "reopen") == 0 {
				if r, err = Open(ctx, cfg); err == nil {
					err = r.Refresh(ctx)
				}
				if err != nil {
					t.Fatal(err)
				}
				for _, g := range guests {
					g.base = nil
				}
			}
			var puts []func(*Writer) (*Image, error)
			var opts []PutOptions
			for _, g := range guests {
				g.writeSome(rng, rapid.IntRange(0, 4).Draw(t, "patches"))
				opt := g.options()
				opt.Fingerprint = rapid.Bool().Draw(t, "fingerprint")
				switch rapid.IntRange(0, 4).Draw(t, "mode") {
				case 0:
					opt.Base = nil
				case 1:
					opt.Audit = true
				case 2:
					opt.Changed = nil // nobody tracked
				}
				o.extents = rapid.Bool().Draw(t, "extents")
				o := o
				opts = append(opts, opt)
				puts = append(puts, func(w *Writer) (*Image, error) { return o.put(ctx, w, g.b, opt) })
			}
			m, images, err := round(ctx, r, epoch, puts...)
			if err != nil {
				t.Fatal(err)
			}
			if err := r.Commit(ctx, m); err != nil {
				t.Fatal(err)
			}
			if epoch > 1 && rapid.Bool().Draw(t, "forget the one before") {
				if _, err := r.Delete(ctx, "web", epoch-1); err != nil {
					t.Fatal(err)
				}
			}
			rd, err := r.NewReader(ctx, m.Packs)
			if err != nil {
				t.Fatal(err)
			}
			for i, g := range guests {
				checkGeneration(t, g, opts[i], images[i])
				got, err := rd.ReadBytes(ctx, images[i].Ref, int64(len(g.b)))
				if err != nil || !bytes.Equal(got, g.b) {
					t.Fatalf("generation %d of guest %d does not come back: %v", epoch, i, err)
				}
				g.stored(images[i])
			}
		}
	})
}

func checkGeneration(t *rapid.T, g *guestMemory, opt PutOptions, img *Image) {
	if want := refByHand(g.b); img.Ref != want {
		t.Fatalf("%+v is %s, want %s", opt, img.Ref, want)
	}
	st := img.Stats
	var nonZero int64
	for page := range slices.Chunk(g.b, object.PageBytes) {
		if !isZero(page) {
			nonZero += int64(len(page))
		}
	}
	if st.RawBytes != int64(len(g.b)) || st.NonZeroBytes != nonZero {
		t.Fatalf("%+v, want %d bytes that are not zeros of %d", st, nonZero, len(g.b))
	}
	touched := st.RawBytes
	if opt.Base != nil && opt.Changed != nil {
		touched = g.touchedBytes()
	}
	if st.SameBytes > touched || opt.Base == nil && st.SameBytes != 0 {
		t.Fatalf("%+v, but %d bytes of leaves were touched", st, touched)
	}
	if st.ChangedBytes > touched || st.NewBytes > st.ChangedBytes || st.AuditedBytes > st.RawBytes-touched || !opt.Audit && st.AuditedBytes != 0 {
		t.Fatalf("%+v, but %d bytes of leaves were touched", st, touched)
	}
}

// TestBase_ChainOutlivesItsBeginning: twenty generations, each on top of the
// last, whose checkpoint is deleted and swept before the next is restored.
// Every restore reads the packs of its manifest alone.
func TestBase_ChainOutlivesItsBeginning(t *testing.T) {
	ctx := t.Context()
	fsys := newCrashFS(t, 1)
	cfg := bigPacks(fsys)
	r := mustCreate(t, cfg)
	const leaves = 5
	g := &guestMemory{b: make([]byte, leaves*object.LeafBytes-100)}
	rng := rand.New(rand.NewPCG(4, 4))
	for leaf := range leaves {
		g.write(rng, leaf*object.LeafBytes+7*object.PageBytes, 30*object.PageBytes, 1)
	}
	for epoch := uint64(1); epoch <= 20; epoch++ {
		g.write(rng, int(epoch)%leaves*object.LeafBytes+int(epoch)*object.PageBytes, 10, 1)
		base, touched := g.base, g.touchedBytes()
		g.generation(t, r, epoch)
		if got := g.base.Stats.ChangedBytes; got != touched || base != nil && got > object.LeafBytes {
			t.Fatalf("generation %d read %d bytes, want %d", epoch, got, touched)
		}
		if epoch > 1 {
			if _, err := r.Delete(ctx, "web", epoch-1); err != nil {
				t.Fatal(err)
			}
		}
		wantRestore(t, mustOpen(t, cfg, byte(epoch)), epoch, map[string][]byte{"a": g.b})
		wantOnlyLiveFiles(t, r, fsys)
	}
}

// TestBase_PagesOfAnotherImage: all pages of b are pending on behalf of a. The
// next generation of b, alone, must still name their packs.
func TestBase_PagesOfAnotherImage(t *testing.T) {
	ctx := t.Context()
	r := mustCreate(t, smallConfig(newCrashFS(t, 1)))
	g := &guestMemory{b: image(1, object.LeafBytes+40*object.PageBytes)}
	g.written.Add(extent.Extent{Len: int64(len(g.b))})
	both := func(w *Writer) (*Image, error) {
		if _, err := g.put(ctx, PutOptions{})(w); err != nil {
			return nil, err
		}
		return g.put(ctx, PutOptions{})(w)
	}
	m, images, err := round(ctx, r, 1, both)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Commit(ctx, m); err != nil {
		t.Fatal(err)
	}
	if n := images[0].Stats.NewBytes; n != 0 {
		t.Fatalf("%d bytes were not pending", n)
	}
	g.stored(images[0])
	g.write(rand.New(rand.NewPCG(1, 1)), object.LeafBytes, 1, 1)
	g.generation(t, r, 2)
	if _, err := r.Delete(ctx, "web", 1); err != nil {
		t.Fatal(err)
	}
	wantRestore(t, r, 2, map[string][]byte{"a": g.b})
}

// TestBase_LetsGoOfWhatIsReplaced: a generation names the packs of the leaves
// that it has kept, and not those of the others.
func TestBase_LetsGoOfWhatIsReplaced(t *testing.T) {
	r := mustCreate(t, smallConfig(newCrashFS(t, 1)))
	g := &guestMemory{b: make([]byte, 2*object.LeafBytes)}
	rng := rand.New(rand.NewPCG(5, 5))
	const pages = 40
	g.write(rng, 0, pages*object.PageBytes, 1)
	g.write(rng, object.LeafBytes, pages*object.PageBytes, 1)
	first := g.generation(t, r, 1)
	g.write(rng, 0, pages*object.PageBytes, 1)
	second := g.generation(t, r, 2)
	kept := 0
	for _, p := range second.Packs {
		if slices.Contains(first.Packs, p) {
			kept++
		}
	}
	// A pack has room for four pages; the leaf's pages may share their first
	// and its last with others, and the leaf itself is in another one.
	if most := pages/4 + 3; kept < pages/4 || kept > most || len(first.Packs) < 2*pages/4 {
		t.Fatalf("%d packs of %d are kept, want at most %d", kept, len(first.Packs), most)
	}
	wantRestore(t, r, 2, map[string][]byte{"a": g.b})
}

// noSource fails the test when it is read.
type noSource struct{ t *testing.T }

func (s noSource) ReadAt([]byte, int64) (int, error) {
	s.t.Error("the source was read")
	return 0, io.ErrUnexpectedEOF
}

// firstGeneration commits epoch 1 of a guest with three leaves.
func firstGeneration(t *testing.T, r *Repository) *guestMemory {
	t.Helper()
	g := &guestMemory{b: image(1, 2*object.LeafBytes+3*object.PageBytes+5)}
	g.generation(t, r, 1)
	return g
}

func bigPacks(fsys vfs.FS) Config {
	cfg := smallConfig(fsys)
	cfg.PackBytes = 1 << 20
	return cfg
}

// TestBase_SweptByThisProcess: the index knows at once.
func TestBase_SweptByThisProcess(t *testing.T) {
	ctx := t.Context()
	r := mustCreate(t, bigPacks(newCrashFS(t, 1)))
	g := firstGeneration(t, r)
	if _, err := r.Delete(ctx, "web", 1); err != nil {
		t.Fatal(err)
	}
	wantBaseGone(t, r, g.options(), g.base.Ref.Size)
	g.base = nil
	g.generation(t, r, 2)
	wantRestore(t, r, 2, map[string][]byte{"a": g.b})
}

// TestBase_SweptByAnotherProcess: the claim notices, as for any old pack, and
// the base is of no use from then on.
func TestBase_SweptByAnotherProcess(t *testing.T) {
	ctx := t.Context()
	fsys := newCrashFS(t, 1)
	r := mustCreate(t, bigPacks(fsys))
	g := firstGeneration(t, r)
	if _, err := mustOpen(t, bigPacks(fsys), 3).Delete(ctx, "web", 1); err != nil {
		t.Fatal(err)
	}
	_, _, err := round(ctx, r, 2, func(w *Writer) (*Image, error) { return w.PutImage(ctx, noSource{t}, g.base.Ref.Size, g.options()) })
	if !errors.Is(err, ErrPackMissing) {
		t.Fatalf("round on a base that was swept: %v", err)
	}
	wantBaseGone(t, r, g.options(), g.base.Ref.Size)
	if err := r.Abort(ctx, "web", 2, "swept"); err != nil {
		t.Fatal(err)
	}
	if err := r.Refresh(ctx); err != nil {
		t.Fatal(err)
	}
	g.base = nil
	g.generation(t, r, 3)
	wantRestore(t, r, 3, map[string][]byte{"a": g.b})
	if _, err := r.Sweep(ctx); err != nil {
		t.Fatal(err)
	}
	wantOnlyLiveFiles(t, r, fsys)
}

// TestBase_ClaimBeforeCondemning: the round relies on its base while a sweep is
// about to condemn the packs. The second look must see the claim.
func TestBase_ClaimBeforeCondemning(t *testing.T) {
	ctx := t.Context()
	fsys := newCrashFS(t, 1)
	r := mustCreate(t, bigPacks(fsys))
	g := firstGeneration(t, r)
	rounds := 0
	cfg := bigPacks(&stepFS{FS: fsys, before: func(op, name string) {
		if op == "rename" && strings.Contains(name, condemnedInfix) && rounds == 0 {
			rounds++
			g.generation(t, r, 2)
		}
	}})
	if _, err := mustOpen(t, cfg, 5).Delete(ctx, "web", 1); err != nil {
		t.Fatal(err)
	}
	if rounds != 1 {
		t.Fatal("nothing was condemned")
	}
	wantRestore(t, r, 2, map[string][]byte{"a": g.b})
	wantOnlyLiveFiles(t, r, fsys)
}

// TestBase_OfAnUndecidedRound: a base needs no commit; the claim keeps its
// packs when its own round is aborted.
func TestBase_OfAnUndecidedRound(t *testing.T) {
	ctx := t.Context()
	r := mustCreate(t, bigPacks(newCrashFS(t, 1)))
	g := &guestMemory{b: image(1, object.LeafBytes+1)}
	_, images, err := round(ctx, r, 1, g.put(ctx, PutOptions{}))
	if err != nil {
		t.Fatal(err)
	}
	g.stored(images[0])
	m, _, err := round(ctx, r, 2, g.put(ctx, g.options()))
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Abort(ctx, "web", 1, "test"); err != nil {
		t.Fatal(err)
	}
	if report, err := r.Sweep(ctx); err != nil || report.Packs != 0 {
		t.Fatalf("%+v, %v", report, err)
	}
	if err := r.Commit(ctx, m); err != nil {
		t.Fatal(err)
	}
	wantRestore(t, r, 2, map[string][]byte{"a": g.b})
}

func wantBaseGone(t *testing.T, r *Repository, opt PutOptions, size int64) {
	t.Helper()
	_, _, err := round(t.Context(), r, 99, func(w *Writer) (*Image, error) { return w.PutImage(t.Context(), noSource{t}, size, opt) })
	if !errors.Is(err, ErrBaseGone) {
		t.Fatalf("base: %v, want %v", err, ErrBaseGone)
	}
}

func TestBase_Refused(t *testing.T) {
	ctx := t.Context()
	fsys := newCrashFS(t, 1)
	r := mustCreate(t, bigPacks(fsys))
	g := firstGeneration(t, r)
	size := g.base.Ref.Size

	wantBaseGone(t, mustOpen(t, bigPacks(fsys), 2), g.options(), size)

	w, err := r.NewWriter(WriterConfig{Cluster: "web", Epoch: 2, Node: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	unfinished, err := g.put(ctx, PutOptions{})(w)
	if err != nil {
		t.Fatal(err)
	}
	opt := PutOptions{Base: unfinished, Changed: &extent.Set{}}
	if _, err := w.PutImage(ctx, noSource{t}, size, opt); !errors.Is(err, ErrBaseGone) {
		t.Fatalf("base of the same writer: %v", err)
	}
	wantBaseGone(t, r, opt, size)
	if err := w.Abort(); err != nil {
		t.Fatal(err)
	}
	wantBaseGone(t, r, opt, size)

	w, err = r.NewWriter(WriterConfig{Cluster: "web", Epoch: 2, Node: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	if _, err := w.PutImage(ctx, noSource{t}, size-1, g.options()); err == nil || errors.Is(err, ErrBaseGone) {
		t.Fatalf("base of another size: %v", err)
	}

	// Nobody relies on a pack that Verify has found damaged.
	m, err := r.Manifest(ctx, "web", 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := fsys.FlipByte(r.packPath(packIDs(t, m)[0]), 5000, 1); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Verify(ctx, m, VerifyOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := r.Refresh(ctx); err != nil {
		t.Fatal(err)
	}
	wantBaseGone(t, r, g.options(), size)
}

func TestBase_AuditFindsWhatWasMissed(t *testing.T) {
	ctx := t.Context()
	r := mustCreate(t, bigPacks(newCrashFS(t, 1)))
	g := &guestMemory{b: image(1, 4*object.LeafBytes+5)}
	clear(g.b[object.LeafBytes:][:object.LeafBytes])
	g.generation(t, r, 1)
	w, err := r.NewWriter(WriterConfig{Cluster: "web", Epoch: 2, Node: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	opt := g.options()
	opt.Audit = true
	img, err := g.put(ctx, opt)(w)
	if err != nil {
		t.Fatal(err)
	}
	if st := img.Stats; st.AuditedBytes != img.Ref.Size || st.ChangedBytes != 0 || img.Ref != g.base.Ref {
		t.Fatalf("%s, %+v", img.Ref, st)
	}
	for _, c := range []struct {
		name   string
		off    int64
		change func(leaf []byte)
	}{
		{"one bit", 2 * object.LeafBytes, func(leaf []byte) { leaf[12345] ^= 1 }},
		{"zeros no more", object.LeafBytes, func(leaf []byte) { leaf[0] = 1 }},
		{"zeros now", 0, func(leaf []byte) { clear(leaf) }},
		{"the end", 4 * object.LeafBytes, func(leaf []byte) { leaf[4]++ }},
	} {
		seen := &guestMemory{b: bytes.Clone(g.b)}
		c.change(seen.b[c.off:min(c.off+object.LeafBytes, int64(len(seen.b)))])
		_, err := seen.put(ctx, opt)(w)
		if !errors.Is(err, ErrDiverged) || !strings.Contains(err.Error(), fmt.Sprintf(" at %d:", c.off)) {
			t.Fatalf("%s: %v", c.name, err)
		}
		if img, err = seen.put(ctx, g.options())(w); err != nil || img.Ref != g.base.Ref {
			t.Fatalf("%s, not audited: %v", c.name, err)
		}
	}
	if _, err := w.Finish(ctx); err != nil {
		t.Fatal(err)
	}
}
