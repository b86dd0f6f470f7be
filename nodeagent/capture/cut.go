package capture

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"fermata/imageio/extent"
)

// ErrStalled means that a guest's write has waited too long for the sweep, so
// that the cut was given up for the guest's sake.
var ErrStalled = errors.New("guest waited too long for storage")

// Cut is a guest's memory as it was at one instant, read while the guest runs
// on. Each unit's content is taken exactly once: by the sweep that reads a
// Source, or as a pre-image before the guest writes to it.
//
// Pre-images take memory from the Budget. When it is used up, a guest that
// writes to a unit not yet swept waits until the sweep has come to that unit,
// which it does next (Urgent). When it has waited for as long as the cut's
// patience, the cut is given up and every reader of a Source gets ErrStalled.
//
// Concurrency: safe for use by several goroutines, but for Keep.
type Cut struct {
	tracker  *Tracker
	number   uint64        // immutable; counted from 1
	base     uint64        // immutable; the cut it builds on; 0: none
	full     bool          // immutable
	patience time.Duration // immutable
	pool     *pool         // immutable
	hidden   Hidden        // immutable

	ending sync.Once
	ended  atomic.Bool // set before the leaves are let go of

	faults  atomic.Uint64
	longest atomic.Int64 // nanoseconds
	taken   atomic.Int64 // bytes of the Sources that were asked for
	copied  int64        // immutable after Tracker.Cut; bytes

	mu    sync.Mutex
	err   error       // guarded by mu; why the cut was given up
	waits []wait      // guarded by mu; leaves with blocked writers, oldest first
	stall *time.Timer // guarded by mu; runs while waits is not empty
}

// wait is a leaf that somebody waits for.
type wait struct {
	leafRef
	since time.Time
}

// Hidden is memory that is not read, and taken for zeros: whole pages, by name of the
// block.
type Hidden map[string]extent.Set

// Cut fixes the instant. The guest stands still and nothing writes its memory
// until Cut has returned. patience bounds how long a write of the guest may wait
// later on. hidden is not read for this cut, and is the Cut's from now on.
//
// Its cost grows with what was written since Arm or Rearm, not with memory.
//
// Preconditions: Arm. On error there is no cut; what was written is still known.
func (t *Tracker) Cut(patience time.Duration, hidden Hidden) (*Cut, error) {
	if err := t.Err(); err != nil {
		return nil, err
	}
	if t.pool == nil {
		return nil, errors.New("cut of memory that was not armed")
	}
	c := &Cut{
		tracker: t, number: t.cuts.Load() + 1, base: t.base, full: t.full,
		patience: patience, pool: t.pool, hidden: hidden,
	}
	t.pool = nil
	// What is hidden now and was not, or was and is not, differs from the base
	// although nobody has written to it.
	for _, r := range t.regions {
		r.touch(hidden[r.name].Subtract(t.hidden[r.name]), c.number)
		r.touch(t.hidden[r.name].Subtract(hidden[r.name]), c.number)
	}
	for _, ref := range t.enter(c) {
		if err := t.close(c, ref); err != nil {
			t.fail(err)
			return nil, errors.Join(err, c.Close())
		}
	}
	return c, nil
}

// enter makes c the cut that faults meet, and returns the leaves that may have
// open units. A fault is served wholly before or wholly after: one that was read
// from the kernel before the guest stopped may be served only now, and would
// else open a unit that the cut does not know of.
func (t *Tracker) enter(c *Cut) []leafRef {
	t.serving.Lock()
	defer t.serving.Unlock()
	t.cuts.Store(c.number)
	t.cut.Store(c)
	t.armed.Store(false)
	return t.takeOpen()
}

// close makes the open units of a leaf safe: copied as long as they are few,
// protected beyond.
func (t *Tracker) close(c *Cut, ref leafRef) error {
	l := ref.leaf()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.meet(c) // before openUnits says that it was touched after the cut
	hot := l.open
	for first, n := range hot.runs() {
		for ; n > 0 && c.copied < hotBytes && c.save(ref, l, first); first, n = first+1, n-1 {
			c.copied += ref.region.unit
		}
		if n > 0 {
			if err := t.fd.Protect(ref.region.units(ref.index, first, n)); err != nil {
				return fmt.Errorf("protect memory %s: %w", ref.region.name, err)
			}
			l.open.remove(first, n)
		}
	}
	if l.listed = !l.open.empty(); l.listed {
		l.touched = c.number + 1
		t.list(ref)
	}
	return nil
}

// save takes the pre-image of a unit, or says that there is no room for it.
//
// Preconditions: the leaf is locked, has met c, and nothing writes the unit.
func (c *Cut) save(ref leafRef, l *leaf, unit int) bool {
	i, b, ok := c.pool.take(unit, l.images)
	if !ok {
		return false
	}
	unitBytes := ref.region.unit
	if err := ref.region.readFor(c, b[:unitBytes], int64(ref.index)*leafBytes+int64(unit)*unitBytes); err != nil {
		c.pool.put(i)
		// The writer would wait for ever; the guest comes first.
		go c.end(err)
		return false
	}
	l.images = i
	l.saved.set(unit)
	return true
}

