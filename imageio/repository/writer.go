package repository

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"

	"fermata/imageio/manifest"
	"fermata/imageio/object"
	"fermata/imageio/pack"
)

// WriterConfig says for which round a Writer writes, and on which node.
type WriterConfig struct {
	Cluster string
	Epoch   uint64
	Node    string
}

// Writer stores the images of one node for one round. It ends with Finish or
// with Abort.
//
// The first error of a file operation sticks: everything after it fails with
// the same error, and so does Finish.
//
// Concurrency: all methods may be called from any goroutine; Finish and Abort
// wait for the puts that run, and refuse the later ones with ErrClosed.
type Writer struct {
	r       *Repository
	epoch   epochKey
	node    string
	encoder *pack.Encoder
	pending *pendingSet

	// workers holds the idle ones. Who takes one out owns it.
	workers chan *worker
	// closing is closed when no more puts are taken.
	closing chan struct{}

	// finals bounds the packs that are being finalised in the background.
	finals     chan struct{}
	finalising sync.WaitGroup

	endMu sync.Mutex // serialises Finish and Abort
	ended bool       // guarded by endMu

	mu     sync.Mutex
	open   *pack.Writer       // guarded by mu; nil between packs
	filled bool               // guarded by mu; a pack was filled
	own    map[pack.ID]uint32 // guarded by mu; finalised, with their ordinals
	stored uint64             // guarded by mu; bytes of the packs in own
	unique uint64             // guarded by mu; bytes of new pages
	images []*Image           // guarded by mu; put whole, settled by Finish
	err    error              // guarded by mu; sticks
}

// maxFinalising is how many packs may wait for the disk while the next one is
// filled: one to overlap, one to absorb a slow sync.
const maxFinalising = 2

// Result is what a Writer has added.
type Result struct {
	// Packs lists, in order, all packs that hold the objects put through this
	// writer, old and new. The manifest must name them.
	Packs []string
	// StoredBytes is the size of the new packs.
	StoredBytes uint64
	// NewUniqueBytes is what of the pages was stored for the first time,
	// before compression.
	NewUniqueBytes uint64
	// NewPacks is how many of Packs are new.
	NewPacks int
}

// NewWriter begins to write for a round. Pages that the index knows are not
// stored again, so Refresh before.
func (r *Repository) NewWriter(cfg WriterConfig) (*Writer, error) {
	if err := errors.Join(manifest.ValidCluster(cfg.Cluster), manifest.ValidName(cfg.Node)); err != nil {
		return nil, fmt.Errorf("new writer: %w", err)
	}
	encoder, err := r.newEncoder()
	if err != nil {
		return nil, fmt.Errorf("new writer: %w", err)
	}
	w := &Writer{
		r: r, epoch: epochKey{cfg.Cluster, cfg.Epoch}, node: cfg.Node,
		encoder: encoder, pending: newPendingSet(),
		workers: make(chan *worker, r.cfg.Workers),
		closing: make(chan struct{}),
		finals:  make(chan struct{}, maxFinalising),
		own:     map[pack.ID]uint32{},
	}
	for range r.cfg.Workers {
		w.workers <- newWorker(r.cfg.RunBytes)
	}
	return w, nil
}

// newEncoder compresses as the configuration says, and seals as the repository is.
func (r *Repository) newEncoder() (*pack.Encoder, error) {
	algorithm, err := pack.ParseAlgorithm(r.cfg.Compression)
	if err != nil {
		return nil, err
	}
	encoder, err := pack.NewEncoder(algorithm, r.cfg.Workers)
	if err != nil {
		return nil, err
	}
	encoder.Domain = r.domain
	return encoder, nil
}

// Finish makes everything durable that was put. After it, and only then, the
// Result may enter a manifest: its packs are safe from Sweep until the epoch
// has an outcome. Images that were put can then be a Base.
//
// On error: the Writer is given up as by Abort. ErrPackMissing says that a
// round was overtaken by a sweep; see there.
func (w *Writer) Finish(ctx context.Context) (Result, error) {
	w.endMu.Lock()
	defer w.endMu.Unlock()
	if w.ended {
		return Result{}, errors.Join(ErrClosed, w.firstErr())
	}
	w.ended = true
	res, err := w.finish(ctx)
	if err != nil {
		return Result{}, fmt.Errorf("finish %s on %s: %w", w.epoch, w.node, errors.Join(err, w.discardOpen()))
	}
	return res, nil
}

func (w *Writer) finish(ctx context.Context) (Result, error) {
	workers := w.stopPuts()
	used := map[uint32]struct{}{}
	for _, wk := range workers {
		for _, b := range []*runBuilder{&wk.pages, &wk.nodes} {
			if err := w.store(wk, b); err != nil {
				return Result{}, err
			}
		}
		for ordinal := range wk.used {
			used[ordinal] = struct{}{}
		}
	}
	if err := ctx.Err(); err != nil {
		return Result{}, err
	}
	w.mu.Lock()
	last := w.open
	w.open = nil
	w.mu.Unlock()
	if last != nil {
		w.finalise(last)
	}
	w.finalising.Wait()
	if err := w.firstErr(); err != nil {
		return Result{}, err
	}
	return w.result(ctx, used)
}

