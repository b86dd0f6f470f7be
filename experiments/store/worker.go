package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"iter"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"fermata/imageio/extent"
	"fermata/imageio/manifest"
	"fermata/imageio/object"
	"fermata/imageio/pack"
	"fermata/imageio/repository"
	"fermata/imageio/seal"
	"fermata/nodeagent/capture"
)

// workerArg makes the program a process that is measured: worker JOB REPOSITORY
// COMPRESSION[+key] IMAGES RESTORED. It prints measurements.
const workerArg = "worker"

// encryptedSuffix behind a compression is of a repository with a key.
const encryptedSuffix = "+key"

func work(args []string, out io.Writer) error {
	if len(args) != 5 {
		return fmt.Errorf("%s: want JOB REPOSITORY COMPRESSION IMAGES RESTORED", workerArg)
	}
	compression, encrypted := strings.CutSuffix(args[2], encryptedSuffix)
	w := &worker{cfg: repository.Config{Dir: args[1], Compression: compression}, in: images{dir: args[3]}, back: args[4]}
	if encrypted {
		w.cfg.Key = new(seal.Key) // which one is of no account here
	}
	entries, err := os.ReadDir(w.in.generation(1))
	if err != nil {
		return err
	}
	for _, e := range entries {
		w.in.names = append(w.in.names, e.Name())
	}
	ctx := context.Background() // whoever started it kills it
	switch args[0] {
	case "put":
		err = w.put(ctx)
	case "restore":
		err = w.restore(ctx)
	case "prune":
		err = w.prune(ctx)
	default:
		err = fmt.Errorf("no job %q", args[0])
	}
	if err != nil {
		return err
	}
	// What Go has from the system, without the images that are mapped.
	var memory runtime.MemStats
	runtime.ReadMemStats(&memory)
	for i := range w.steps {
		w.steps[i].PeakKiB = int64(memory.Sys) >> 10
	}
	return json.NewEncoder(out).Encode(w.steps)
}

type worker struct {
	cfg   repository.Config
	in    images
	back  string
	steps []measurement
}

// timed measures a step of this process.
func (w *worker) timed(s step, bytesOf int64, do func() error) (*measurement, error) {
	cpu, begun := cpuSeconds(), time.Now()
	if err := do(); err != nil {
		return nil, err
	}
	m := measurement{Step: s, Bytes: bytesOf, Wall: time.Since(begun).Seconds(), CPU: cpuSeconds() - cpu}
	var err error
	m.Stored, err = size(w.cfg.Dir)
	w.steps = append(w.steps, m)
	return &w.steps[len(w.steps)-1], err
}

func cpuSeconds() float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0 // getrusage(2) has no other error than a wrong who
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}

// memory lends a mapped file.
type memory struct {
	bytes []byte
	data  extent.Set // the rest is holes
}

func (m memory) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(m.bytes).ReadAt(p, off)
}
func (m memory) Lend(off int64, n int) ([]byte, error) { return m.bytes[off:][:n], nil }

// mapped maps a file as a node agent does a guest's memory: what is a hole in it is
// zeros, and not looked at.
func mapped(path string) (m memory, unmap func() error, err error) {
	f, err := os.Open(path)
	if err != nil {
		return m, nil, err
	}
	defer f.Close() // opened for reading
	info, err := f.Stat()
	if err != nil {
		return m, nil, err
	}
	if m.data, err = capture.Data(f, 0, info.Size()); err != nil {
		return m, nil, err
	}
	if m.bytes, err = unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED); err != nil {
		return m, nil, err
	}
	for e := range m.data.All() {
		if err := unix.Madvise(m.bytes[e.Off:e.End()], unix.MADV_POPULATE_READ); err != nil {
			return m, nil, errors.Join(err, unix.Munmap(m.bytes))
		}
	}
	return m, func() error { return unix.Munmap(m.bytes) }, nil
}