// saveAround saves a unit and what lies around it, up to captureStep, and
// returns the run of saved units that holds it.
//
// Preconditions: as for save, of all units that are not saved.
func (c *Cut) saveAround(ref leafRef, l *leaf, unit int) (first, n int, ok bool) {
	saved := func(u int) bool { return l.saved.has(u) || c.save(ref, l, u) }
	if !saved(unit) {
		return 0, 0, false
	}
	begin, count := ref.region.around(ref.index, unit, captureStep)
	// An open unit is written to by the guest as it likes; it was saved before.
	first, end := unit, unit+1
	for first > begin && saved(first-1) {
		first--
	}
	for end < begin+count && saved(end) {
		end++
	}
	return first, end - first, true
}

// block notes that a writer waits for a leaf.
//
// Preconditions: the leaf is locked.
func (c *Cut) block(ref leafRef, since time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if slices.ContainsFunc(c.waits, func(w wait) bool { return w.leafRef == ref }) {
		return
	}
	c.waits = append(c.waits, wait{ref, since})
	if c.stall == nil {
		c.stall = time.AfterFunc(time.Until(since.Add(c.patience)), c.checkPatience)
	}
}

// unblock forgets who waited for a leaf, and says since when.
//
// Preconditions: the leaf is locked.
func (c *Cut) unblock(ref leafRef) (since time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.IndexFunc(c.waits, func(w wait) bool { return w.leafRef == ref })
	if i < 0 {
		return time.Now()
	}
	since = c.waits[i].since
	c.waits = slices.Delete(c.waits, i, i+1)
	return since
}

// Urgent tells whether a write of the guest waits for the sweep.
func (c *Cut) Urgent() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.waits) > 0
}

// checkPatience gives the cut up if somebody has waited too long.
func (c *Cut) checkPatience() {
	c.mu.Lock()
	c.stall = nil
	var left time.Duration
	if len(c.waits) > 0 {
		if left = time.Until(c.waits[0].since.Add(c.patience)); left > 0 {
			c.stall = time.AfterFunc(left, c.checkPatience)
		}
	}
	stalled := len(c.waits) > 0 && left <= 0
	c.mu.Unlock()
	if stalled {
		c.end(fmt.Errorf("%w: %s", ErrStalled, c.patience))
	}
}

func (c *Cut) waited(d time.Duration) {
	for {
		longest := c.longest.Load()
		if int64(d) <= longest || c.longest.CompareAndSwap(longest, int64(d)) {
			return
		}
	}
}

// end gives the cut up: whoever waits goes on, and readers get err. It returns
// when all that is done. Later calls do nothing.
func (c *Cut) end(err error) {
	var failed []error
	t := c.tracker
	c.ending.Do(func() {
		c.mu.Lock()
		c.err = err
		c.mu.Unlock()
		c.ended.Store(true)
		for _, r := range t.regions {
			for i := range r.leaves {
				if err := t.letGo(c, leafRef{r, i}); err != nil {
					failed = append(failed, err)
				}
			}
		}
		// Nobody can reach the pool any more: who holds a leaf's lock sees ended.
		failed = append(failed, c.pool.close())
	})
	if err := errors.Join(failed...); err != nil {
		t.fail(err)
	}
}

// letGo opens what is blocked in a leaf of a cut that has ended.
func (t *Tracker) letGo(c *Cut, ref leafRef) error {
	l := ref.leaf()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.seen != c.number {
		return nil
	}
	l.images = noSlot
	if l.blocked.empty() {
		return nil
	}
	blocked := l.blocked
	l.blocked = bitmap{}
	c.waited(time.Since(c.unblock(ref)))
	for first, n := range blocked.runs() {
		if err := t.openUnits(ref, l, first, n); err != nil {
			return err
		}
	}
	return nil
}

// Whole says whether all that was read is of the cut: nil once every Source was
// read to its end, and no write of the guest can have passed unseen.
func (c *Cut) Whole() error {
	if c.ended.Load() {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.err
	}
	return c.tracker.Check()
}

// Close frees what the cut holds. A Source that is being read fails.
func (c *Cut) Close() error {
	c.end(errors.New("the cut is closed"))
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stall != nil {
		c.stall.Stop()
		c.stall = nil
	}
	return nil
}

// Keep says that the cut is part of a durable checkpoint, on which the next one
// builds. Only now what it took is forgotten.
//
// Concurrency: like Tracker.Arm.
func (c *Cut) Keep() { c.tracker.base, c.tracker.hidden = c.number, c.hidden }

// Stats is what a cut has cost.
type Stats struct {
	WriteFaults uint64        // writes of the guest that met a unit not yet swept or saved
	LongestWait time.Duration // of one write
	CopiedBytes int64         // inside the pause
	TakenBytes  int64         // what had to be read, in whole leaves
	PeakBytes   int64         // of pre-images at once
}

// Stats returns what the cut has cost so far.
func (c *Cut) Stats() Stats {
	return Stats{
		WriteFaults: c.faults.Load(), LongestWait: time.Duration(c.longest.Load()),
		CopiedBytes: c.copied, TakenBytes: c.taken.Load(), PeakBytes: c.pool.peakBytes(),
	}
}

// extents returns the leaves of r for which f holds.
func (c *Cut) extents(r *region, f func(*leaf) bool) (set extent.Set) {
	for i := range r.leaves {
		l := &r.leaves[i]
		l.mu.Lock()
		l.meet(c)
		in := f(l)
		l.mu.Unlock()
		if in {
			set.Add(r.leafExtent(i))
		}
	}
	return set
}
