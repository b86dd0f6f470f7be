package capture

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"fermata/vmm"
	"fermata/vmm/uffd"
)

const (
	// trackStep is how much a fault opens while no capture is in progress: the
	// coarser, the fewer faults and the more is read again by the next cut.
	trackStep = 2 << 20

	// captureStep is how much a fault opens, and saves, while every byte of it
	// costs a pause or memory: most guests write on where they have begun.
	captureStep = 16 << 10

	// hotBytes bounds what a cut copies inside the pause of the units that were
	// written shortly before it. Whatever is written then is written again soon
	// after, as a rule; to copy 4 KiB takes about a microsecond, a fault ten.
	hotBytes = 2 << 20

	// warmBytes is the place that is made ready for pre-images before a cut.
	warmBytes = 16 << 20
)

// protector is what a Tracker needs of a userfaultfd.
type protector interface {
	Protect(uffd.Range) error
	Unprotect(uffd.Range) error
	Serve(handle func([]uffd.Fault)) error
	Close() error
}

var _ protector = (*uffd.FD)(nil)

// Block is one block of guest memory.
type Block struct {
	Name   string
	File   *os.File // open for reading; the Tracker's from now on
	Offset int64    // where in File the block begins, bytes
	Size   int64    // bytes, whole pages
	Addr   uint64   // where it begins in the process; 0: where the process maps File
}

// Tracker knows which memory of a guest was written since the last checkpoint,
// and takes cuts of it: see Cut. The guest's pages are write-protected from
// outside (package uffd), and each first write to one is a fault that the
// Tracker serves. When its process dies, the kernel drops the protection and
// the guest runs on.
//
//	Track ── Arm ── Rearm ── Cut ── (sweep) ── Keep ─┐
//	          ▲        guest stands still            │
//	          └──────────────────────────────────────┘
//
// What was written is forgotten only by Cut.Keep, so a checkpoint that came to
// nothing costs the next one more to read, and nothing else.
//
// Lock order (outermost first): Tracker.serving, then leaf.mu, then Tracker.mu,
// Cut.mu or pool.mu, then Budget.mu. Only one leaf is locked at a time.
//
// Concurrency: Arm, Rearm, Cut, Disarm and Close by one goroutine; faults are
// served beside them.
type Tracker struct {
	fd      protector     // immutable
	budget  *Budget       // immutable
	regions []*region     // immutable
	served  chan struct{} // closed when no more faults are served
	closing sync.Once

	cut   atomic.Pointer[Cut] // the newest; nil before the first
	cuts  atomic.Uint64       // how many there were
	armed atomic.Bool         // a cut is near: faults open little

	// serving is held for reading while a fault is served, and for writing by a
	// cut for the moment in which it becomes the newest.
	serving sync.RWMutex

	// Owned by the goroutine that calls Arm and Cut:
	protected bool      // everything was protected once
	base      uint64    // number of the newest cut that was kept; 0: none
	hidden    Hidden    // of that cut
	full      bool      // the next cut takes everything
	pool      *pool     // for the next cut; nil before Arm
	spare     []leafRef // memory for the next takeOpen

	mu   sync.Mutex
	open []leafRef // guarded by mu; leaves that may have open units
	err  error     // guarded by mu; why tracking has ended
}

type leafRef struct {
	region *region
	index  int
}

func (ref leafRef) leaf() *leaf { return &ref.region.leaves[ref.index] }

// Track begins to serve the faults of a process in whose memory the blocks are.
// Nothing is protected before Arm.
//
// On error the blocks' files are closed. vmm.ErrUntrackable: with the reason.
func (b *Budget) Track(ctx context.Context, p uffd.Process, blocks []Block) (_ *Tracker, err error) {
	defer func() {
		if err != nil {
			for _, bl := range blocks {
				err = errors.Join(err, bl.File.Close())
			}
		}
	}()
	var regions []*region
	for _, bl := range blocks {
		r, err := locate(p.PID, bl)
		if err != nil {
			return nil, fmt.Errorf("memory %s: %w", bl.Name, err)
		}
		regions = append(regions, r)
	}
	fd, err := uffd.Take(ctx, p)
	if err != nil {
		return nil, err
	}
	for _, r := range regions {
		if err := fd.Register(uffd.Range{Addr: r.addr, Len: uint64(r.size)}); err != nil {
			return nil, errors.Join(fmt.Errorf("memory %s: %w", r.name, err), fd.Close())
		}
	}
	return b.track(fd, regions), nil
}

func (b *Budget) track(fd protector, regions []*region) *Tracker {
	t := &Tracker{fd: fd, budget: b, regions: regions, served: make(chan struct{})}
	leaves := 0
	for _, r := range regions {
		leaves += len(r.leaves)
	}
	// So that no fault and no cut has to allocate.
	t.open, t.spare = make([]leafRef, 0, leaves), make([]leafRef, 0, leaves)
	go func() {
		defer close(t.served)
		if err := fd.Serve(t.serve); err != nil {
			t.fail(fmt.Errorf("serve write faults: %w", err))
		}
	}()
	return t
}

