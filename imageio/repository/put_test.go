package repository

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"pgregory.net/rapid"

	"fermata/imageio/extent"
	"fermata/imageio/object"
	"fermata/imageio/seal"
	"fermata/imageio/vfs"
	"fermata/imageio/vfs/crashfs"
)

// option is one way to store the same image.
type option struct {
	compression string
	runPages    int
	packBytes   int
	workers     int
	lend        bool
	extents     bool
	encrypted   bool
}

func drawOption(t *rapid.T) option {
	return option{
		compression: rapid.SampledFrom([]string{"s2", "zstd", "none"}).Draw(t, "compression"),
		runPages:    rapid.SampledFrom([]int{1, 2, 7, 64, 256}).Draw(t, "run pages"),
		packBytes:   rapid.SampledFrom([]int{1, 20 << 10, 1 << 20, 64 << 20}).Draw(t, "pack bytes"),
		workers:     rapid.IntRange(1, 5).Draw(t, "workers"),
		lend:        rapid.Bool().Draw(t, "lend"),
		extents:     rapid.Bool().Draw(t, "extents"),
		encrypted:   rapid.Bool().Draw(t, "encrypted"),
	}
}

func (o option) config(fsys vfs.FS) Config {
	cfg := Config{
		FS: fsys, Dir: testDir, Compression: o.compression, RunBytes: o.runPages * object.PageBytes,
		PackBytes: o.packBytes, Workers: o.workers, Random: rand.NewChaCha8([32]byte{7}),
	}
	if o.encrypted {
		cfg.Key = new(seal.Key)
	}
	return cfg
}

// dataExtents lists the parts of b that are not zeros, to the byte.
func dataExtents(b []byte) extent.Set {
	var s extent.Set
	for i := 0; i < len(b); i++ {
		start := i
		for i < len(b) && b[i] != 0 {
			i++
		}
		s.Add(extent.Extent{Off: int64(start), Len: int64(i - start)})
	}
	return s
}

func (o option) put(ctx context.Context, w *Writer, b []byte, opt PutOptions) (*Image, error) {
	if o.extents {
		s := dataExtents(b)
		opt.Data = &s
	}
	if o.lend {
		return w.PutImage(ctx, lentBytes(b), int64(len(b)), opt)
	}
	return w.PutImage(ctx, bytes.NewReader(b), int64(len(b)), opt)
}

// drawImage makes images of up to three leaves whose pages repeat.
func drawImage(t *rapid.T) []byte {
	b := make([]byte, rapid.IntRange(0, 2*object.LeafBytes+9*object.PageBytes).Draw(t, "size"))
	rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "content"), 1))
	for range rapid.IntRange(0, 40).Draw(t, "patches") {
		if len(b) == 0 {
			break
		}
		off := rng.IntN(len(b))
		n := min(len(b)-off, 1+rng.IntN(3*object.PageBytes))
		if rng.IntN(2) == 0 {
			copy(b[off:off+n], bytes.Repeat([]byte{byte(rng.IntN(3))}, n))
			continue
		}
		for i := range n {
			b[off+i] = byte(rng.Uint32())
		}
	}
	return b
}