// pages goes over all that are no holes, up to n at a time.
func (m memory) pages(n int) iter.Seq[[][]byte] {
	return func(yield func([][]byte) bool) {
		some := make([][]byte, 0, n)
		for e := range m.data.All() {
			for off := e.Off; off < e.End(); off += object.PageBytes {
				if some = append(some, m.bytes[off:][:object.PageBytes]); len(some) == n {
					if !yield(some) {
						return
					}
					some = some[:0]
				}
			}
		}
		if len(some) > 0 {
			yield(some)
		}
	}
}

func zero(page []byte) bool { return page[0] == 0 && bytes.Equal(page[1:], page[:len(page)-1]) }

// put stores all generations, and the last one again.
func (w *worker) put(ctx context.Context) error {
	repo, err := repository.Create(ctx, w.cfg)
	if err != nil {
		return err
	}
	base := map[string]*repository.Image{}
	var first []repository.ImageStats
	for g := 1; g <= generations; g++ {
		var all []memory
		var total int64
		var unmaps []func() error
		for _, file := range w.in.names {
			mem, unmap, err := mapped(filepath.Join(w.in.generation(g), file))
			if err != nil {
				return err
			}
			all, unmaps, total = append(all, mem), append(unmaps, unmap), total+int64(len(mem.bytes))
		}
		s := next
		if g == 1 {
			s = full
		}
		put := func(epoch uint64) func() error {
			return func() error {
				stats, err := putGeneration(ctx, repo, epoch, w.in.names, all, base)
				if epoch == 1 {
					first = stats
				}
				return err
			}
		}
		if _, err := w.timed(s, total, put(uint64(g))); err != nil {
			return err
		}
		if g == generations {
			m, err := w.timed(unchanged, total, put(generations+1))
			if err != nil {
				return err
			}
			m.Limit = reading(all)
		}
		for _, unmap := range unmaps {
			if err := unmap(); err != nil {
				return err
			}
		}
	}
	// The two steps between are one of the result.
	later := sum(w.steps[1:generations]...)
	limit, err := limits(first, w.in, w.cfg, w.back, w.steps[0].Stored)
	if err != nil {
		return err
	}
	w.steps[0].Limit = limit
	w.steps = []measurement{w.steps[0], later, w.steps[generations]}
	return nil
}

func putGeneration(ctx context.Context, repo *repository.Repository, epoch uint64, names []string, all []memory, base map[string]*repository.Image) ([]repository.ImageStats, error) {
	wr, err := repo.NewWriter(repository.WriterConfig{Cluster: clusterName, Epoch: epoch, Node: "n1"})
	if err != nil {
		return nil, err
	}
	m := &manifest.Manifest{Cluster: clusterName, Epoch: epoch, CreatedUnixNS: int64(epoch)}
	var stats []repository.ImageStats
	for i, file := range names {
		img, err := wr.PutImage(ctx, all[i], int64(len(all[i].bytes)), repository.PutOptions{Data: &all[i].data, Base: base[file], Fingerprint: true})
		if err != nil {
			return nil, errors.Join(err, wr.Abort())
		}
		base[file] = img
		stats = append(stats, img.Stats)
		m.Guests = append(m.Guests, manifest.Guest{Name: file, Node: "n1", Objects: []manifest.Object{
			{Kind: manifest.KindMemory, Name: "ram", ID: img.Ref.ID, SizeBytes: uint64(img.Ref.Size)}}})
	}
	res, err := wr.Finish(ctx)
	if err != nil {
		return nil, err
	}
	m.Packs = res.Packs
	return stats, repo.Commit(ctx, m)
}