// locate finds where a block lies in a process.
func locate(pid int, b Block) (*region, error) {
	fi, err := b.File.Stat()
	if err != nil {
		return nil, err
	}
	if b.Addr != 0 {
		// The caller knows; a wrong address is refused when it is registered.
		m := uffd.Mapping{Range: uffd.Range{Addr: b.Addr, Len: uint64(b.Size)}, PageBytes: uffd.PageBytes(fi)}
		return regionOf(b, m)
	}
	maps, err := uffd.Mappings(pid, fi)
	if err != nil {
		return nil, err
	}
	if len(maps) != 1 || maps[0].Offset != 0 || maps[0].Len < uint64(b.Size) || !maps[0].Shared {
		return nil, fmt.Errorf("%w: it is not mapped once, whole and shared in process %d (%d mappings)", vmm.ErrUntrackable, pid, len(maps))
	}
	return regionOf(b, maps[0])
}

func regionOf(b Block, m uffd.Mapping) (*region, error) {
	if unit := int64(m.PageBytes); unit > leafBytes || b.Size%unit != 0 {
		return nil, fmt.Errorf("%w: pages of %d bytes, at most %d are supported", vmm.ErrUntrackable, unit, leafBytes)
	}
	return newRegion(b, m), nil
}

// Err says why the Tracker is of no use any more; nil while it is.
func (t *Tracker) Err() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.err
}

// Held returns what a guard has to know to drop the protection when this process
// hangs: the number of the userfaultfd and what it holds (uffd.Revoke).
func (t *Tracker) Held() (fd int, ranges []uffd.Range) {
	for _, r := range t.regions {
		ranges = append(ranges, uffd.Range{Addr: r.addr, Len: uint64(r.size)})
	}
	if f, ok := t.fd.(*uffd.FD); ok {
		return f.Number(), ranges
	}
	return -1, ranges
}

// Check fails once the protection was dropped behind our back: writes were then
// not seen. To protect a page again that the guest may write to costs one fault.
func (t *Tracker) Check() error {
	if err := t.Err(); err != nil {
		return err
	}
	for _, r := range t.regions {
		if err := t.fd.Protect(r.units(0, 0, 1)); err != nil {
			err = fmt.Errorf("memory %s: %w", r.name, err)
			t.fail(err)
			return err
		}
	}
	return nil
}

// fail ends tracking: the protection is dropped and the guest runs on.
func (t *Tracker) fail(err error) {
	t.mu.Lock()
	first := t.err == nil
	if first {
		t.err = err
	}
	t.mu.Unlock()
	if !first {
		return
	}
	if c := t.cut.Load(); c != nil {
		c.end(err)
	}
	// Close waits for Serve, which may be our caller.
	go func() { _ = t.fd.Close() }()
}

// Turn is given a piece of work, does it once, and returns its error. It may wait before
// and after, where processors are needed for something better. Nil: work is done at once.
type Turn func(work func() error) error

func (t Turn) do(work func() error) error {
	if t == nil {
		return work()
	}
	return t(work)
}

// Arm protects all memory that is open, while the guest runs, so that a cut soon
// after has little to do. full: the cut is to take all memory, not only what was
// written since the one that was kept last; it always does when there is none. turn is
// given the work in pieces of about a millisecond.
//
// Cost: about 50 ms a GiB the first time (experiments/pause); then in
// proportion to what was written.
//
// Its error says that tracking has ended, or ctx: Err tells.
func (t *Tracker) Arm(ctx context.Context, full bool, turn Turn) error {
	if err := t.Check(); err != nil {
		return err
	}
	if t.pool == nil {
		t.pool = newPool(t.budget, t.unit())
	}
	if err := t.pool.warm(warmBytes, turn); err != nil {
		return err
	}
	t.full = full || t.base == 0
	t.armed.Store(true)
	if !t.protected {
		if err := t.protectAll(ctx, turn); err != nil {
			return err
		}
		t.protected = true
	} else if err := t.protectOpen(ctx); err != nil {
		return err
	}
	if !t.full {
		return nil
	}
	// After protecting: what fills a hole from now on is a write that is seen.
	for _, r := range t.regions {
		if err := r.findData(); err != nil {
			return err
		}
	}
	return nil
}

// unit is the largest unit of the regions: a slot must hold every one.
func (t *Tracker) unit() int64 {
	unit := int64(pageBytes)
	for _, r := range t.regions {
		unit = max(unit, r.unit)
	}
	return unit
}

// protectBytes bounds one call of the first protection: the call keeps the
// process from mapping memory, and the guest's faults from being served, while
// it lasts.
const protectBytes = 4 << 20

func (t *Tracker) protectAll(ctx context.Context, turn Turn) error {
	for _, r := range t.regions {
		for off := int64(0); off < r.size; off += protectBytes {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			piece := uffd.Range{Addr: r.addr + uint64(off), Len: uint64(min(protectBytes, r.size-off))}
			if err := turn.do(func() error { return t.fd.Protect(piece) }); err != nil {
				return fmt.Errorf("protect memory %s: %w", r.name, err)
			}
		}
	}
	return nil
}