// TestPut_Metamorphic: whatever the options, equal images have equal refs and
// statistics, and come back byte by byte.
func TestPut_Metamorphic(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ctx := context.Background()
		images := rapid.SliceOfN(rapid.Custom(drawImage), 1, 3).Draw(t, "images")
		var first []Ref
		var firstStats []ImageStats
		for n := range 2 {
			o := drawOption(t)
			r, err := Create(ctx, o.config(crashfs.New(1)))
			if err != nil {
				t.Fatal(err)
			}
			w, err := r.NewWriter(WriterConfig{Cluster: "web", Epoch: 1, Node: "n1"})
			if err != nil {
				t.Fatal(err)
			}
			var refs []Ref
			var stats []ImageStats
			for _, b := range images {
				img, err := o.put(ctx, w, b, PutOptions{})
				if err != nil {
					t.Fatal(err)
				}
				st := img.Stats
				if st.ChangedBytes < st.NonZeroBytes || st.ChangedBytes > st.RawBytes || st.AuditedBytes != 0 {
					t.Fatalf("bytes read: %+v", st)
				}
				st.ChangedBytes = 0 // depends on what is said of holes
				refs, stats = append(refs, img.Ref), append(stats, st)
			}
			res, err := w.Finish(ctx)
			if err != nil {
				t.Fatal(err)
			}
			checkStats(t, images, stats, res)
			if n == 0 {
				first, firstStats = refs, stats
			} else if fmt.Sprint(refs, stats) != fmt.Sprint(first, firstStats) {
				t.Fatalf("options change refs or statistics:\n%v %v\n%v %v", first, firstStats, refs, stats)
			}
			rd, err := r.NewReader(ctx, res.Packs)
			if err != nil {
				t.Fatal(err)
			}
			for i, b := range images {
				got, err := rd.ReadBytes(ctx, refs[i], int64(len(b)))
				if err != nil || !bytes.Equal(got, b) {
					t.Fatalf("image %d differs: %v", i, err)
				}
			}
			checkUnique(t, rd, refs, images)
		}
	})
}

func checkStats(t *rapid.T, images [][]byte, stats []ImageStats, res Result) {
	seen := map[object.ID]bool{}
	var unique uint64
	for i, b := range images {
		want := ImageStats{RawBytes: int64(len(b))}
		for off := 0; off < len(b); off += object.PageBytes {
			page := make([]byte, object.PageBytes)
			n := copy(page, b[off:])
			if isZero(page) {
				continue
			}
			want.NonZeroBytes += int64(n)
			if id := object.Sum(page); !seen[id] {
				seen[id] = true
				want.NewBytes += int64(n)
				unique += object.PageBytes
			}
		}
		if stats[i] != want && !samePageOfAnotherLength(stats[i], want) {
			t.Fatalf("image %d: %+v, want %+v", i, stats[i], want)
		}
	}
	if res.NewUniqueBytes != unique {
		t.Fatalf("%d new unique bytes, want %d", res.NewUniqueBytes, unique)
	}
}

// samePageOfAnotherLength: of a whole page and a short last page that are equal
// when padded, either may be the one that is stored.
func samePageOfAnotherLength(got, want ImageStats) bool {
	d := got.NewBytes - want.NewBytes
	return got.RawBytes == want.RawBytes && got.NonZeroBytes == want.NonZeroBytes && d > -object.PageBytes && d < object.PageBytes
}

func checkUnique(t *rapid.T, rd *Reader, refs []Ref, images [][]byte) {
	seen := map[object.ID]bool{}
	for _, b := range images {
		for off := 0; off < len(b); off += object.PageBytes {
			page := make([]byte, object.PageBytes)
			copy(page, b[off:])
			if !isZero(page) {
				seen[object.Sum(page)] = true
			}
		}
	}
	if n, err := rd.UniquePages(context.Background(), refs); err != nil || n != uint64(len(seen)) {
		t.Fatalf("%d unique pages, want %d, %v", n, len(seen), err)
	}
}