// result claims the old packs and lists all.
func (w *Writer) result(ctx context.Context, used map[uint32]struct{}) (Result, error) {
	w.mu.Lock()
	res := Result{StoredBytes: w.stored, NewUniqueBytes: w.unique, NewPacks: len(w.own)}
	var old []string
	for ordinal := range used {
		id := w.r.index.PackID(ordinal)
		if _, own := w.own[id]; !own {
			old = append(old, id.String())
		}
	}
	for id := range w.own {
		res.Packs = append(res.Packs, id.String())
	}
	w.mu.Unlock()
	slices.Sort(old)
	old = slices.Compact(old) // a pack that came back has two ordinals
	if err := w.claim(ctx, old); err != nil {
		return Result{}, err
	}
	res.Packs = append(res.Packs, old...)
	slices.Sort(res.Packs)
	w.settleImages()
	return res, nil
}

// keep remembers an image that was put whole.
func (w *Writer) keep(img *Image) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.images = append(w.images, img)
}

// settleImages tells the images where everything went.
func (w *Writer) settleImages() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, img := range w.images {
		img.settle(w.own)
	}
	w.images = nil
}

// Abort gives the Writer up and removes its temporary files. Packs that were
// finalised stay until a sweep after the epoch's outcome. Abort may be called
// again, and after Finish, where it does nothing.
//
// It waits for puts that run; cancel their contexts first.
func (w *Writer) Abort() error {
	w.endMu.Lock()
	defer w.endMu.Unlock()
	if w.ended {
		return nil
	}
	w.ended = true
	_ = w.fail(ErrClosed) // so that running puts end soon
	w.stopPuts()
	w.finalising.Wait()
	if err := w.discardOpen(); err != nil {
		return fmt.Errorf("abort writer of %s on %s: %w", w.epoch, w.node, err)
	}
	return nil
}

// stopPuts refuses new puts, waits for the running ones and takes all workers.
func (w *Writer) stopPuts() []*worker {
	close(w.closing)
	workers := make([]*worker, 0, cap(w.workers))
	for range cap(w.workers) {
		workers = append(workers, <-w.workers)
	}
	return workers
}

// discardOpen removes the pack that is being written, if any.
func (w *Writer) discardOpen() error {
	w.mu.Lock()
	open := w.open
	w.open = nil
	w.mu.Unlock()
	if open == nil {
		return nil
	}
	if err := open.Discard(); err != nil && !errors.Is(err, fs.ErrNotExist) { // a sweep may have been first
		return err
	}
	return nil
}

// store compresses a run and appends it to the open pack.
func (w *Writer) store(wk *worker, b *runBuilder) error {
	if len(b.objects) == 0 {
		return nil
	}
	if err := w.firstErr(); err != nil {
		return err
	}
	enc, err := w.encoder.Encode(wk.compressed, b.raw)
	if err != nil {
		return w.fail(err)
	}
	full, err := w.append(enc, b)
	b.reset()
	if err != nil { // a write that was given up may still read them
		wk.compressed, b.raw = nil, nil
	}
	if full != nil {
		w.finals <- struct{}{}
		w.finalising.Go(func() {
			defer func() { <-w.finals }()
			w.finalise(full)
		})
	}
	return err
}

// append returns the pack that had no more room, if it had to begin another.
func (w *Writer) append(enc pack.Encoded, b *runBuilder) (full *pack.Writer, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return nil, w.err
	}
	if w.open != nil && (w.open.Size() >= int64(w.r.cfg.PackBytes) || !w.open.HasRoom(len(b.objects))) {
		full, w.open, w.filled = w.open, nil, true
	}
	if w.open == nil {
		if w.open, err = w.create(); err != nil {
			return full, w.failLocked(err)
		}
	}
	if err := w.open.Append(enc, b.objects); err != nil {
		return full, w.failLocked(err)
	}
	b.run.pack = w.open.ID()
	for i := range b.objects {
		if b.objects[i].Kind == object.KindPage {
			w.unique += object.PageBytes
		}
	}
	return full, nil
}

// create begins a pack. Callers hold mu.
func (w *Writer) create() (*pack.Writer, error) {
	id, err := w.r.newPackID()
	if err != nil {
		return nil, err
	}
	h := pack.Header{ID: id, Repository: w.r.id, Cluster: w.epoch.cluster, Epoch: w.epoch.epoch, Node: w.node}
	temp, final := w.r.packTempPath(id, w.epoch), w.r.packPath(id)
	opt := pack.Options{Domain: w.r.domain}
	if w.r.cfg.Preallocate && w.filled { // who has filled one has much to write
		opt.Room = int64(w.r.cfg.PackBytes)
	}
	p, err := pack.Create(w.r.fs, temp, final, h, opt)
	if !errors.Is(err, fs.ErrNotExist) {
		return p, err
	}
	// The directory is one of those that Create made, unless the repository
	// was copied by a tool that leaves empty directories out.
	if err := w.r.ensureDir(w.r.packsDir()); err != nil {
		return nil, err
	}
	if err := w.r.ensureDir(w.r.packDir(id)); err != nil {
		return nil, err
	}
	return pack.Create(w.r.fs, temp, final, h, opt)
}

// finalise makes a pack durable and known. Its error sticks to the Writer.
func (w *Writer) finalise(p *pack.Writer) {
	objects := p.Objects()
	size, err := p.Finalise()
	if err != nil {
		_ = w.fail(err)
		_ = p.Discard() // the first error tells the story
		return
	}
	ordinal := w.r.index.Add(p.ID(), objects)
	w.pending.remove(objects)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.own[p.ID()] = ordinal
	w.stored += uint64(size)
}

func (w *Writer) firstErr() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

func (w *Writer) fail(err error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.failLocked(err)
}

// failLocked makes err stick. Callers hold w.mu.
func (w *Writer) failLocked(err error) error {
	if w.err == nil {
		w.err = err
	}
	return w.err
}
