package repository

import (
	"bytes"

	"fermata/imageio/object"
	"fermata/imageio/pack"
)

// worker is what one goroutine needs to turn a leaf's worth of bytes into
// objects, kept from leaf to leaf so that nothing is allocated by page. Its
// open runs are stored by Finish.
type worker struct {
	pages      runBuilder // of pages
	nodes      runBuilder // of leaves, branches and roots: a restart reads them first, so they lie together
	read       []byte     // a leaf's worth of the source
	compressed []byte
	node       []byte // encoding of a node
	children   [object.Fanout]object.ID
	used       map[uint32]struct{} // ordinals of packs whose objects were met again
	lastUsed   uint32              // the latest of used, which is nearly always the next
	holders    holders             // of the leaf in work
}

func newWorker(runBytes int) *worker {
	return &worker{
		pages:      runBuilder{target: runBytes, run: &pendingRun{}},
		nodes:      runBuilder{target: runBytes, run: &pendingRun{}},
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

// stage appends a page, padded with zeros, without making it an object yet.
func (b *runBuilder) stage(page []byte) []byte {
	if b.raw == nil {
		b.raw = make([]byte, 0, b.target)
	}
	start := len(b.raw)
	b.raw = b.raw[:start+object.PageBytes]
	staged := b.raw[start:]
	clear(staged[copy(staged, page):])
	return staged
}

// keep makes the staged page an object, drop forgets it.
func (b *runBuilder) keep(id object.ID) {
	b.objects = append(b.objects, pack.Object{ID: id, Kind: object.KindPage, Length: object.PageBytes})
}

func (b *runBuilder) drop() { b.raw = b.raw[:len(b.raw)-object.PageBytes] }

// add appends an object of any length.
func (b *runBuilder) add(id object.ID, kind object.Kind, data []byte) {
	b.raw = append(b.raw, data...)
	b.objects = append(b.objects, pack.Object{ID: id, Kind: kind, Length: uint32(len(data))})
}

// putPage stores a page that is not all zeros, at most PageBytes of it.
//
// The page is copied before it is hashed, so that a source which changes
// meanwhile yields an old or a new page or a mixture, but never a hash that
// does not belong to its bytes. If it has become zeros, the id is zero.
func (w *Writer) putPage(wk *worker, page []byte) (id object.ID, fresh bool, err error) {
	if len(wk.pages.raw)+object.PageBytes > wk.pages.target {
		if err := w.store(wk, &wk.pages); err != nil {
			return object.ID{}, false, err
		}
	}
	staged := wk.pages.stage(page)
	if isZero(staged) {
		wk.pages.drop()
		return object.ID{}, false, nil
	}
	id = object.Sum(staged)
	if !w.take(wk, id, wk.pages.run) {
		wk.pages.drop()
		return id, false, nil
	}
	wk.pages.keep(id)
	return id, true, nil
}

// sumPage names a page as putPage does, and stores nothing.
func sumPage(_ *worker, page []byte) (id object.ID, fresh bool, err error) {
	if len(page) < object.PageBytes { // once an image
		page = append(make([]byte, 0, object.PageBytes), page...)[:object.PageBytes]
	}
	return object.Sum(page), false, nil
}

// putNode stores a leaf, branch or root.
func (w *Writer) putNode(wk *worker, kind object.Kind, data []byte) (object.ID, error) {
	// Room comes first: who takes an object has to know its run.
	if len(wk.nodes.raw) > 0 && len(wk.nodes.raw)+len(data) > wk.nodes.target {
		if err := w.store(wk, &wk.nodes); err != nil {
			return object.ID{}, err
		}
	}
	id := object.Sum(data)
	if w.take(wk, id, wk.nodes.run) {
		wk.nodes.add(id, kind, data)
	}
	return id, nil
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