func TestPut_SecondGenerationStoresChangesOnly(t *testing.T) {
	ctx := t.Context()
	fsys := newCrashFS(t, 1)
	r := mustCreate(t, smallConfig(fsys))
	images := map[string][]byte{"a": image(1, 700*object.PageBytes)}
	mustCheckpoint(t, r, 1, images)
	for epoch, p := range []*Repository{r, mustOpen(t, smallConfig(fsys), 3)} {
		m := mustCheckpoint(t, p, uint64(epoch)+2, images)
		if m.Stats.StoredBytes != 0 {
			t.Fatalf("an equal generation stored %d bytes", m.Stats.StoredBytes)
		}
	}
	changed := bytes.Clone(images["a"])
	changed[100*object.PageBytes] ^= 0xff
	w, err := r.NewWriter(WriterConfig{Cluster: "web", Epoch: 9, Node: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.PutImage(ctx, bytes.NewReader(changed), int64(len(changed)), PutOptions{}); err != nil {
		t.Fatal(err)
	}
	res, err := w.Finish(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if res.NewUniqueBytes != object.PageBytes {
		t.Fatalf("one changed page stored %d bytes of pages", res.NewUniqueBytes)
	}
}

func TestPut_ZerosCostNothing(t *testing.T) {
	ctx := t.Context()
	r := mustCreate(t, smallConfig(newCrashFS(t, 1)))
	w, err := r.NewWriter(WriterConfig{Cluster: "web", Epoch: 1, Node: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	const size = 1 << 40 // 1 TiB of holes
	var none extent.Set
	var last int64
	img, err := w.PutImage(ctx, bytes.NewReader(nil), size, PutOptions{Data: &none, Progress: func(n int64) { last = n }})
	if err != nil {
		t.Fatal(err)
	}
	if last != size || img.Stats != (ImageStats{RawBytes: size}) {
		t.Fatalf("%+v, progress %d", img.Stats, last)
	}
	res, err := w.Finish(ctx)
	if err != nil || res.StoredBytes > 2048 {
		t.Fatalf("%+v, %v", res, err)
	}
	rd, err := r.NewReader(ctx, res.Packs)
	if err != nil {
		t.Fatal(err)
	}
	if err := rd.ReadImage(ctx, img.Ref, failingWriter{}, ReadOptions{}); err != nil {
		t.Fatal(err)
	}
}

// failingWriter is a destination that must not be written.
type failingWriter struct{}

func (failingWriter) WriteAt([]byte, int64) (int, error) { return 0, errors.New("written") }

// churning lends memory that changes under the reader, as a guest's may.
type churning struct {
	b    []byte
	turn atomic.Uint64
}

func (c *churning) ReadAt([]byte, int64) (int, error) { return 0, errors.New("not lent") }

func (c *churning) Lend(off int64, n int) ([]byte, error) {
	out := bytes.Clone(c.b[off:][:n])
	for i := range out { // every look differs
		out[i] = byte(c.turn.Add(1))
	}
	return out, nil
}

func TestPut_ChangingSourceStaysConsistent(t *testing.T) {
	ctx := t.Context()
	r := mustCreate(t, smallConfig(newCrashFS(t, 1)))
	w, err := r.NewWriter(WriterConfig{Cluster: "web", Epoch: 1, Node: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	src := &churning{b: make([]byte, 40*object.PageBytes)}
	img, err := w.PutImage(ctx, src, int64(len(src.b)), PutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	res, err := w.Finish(ctx)
	if err != nil {
		t.Fatal(err)
	}
	rd, err := r.NewReader(ctx, res.Packs)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := rd.ReadBytes(ctx, img.Ref, img.Ref.Size); err != nil {
		t.Fatal(err)
	}
}

func TestPut_SourceErrors(t *testing.T) {
	ctx := t.Context()
	r := mustCreate(t, smallConfig(newCrashFS(t, 1)))
	w, err := r.NewWriter(WriterConfig{Cluster: "web", Epoch: 1, Node: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.PutImage(ctx, bytes.NewReader(make([]byte, 100)), 5000, PutOptions{}); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Fatalf("short source: %v", err)
	}
	if _, err := w.PutImage(ctx, bytes.NewReader(nil), -1, PutOptions{}); err == nil {
		t.Fatal("negative size")
	}
	if _, err := w.PutImage(ctx, bytes.NewReader(nil), object.MaxImageBytes+1, PutOptions{}); err == nil {
		t.Fatal("too large")
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := w.PutBytes(cancelled, []byte("x")); !errors.Is(err, context.Canceled) {
		t.Fatalf("cancelled: %v", err)
	}
	ref, err := w.PutBytes(ctx, []byte("the writer goes on"))
	if err != nil {
		t.Fatal(err)
	}
	res, err := w.Finish(ctx)
	if err != nil {
		t.Fatal(err)
	}
	rd, err := r.NewReader(ctx, res.Packs)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := rd.ReadBytes(ctx, ref, 100); err != nil || string(got) != "the writer goes on" {
		t.Fatalf("%q, %v", got, err)
	}
	if _, err := rd.ReadBytes(ctx, ref, 5); err == nil {
		t.Fatal("read more than allowed")
	}
	if _, err := rd.ReadBytes(ctx, Ref{ID: ref.ID, Size: ref.Size - 1}, 100); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("wrong size: %v", err)
	}
	if _, err := rd.ReadBytes(ctx, Ref{ID: object.Sum(nil), Size: 1}, 100); !errors.Is(err, ErrCorrupt) {
		t.Fatalf("unknown image: %v", err)
	}
}

func TestWriter_EndsOnce(t *testing.T) {
	ctx := t.Context()
	fsys := newCrashFS(t, 1)
	r := mustCreate(t, smallConfig(fsys))
	w, err := r.NewWriter(WriterConfig{Cluster: "web", Epoch: 1, Node: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.PutBytes(ctx, image(1, 3*object.PageBytes)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := w.Abort(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.PutBytes(ctx, []byte("x")); !errors.Is(err, ErrClosed) {
		t.Fatal(err)
	}
	if _, err := w.Finish(ctx); !errors.Is(err, ErrClosed) {
		t.Fatal(err)
	}
	wantOnlyLiveFiles(t, r, fsys)

	if w, err = r.NewWriter(WriterConfig{Cluster: "web", Epoch: 1, Node: "n1"}); err != nil {
		t.Fatal(err)
	}
	res, err := w.Finish(ctx)
	if err != nil || len(res.Packs) != 0 {
		t.Fatalf("nothing put: %+v, %v", res, err)
	}
	if err := w.Abort(); err != nil {
		t.Fatal(err)
	}
}

// TestNodes_WriteTogether: two nodes with processes of their own write the same
// epoch at once on a real file system, each several images at a time.
func TestNodes_WriteTogether(t *testing.T) {
	ctx := t.Context()
	dir := filepath.Join(t.TempDir(), "repo")
	cfg := Config{Dir: dir, RunBytes: 16 << 10, PackBytes: 128 << 10, Workers: 3}
	mustCreate(t, cfg)
	const nodes, guests, epochs = 2, 4, 3
	for epoch := uint64(1); epoch <= epochs; epoch++ {
		want := make([]map[string][]byte, nodes)
		results := make([]Result, nodes)
		refs := make([][]Ref, nodes)
		var wg sync.WaitGroup
		for n := range nodes {
			want[n] = map[string][]byte{}
			refs[n] = make([]Ref, guests)
			wg.Go(func() {
				r, err := Open(ctx, cfg)
				if err == nil {
					err = r.Refresh(ctx)
				}
				if err != nil {
					t.Error(err)
					return
				}
				w, err := r.NewWriter(WriterConfig{Cluster: "web", Epoch: epoch, Node: fmt.Sprintf("n%d", n)})
				if err != nil {
					t.Error(err)
					return
				}
				var puts sync.WaitGroup
				for g := range guests {
					b := image(int(epoch)+g, 800*object.PageBytes+g)
					puts.Go(func() {
						img, err := w.PutImage(ctx, bytes.NewReader(b), int64(len(b)), PutOptions{})
						if err != nil {
							t.Error(err)
							return
						}
						refs[n][g] = img.Ref
					})
				}
				puts.Wait()
				if results[n], err = w.Finish(ctx); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if t.Failed() {
			return
		}
		r, err := Open(ctx, cfg)
		if err != nil {
			t.Fatal(err)
		}
		for n := range nodes {
			rd, err := r.NewReader(ctx, results[n].Packs)
			if err != nil {
				t.Fatal(err)
			}
			for g := range guests {
				want := image(int(epoch)+g, 800*object.PageBytes+g)
				f, err := os.Create(filepath.Join(t.TempDir(), "ram"))
				if err != nil {
					t.Fatal(err)
				}
				if err := f.Truncate(int64(len(want))); err != nil {
					t.Fatal(err)
				}
				var last int64
				if err := rd.ReadImage(ctx, refs[n][g], f, ReadOptions{Progress: func(done int64) { last = done }}); err != nil {
					t.Fatal(err)
				}
				got, err := os.ReadFile(f.Name())
				if err != nil || !bytes.Equal(got, want) || last != int64(len(want)) {
					t.Fatalf("epoch %d node %d guest %d differs (progress %d), %v", epoch, n, g, last, err)
				}
				if err := f.Close(); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}