// limits is the processor time that the parts of the first ingest take alone: looking
// for zeros in all pages, copying and naming those that are none, compressing (and
// encrypting) those that are new, writing what is stored.
func limits(stats []repository.ImageStats, in images, cfg repository.Config, place string, stored int64) (seconds float64, err error) {
	var fresh int64
	for _, s := range stats {
		fresh += s.NewBytes
	}
	algorithm, err := pack.ParseAlgorithm(cfg.Compression)
	if err != nil {
		return 0, err
	}
	encoder, err := pack.NewEncoder(algorithm, 1)
	if err != nil {
		return 0, err
	}
	if cfg.Key != nil {
		if encoder.Domain, err = seal.NewDomain(); err != nil {
			return 0, err
		}
	}
	const runPages = 64
	run := make([]byte, runPages*object.PageBytes)
	compressed := make([]byte, pack.MaxStoredLen(len(run)))
	var scan, stage, encode float64
	var encoded int64
	var pages [][]byte
	ids := make([]object.ID, runPages)
	for _, file := range in.names {
		mem, unmap, err := mapped(filepath.Join(in.generation(1), file))
		if err != nil {
			return 0, err
		}
		for page := range mem.pages(runPages) {
			begun := cpuSeconds()
			pages = pages[:0]
			for _, p := range page {
				if !zero(p) {
					pages = append(pages, p)
				}
			}
			scanned := cpuSeconds()
			for i, p := range pages {
				pages[i] = run[i*object.PageBytes:][:object.PageBytes]
				copy(pages[i], p)
			}
			object.SumPages(ids[:len(pages)], pages)
			staged := cpuSeconds()
			if encoded < fresh {
				if _, err := encoder.Encode(compressed, run[:len(pages)*object.PageBytes]); err != nil {
					return 0, err
				}
				encoded += int64(len(pages) * object.PageBytes)
			}
			scan, stage, encode = scan+scanned-begun, stage+staged-scanned, encode+cpuSeconds()-staged
		}
		if err := unmap(); err != nil {
			return 0, err
		}
	}
	write, err := writing(filepath.Join(place, "limit"), stored)
	return scan + stage + encode + write, err
}

// reading is the processor time of looking at memory once, at which nothing is
// compared with anything.
func reading(all []memory) (seconds float64) {
	seed := maphash.MakeSeed()
	var sum uint64
	begun := cpuSeconds()
	for _, mem := range all {
		for some := range mem.pages(1) {
			sum ^= maphash.Bytes(seed, some[0])
		}
	}
	seconds = cpuSeconds() - begun
	runtime.KeepAlive(sum)
	return seconds
}

// writing is the processor time of writing so many bytes to a file, in whole MiB.
func writing(path string, n int64) (seconds float64, err error) {
	f, err := os.Create(path)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, f.Close(), os.Remove(path)) }()
	chunk := bytes.Repeat([]byte{1}, 1<<20)
	begun := cpuSeconds()
	for ; n > 0; n -= int64(len(chunk)) {
		if _, err := f.Write(chunk); err != nil {
			return 0, err
		}
	}
	return cpuSeconds() - begun, nil
}

// restore brings the last generation back.
func (w *worker) restore(ctx context.Context) error {
	repo, err := repository.Open(ctx, w.cfg)
	if err != nil {
		return err
	}
	var total int64
	m, err := w.timed(restore, 0, func() error {
		m, err := repo.Manifest(ctx, clusterName, generations)
		if err != nil {
			return err
		}
		rd, err := repo.NewReader(ctx, m.Packs)
		if err != nil {
			return err
		}
		for _, g := range m.Guests {
			ref := repository.RefOf(g.Objects[0])
			total += ref.Size
			if err := restoreTo(ctx, rd, ref, filepath.Join(w.back, g.Name)); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		m.Bytes = total
	}
	return err
}

// prune forgets the first generation.
func (w *worker) prune(ctx context.Context) error {
	repo, err := repository.Open(ctx, w.cfg)
	if err != nil {
		return err
	}
	_, err = w.timed(prune, 0, func() error {
		// The last two are one generation, stored twice.
		plan, err := repo.PlanPrune(ctx, repository.PruneOptions{Retention: repository.Retention{Last: generations}, CompactBelow: 0.9})
		if err != nil {
			return err
		}
		_, err = repo.Prune(ctx, plan)
		return err
	})
	return err
}
