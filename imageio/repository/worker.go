package repository

import (
	"bytes"
	"hash/maphash"

	"fermata/imageio/object"
	"fermata/imageio/pack"
)

// worker is what one goroutine needs to turn a leaf's worth of bytes into
// objects, kept from leaf to leaf so that nothing is allocated by page. Its
// open runs are stored by Finish.
type worker struct {
	openRuns
	read       []byte // a leaf's worth of the source
	compressed []byte
	node       []byte // encoding of a node
	children   [object.Fanout]object.ID
	batch      pageBatch
	printing   bool                // the leaf in work gets a fingerprint
	chunks     []chunk             // what was read of it
	staged     [][]byte            // whole pages of the batch in work
	used       map[uint32]struct{} // ordinals of packs whose objects were met again
	lastUsed   uint32              // the latest of used, which is nearly always the next
	holders    holders             // of the leaf in work
}

func newWorker(runBytes int) *worker {
	return &worker{
		openRuns:   newOpenRuns(runBytes),
		compressed: make([]byte, pack.MaxStoredLen(runBytes)),
		used:       map[uint32]struct{}{},
		lastUsed:   ^uint32(0),
	}
}

func (wk *worker) use(ordinal uint32) {
	if ordinal != wk.lastUsed {
		wk.used[ordinal] = struct{}{}
		wk.lastUsed = ordinal
	}
}

// readBuffer is made when a source cannot lend its memory.
func (wk *worker) readBuffer() []byte {
	if wk.read == nil {
		wk.read = make([]byte, object.LeafBytes)
	}
	return wk.read
}

// pageBatch is pages that are named together.
type pageBatch struct {
	pages [][]byte
	at    []int // among the children of the leaf
	ids   [object.Lanes]object.ID
	// prints are hashes of the very bytes that were named, if they are wanted.
	prints []uint64
}

// openRuns are the runs that are not full yet.
type openRuns struct {
	pages runBuilder // of pages
	nodes runBuilder // of leaves, branches and roots: a restart reads them first, so they lie together
}

func newOpenRuns(target int) openRuns {
	return openRuns{
		pages: runBuilder{target: target, run: &pendingRun{}},
		nodes: runBuilder{target: target, run: &pendingRun{}},
	}
}

// of is the run for objects of a kind.
func (r *openRuns) of(kind object.Kind) *runBuilder {
	if kind == object.KindPage {
		return &r.pages
	}
	return &r.nodes
}

// runBuilder collects objects until they fill a run.
type runBuilder struct {
	target  int // length at which the run is stored
	raw     []byte
	objects []pack.Object
	run     *pendingRun // what the objects will be; another one after each reset
}

func (b *runBuilder) reset() {
	b.run = &pendingRun{}
	b.raw = b.raw[:0]
	b.objects = b.objects[:0]
}

// isFull says that there is no room for so many bytes more. An empty run takes any
// object.
func (b *runBuilder) isFull(more int) bool { return len(b.raw) > 0 && len(b.raw)+more > b.target }

// stage appends copies of pages, padded with zeros, without making them objects yet.
// It returns where each lies.
//
// Preconditions: there is room for them.
func (b *runBuilder) stage(pages [][]byte, at [][]byte) [][]byte {
	if b.raw == nil {
		b.raw = make([]byte, 0, b.target)
	}
	at = at[:0]
	for _, page := range pages {
		start := len(b.raw)
		b.raw = b.raw[:start+object.PageBytes]
		staged := b.raw[start:]
		clear(staged[copy(staged, page):])
		at = append(at, staged)
	}
	return at
}

// add appends an object of any length.
func (b *runBuilder) add(id object.ID, kind object.Kind, data []byte) {
	b.raw = append(b.raw, data...)
	b.objects = append(b.objects, pack.Object{ID: id, Kind: kind, Length: uint32(len(data))})
}

// putPages stores pages that are not all zeros, each at most PageBytes long, and
// writes their ids. fresh is how many bytes of them were stored now.
//
// Pages are copied before they are hashed, so that a source which changes
// meanwhile yields old or new pages or mixtures, but never a hash that does not
// belong to its bytes. Of a page that has become zeros the id is zero.
func (w *Writer) putPages(wk *worker, pages [][]byte, ids []object.ID) (fresh int64, err error) {
	b := &wk.pages
	for len(pages) > 0 {
		room := (b.target - len(b.raw)) / object.PageBytes
		if room == 0 {
			if err := w.store(wk, b); err != nil {
				return fresh, err
			}
			continue
		}
		n := min(len(pages), room, object.Lanes)
		start := len(b.raw)
		wk.staged = b.stage(pages[:n], wk.staged)
		object.SumPages(ids[:n], wk.staged)
		if wk.printing {
			for i, staged := range wk.staged {
				wk.batch.prints = append(wk.batch.prints, maphash.Bytes(w.r.seed, staged[:len(pages[i])]))
			}
		}
		kept := b.raw[:start]
		for i, staged := range wk.staged {
			if isZero(staged) {
				ids[i] = object.ID{}
				continue
			}
			if !w.take(wk, ids[i], b.run) {
				continue
			}
			kept = append(kept, staged...) // to where it is, unless one before was dropped
			b.objects = append(b.objects, pack.Object{ID: ids[i], Kind: object.KindPage, Length: object.PageBytes})
			fresh += int64(len(pages[i]))
		}
		b.raw = kept
		pages, ids = pages[n:], ids[n:]
	}
	return fresh, nil
}

// sumPages names pages as putPages does, and stores nothing.
func sumPages(wk *worker, pages [][]byte, ids []object.ID) (fresh int64, err error) {
	wk.staged = append(wk.staged[:0], pages...)
	for i, page := range pages {
		if len(page) < object.PageBytes { // once an image
			wk.staged[i] = append(make([]byte, 0, object.PageBytes), page...)[:object.PageBytes]
		}
	}
	object.SumPages(ids, wk.staged)
	return 0, nil
}

// putNode stores a leaf, branch or root.
func (w *Writer) putNode(wk *worker, kind object.Kind, data []byte) (object.ID, error) {
	id := object.Sum(data)
	return id, w.put(wk, kind, id, data)
}

// put stores an object in memory, whose id belongs to it.
func (w *Writer) put(wk *worker, kind object.Kind, id object.ID, data []byte) error {
	b := wk.of(kind)
	// Room comes first: who takes an object has to know its run.
	if b.isFull(len(data)) {
		if err := w.store(wk, b); err != nil {
			return err
		}
	}
	if w.take(wk, id, b.run) {
		b.add(id, kind, data)
	}
	return nil
}

// take says whether an object must be stored in run, and notes what holds it.
func (w *Writer) take(wk *worker, id object.ID, run *pendingRun) (store bool) {
	store, at, ordinal := w.pending.take(id, run, w.r.index)
	if at != nil {
		wk.holders.addRun(at)
		return store
	}
	wk.use(ordinal)
	wk.holders.addPack(ordinal)
	return store
}

// isZero says that p is all zeros: its first byte is, and every byte equals
// the one before.
func isZero(p []byte) bool { return p[0] == 0 && bytes.Equal(p[1:], p[:len(p)-1]) }