// Rearm protects again what was written since Arm, if that is more than a cut
// copies inside the pause. The guest runs; the cut follows at once.
func (t *Tracker) Rearm(ctx context.Context) error {
	if err := t.Err(); err != nil {
		return err
	}
	if t.openBytes() <= hotBytes {
		return nil
	}
	return t.protectOpen(ctx)
}

func (t *Tracker) openBytes() (n int64) {
	t.mu.Lock()
	refs := append([]leafRef(nil), t.open...)
	t.mu.Unlock()
	for _, ref := range refs {
		l := ref.leaf()
		l.mu.Lock()
		n += int64(l.open.count()) * ref.region.unit
		l.mu.Unlock()
	}
	return n
}

// protectOpen protects the open units of all leaves.
func (t *Tracker) protectOpen(ctx context.Context) error {
	for _, ref := range t.takeOpen() {
		if ctx.Err() != nil {
			t.list(ref) // and what comes behind it
			continue
		}
		l := ref.leaf()
		l.mu.Lock()
		err := t.protectUnits(ref, l)
		l.mu.Unlock()
		if err != nil {
			t.fail(err) // which units are protected is not known any more
			return err
		}
	}
	return context.Cause(ctx)
}

// protectUnits closes all open units of a leaf.
//
// Preconditions: the leaf is locked and not in Tracker.open.
func (t *Tracker) protectUnits(ref leafRef, l *leaf) error {
	l.listed = false
	for first, n := range l.open.runs() {
		if err := t.fd.Protect(ref.region.units(ref.index, first, n)); err != nil {
			return fmt.Errorf("protect memory %s: %w", ref.region.name, err)
		}
	}
	l.open = bitmap{}
	return nil
}

// takeOpen empties the list of leaves with open units. What it returns is valid
// until the next call.
func (t *Tracker) takeOpen() []leafRef {
	t.mu.Lock()
	defer t.mu.Unlock()
	refs := t.open
	t.open, t.spare = t.spare[:0], refs
	return refs
}

// list notes that a leaf has open units.
func (t *Tracker) list(ref leafRef) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.open = append(t.open, ref)
}

// Disarm says that the cut does not come. It is idempotent.
func (t *Tracker) Disarm() error {
	t.armed.Store(false)
	if t.pool == nil {
		return nil
	}
	p := t.pool
	t.pool = nil
	return p.close()
}

// Close ends tracking: all protection is dropped, and a cut that is being swept
// fails. The guest runs on. It is idempotent.
func (t *Tracker) Close() (err error) {
	t.closing.Do(func() {
		t.fail(errors.New("tracking was ended"))
		err = errors.Join(t.fd.Close(), t.Disarm())
		<-t.served
		for _, r := range t.regions {
			err = errors.Join(err, r.file.Close())
		}
	})
	return err
}

// serve handles faults. It allocates nothing.
func (t *Tracker) serve(faults []uffd.Fault) {
	begun := time.Now()
	for _, f := range faults {
		if err := t.fault(f.Addr, begun); err != nil {
			t.fail(err)
			return
		}
	}
}

func (t *Tracker) fault(addr uint64, begun time.Time) error {
	for _, r := range t.regions {
		if addr < r.addr || addr-r.addr >= uint64(r.size) {
			continue
		}
		off := int64(addr - r.addr)
		t.serving.RLock()
		defer t.serving.RUnlock()
		return t.write(leafRef{r, int(off / leafBytes)}, int(off%leafBytes/r.unit), begun)
	}
	return fmt.Errorf("write fault at %#x, which is not guest memory", addr)
}

// write lets the guest write to a unit.
func (t *Tracker) write(ref leafRef, unit int, begun time.Time) error {
	l := ref.leaf()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open.has(unit) { // a neighbour's fault was first
		return t.unprotect(ref, unit, 1)
	}
	var first, n int
	c := t.cut.Load()
	switch {
	case c != nil && l.meet(c):
		c.faults.Add(1)
		var saved bool
		if first, n, saved = c.saveAround(ref, l, unit); !saved {
			l.blocked.set(unit)
			c.block(ref, begun)
			return nil
		}
	case t.armed.Load():
		first, n = ref.region.around(ref.index, unit, captureStep)
	default:
		first, n = ref.region.around(ref.index, unit, trackStep)
	}
	if err := t.openUnits(ref, l, first, n); err != nil {
		return err
	}
	if c != nil && !c.ended.Load() {
		c.waited(time.Since(begun))
	}
	return nil
}

// openUnits opens units of a leaf.
//
// Preconditions: the leaf is locked, and has met the newest cut.
func (t *Tracker) openUnits(ref leafRef, l *leaf, first, n int) error {
	l.open.add(first, n)
	l.touched = t.cuts.Load() + 1
	if !l.listed {
		l.listed = true
		t.list(ref)
	}
	return t.unprotect(ref, first, n)
}

func (t *Tracker) unprotect(ref leafRef, first, n int) error {
	if err := t.fd.Unprotect(ref.region.units(ref.index, first, n)); err != nil {
		return fmt.Errorf("open memory %s: %w", ref.region.name, err)
	}
	return nil
}
