package repository

import (
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"fermata/imageio/extent"
	"fermata/imageio/object"
)

const benchBytes = 128 << 20

// perCore reports throughput by processor time, which other load on the
// machine does not spoil.
func perCore(b *testing.B, used time.Duration) {
	b.ReportMetric(float64(b.N)*benchBytes/1e6/used.Seconds(), "MB/cpu-s")
}

func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// Content of memory.
const (
	zeros        = iota
	compressible // to a half or so
	random
)

func benchImage(content int) []byte {
	b := make([]byte, benchBytes)
	if content == zeros {
		return b
	}
	rng := rand.New(rand.NewPCG(1, 1))
	if content == random {
		for off := 0; off < len(b); off += 8 {
			binary.LittleEndian.PutUint64(b[off:], rng.Uint64())
		}
		return b
	}
	for off := 0; off < len(b); off += 16 {
		v := rng.Uint64()
		for i := range 8 {
			b[off+i] = byte(v >> (8 * i))
		}
		b[off+8] = byte(off >> 12)
	}
	return b
}

type readOnly struct{ lentBytes }

func (readOnly) Lend() {} // hides the ability

func BenchmarkPutImage(b *testing.B) {
	for _, c := range []struct {
		name        string
		compression string
		content     int
		again       bool
		workers     int
	}{
		{"s2", "s2", compressible, false, 0},
		{"s2-1worker", "s2", compressible, false, 1},
		{"zstd", "zstd", compressible, false, 0},
		{"none", "none", compressible, false, 0},
		{"random", "s2", random, false, 0},
		{"random-zstd", "zstd", random, false, 0},
		{"random-1worker", "s2", random, false, 1},
		{"known-pages", "s2", compressible, true, 0},
		{"known-pages-1worker", "s2", compressible, true, 1},
		{"zeros", "s2", zeros, false, 0},
		{"zeros-1worker", "s2", zeros, false, 1},
	} {
		img := benchImage(c.content)
		for source, src := range map[string]io.ReaderAt{"lent": lentBytes(img), "read": readOnly{lentBytes(img)}} {
			b.Run(fmt.Sprintf("%s/%s", c.name, source), func(b *testing.B) {
				b.SetBytes(benchBytes)
				cfg := Config{Dir: filepath.Join(b.TempDir(), "repo"), Compression: c.compression, Workers: c.workers}
				r := mustCreate(b, cfg)
				if c.again {
					benchPut(b, r, src)
				}
				var used time.Duration
				defer func() { perCore(b, used) }()
				for b.Loop() {
					if !c.again {
						b.StopTimer()
						cfg.Dir = filepath.Join(b.TempDir(), fmt.Sprint(rand.Uint64()))
						r = mustCreate(b, cfg)
						b.StartTimer()
					}
					begun := cpuTime(b)
					benchPut(b, r, src)
					used += cpuTime(b) - begun
					if !c.again {
						b.StopTimer()
						if err := os.RemoveAll(cfg.Dir); err != nil {
							b.Fatal(err)
						}
						b.StartTimer()
					}
				}
			})
		}
	}
}

func benchPut(b *testing.B, r *Repository, src io.ReaderAt) (Ref, Result) {
	b.Helper()
	w, err := r.NewWriter(WriterConfig{Cluster: "web", Epoch: 1, Node: "n1"})
	if err != nil {
		b.Fatal(err)
	}
	img, err := w.PutImage(b.Context(), src, benchBytes, PutOptions{})
	if err != nil {
		b.Fatal(err)
	}
	res, err := w.Finish(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	return img.Ref, res
}

// stampedMemory is memory without a page that equals another; size bytes of it
// need no memory.
type stampedMemory struct{ generation uint64 }

func (s *stampedMemory) ReadAt(p []byte, off int64) (int, error) {
	clear(p)
	for i := 0; i < len(p); i += object.PageBytes {
		binary.LittleEndian.PutUint64(p[i:], uint64(off)+uint64(i)+1)
		binary.LittleEndian.PutUint64(p[i+8:], s.generation)
	}
	return len(p), nil
}

// BenchmarkPutImageUnchanged puts 1 GiB of which a Base has all but one leaf, or
// all.
func BenchmarkPutImageUnchanged(b *testing.B) {
	const size = 1 << 30
	src := &stampedMemory{}
	r := mustCreate(b, Config{Dir: filepath.Join(b.TempDir(), "repo")})
	w, err := r.NewWriter(WriterConfig{Cluster: "web", Epoch: 1, Node: "n1"})
	if err != nil {
		b.Fatal(err)
	}
	base, err := w.PutImage(b.Context(), src, size, PutOptions{})
	if err != nil {
		b.Fatal(err)
	}
	if _, err := w.Finish(b.Context()); err != nil {
		b.Fatal(err)
	}
	for _, c := range []struct {
		name    string
		changed extent.Set
	}{
		{"one-leaf", extent.Of(extent.Extent{Off: size / 2, Len: 1})},
		{"none", extent.Set{}},
	} {
		b.Run(c.name, func(b *testing.B) {
			w, err := r.NewWriter(WriterConfig{Cluster: "web", Epoch: 2, Node: "n1"})
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				src.generation++
				if _, err := w.PutImage(b.Context(), src, size, PutOptions{Base: base, Changed: &c.changed}); err != nil {
					b.Fatal(err)
				}
			}
			if err := w.Abort(); err != nil {
				b.Fatal(err)
			}
		})
	}
}

func BenchmarkReadImage(b *testing.B) {
	for _, compression := range []string{"s2", "zstd", "none"} {
		b.Run(compression, func(b *testing.B) {
			b.SetBytes(benchBytes)
			r := mustCreate(b, Config{Dir: filepath.Join(b.TempDir(), "repo"), Compression: compression})
			ref, res := benchPut(b, r, lentBytes(benchImage(compressible)))
			dst := make(bytesAt, benchBytes)
			begun := cpuTime(b)
			defer func() { perCore(b, cpuTime(b)-begun) }()
			for b.Loop() {
				rd, err := r.NewReader(b.Context(), res.Packs)
				if err != nil {
					b.Fatal(err)
				}
				if err := rd.ReadImage(b.Context(), ref, dst, ReadOptions{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkIsZero(b *testing.B) {
	img := benchImage(zeros)
	b.SetBytes(benchBytes)
	begun := cpuTime(b)
	defer func() { perCore(b, cpuTime(b)-begun) }()
	for b.Loop() {
		for off := 0; off < len(img); off += object.PageBytes {
			if !isZero(img[off : off+object.PageBytes]) {
				b.Fatal("not zero")
			}
		}
	}
}
