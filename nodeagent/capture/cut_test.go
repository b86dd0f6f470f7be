package capture

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"fermata/imageio/extent"
	"fermata/protocol/mustrun"
	"fermata/vmm/uffd"
)

const longPatience = 20 * time.Second

// track begins to track a writer.
func track(t testing.TB, w *writer, budget *Budget) *Tracker {
	t.Helper()
	tr, err := budget.Track(t.Context(), uffd.Process{PID: w.cmd.Process.Pid}, []Block{w.block()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tr.Close(); err != nil {
			t.Error(err)
		}
	})
	return tr
}

// takeCut takes a cut and returns it with what memory was.
func takeCut(t testing.TB, w *writer, tr *Tracker, full bool, patience time.Duration) (*Cut, []byte) {
	t.Helper()
	if err := tr.Arm(t.Context(), full, nil); err != nil {
		t.Fatal(err)
	}
	if rand.IntN(2) == 0 {
		if err := tr.Rearm(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	w.stop()
	c, err := tr.Cut(patience, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := w.memory()
	w.cont()
	return c, want
}

// sweep reads all that a cut takes over what memory was at its base, as several
// workers of a repository's writer do, urgent leaves first.
func sweep(t testing.TB, c *Cut, base []byte, pause func()) []byte {
	t.Helper()
	src, err := c.Source("ram0")
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, src.Size())
	if !src.Full() {
		copy(got, base)
	}
	var leaves []int64
	for e := range src.Data().All() {
		for off := e.Off; off < e.End(); off += leafBytes {
			leaves = append(leaves, off)
		}
	}
	rand.Shuffle(len(leaves), func(i, j int) { leaves[i], leaves[j] = leaves[j], leaves[i] })
	var mu sync.Mutex
	taken := map[int64]bool{}
	next := func() (int64, bool) {
		mu.Lock()
		defer mu.Unlock()
		if off, ok := src.Urgent(); ok && !taken[off] {
			taken[off] = true
			return off, true
		}
		for _, off := range leaves {
			if !taken[off] {
				taken[off] = true
				return off, true
			}
		}
		return 0, false
	}
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for off, ok := next(); ok; off, ok = next() {
				pause()
				if _, err := src.ReadAt(got[off:min(off+leafBytes, src.Size())], off); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	return got
}

// without is memory with zeros in what is hidden.
func without(memory []byte, hidden extent.Set) []byte {
	memory = bytes.Clone(memory)
	for e := range hidden.All() {
		clear(memory[e.Off:e.End()])
	}
	return memory
}

// TestCut_Hides takes one cut after the other of a guest that does nothing, and hides
// now this and now that: a leaf has to be taken anew although nobody wrote to it.
func TestCut_Hides(t *testing.T) {
	mustrun.Need(t, mustrun.UFFD)
	w := startWriter(t, 16<<20)
	w.awaitWrites(2000)
	tr := track(t, w, NewBudget(64<<20))
	w.stop()
	defer w.cont()
	memory := w.memory()
	at := func(page, pages int64) extent.Extent {
		return extent.Extent{Off: page * pageBytes, Len: pages * pageBytes}
	}
	first, second := extent.Of(at(3, 2), at(510, 5)), extent.Of(at(3, 1), at(3000, 700))
	var base []byte
	for i, c := range []struct {
		hidden extent.Set
		keep   bool
		taken  int64 // leaves
	}{
		{first, true, 8},
		{first, true, 0},
		{second, false, 5}, // comes to nothing
		{second, true, 5},
		{second, true, 0},
		{extent.Set{}, true, 4},
	} {
		if err := tr.Arm(t.Context(), false, nil); err != nil {
			t.Fatal(err)
		}
		cut, err := tr.Cut(longPatience, Hidden{"ram0": c.hidden})
		if err != nil {
			t.Fatal(err)
		}
		got := sweep(t, cut, base, func() {})
		differ(t, got, without(memory, c.hidden))
		if taken := cut.Stats().TakenBytes / leafBytes; taken != c.taken {
			t.Errorf("cut %d took %d leaves, want %d", i, taken, c.taken)
		}
		if err := cut.Close(); err != nil {
			t.Fatal(err)
		}
		if c.keep {
			cut.Keep()
			base = got
		}
	}
}

// unreadable maps 16 pages of ones, without those from 4 to 7, and returns the memory
// of this process and where they begin: whoever reads there fails.
func unreadable(t *testing.T) (memory *os.File, at int64) {
	t.Helper()
	mapped, err := mapAnonymous(16 * pageBytes)
	if err != nil {
		t.Fatal(err)
	}
	for i := range mapped {
		mapped[i] = 1
	}
	if err := unmapPart(mapped[4*pageBytes : 8*pageBytes]); err != nil {
		t.Fatal(err)
	}
	memory, err = os.Open("/proc/self/mem")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(memory.Close(), unmapPart(mapped[:4*pageBytes]), unmapPart(mapped[8*pageBytes:])); err != nil {
			t.Error(err)
		}
	})
	return memory, addressOf(mapped)
}

// TestHidden_IsNotRead hides memory that cannot be read.
func TestHidden_IsNotRead(t *testing.T) {
	memory, at := unreadable(t)
	const size = 16 * pageBytes
	hidden := extent.Of(extent.Extent{Off: 4 * pageBytes, Len: 4 * pageBytes})
	want := without(bytes.Repeat([]byte{1}, size), hidden)

	r := &region{name: "ram0", file: memory, base: at, size: size}
	for _, c := range []struct{ off, n int }{{0, size}, {5 * pageBytes, pageBytes}, {3*pageBytes + 7, 2 * pageBytes}, {7 * pageBytes, 9 * pageBytes}} {
		got := bytes.Repeat([]byte{9}, c.n)
		if err := r.readFor(&Cut{hidden: Hidden{"ram0": hidden}}, got, int64(c.off)); err != nil || !bytes.Equal(got, want[c.off:c.off+c.n]) {
			t.Errorf("%+v: %v", c, err)
		}
	}
	if err := r.readFor(&Cut{}, make([]byte, size), 0); err == nil {
		t.Error("it can be read: the test proves nothing")
	}

	budget := NewBudget(1 << 20)
	copied, err := budget.CopyFile(t.Context(), memory, at, size, hidden)
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, size)
	if _, err := copied.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) || copied.Data().Overlaps(extent.Extent{Off: 5 * pageBytes, Len: 1}) {
		t.Errorf("copy: %v", err)
	}
	if err := copied.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := budget.CopyFile(t.Context(), memory, at, size, extent.Set{}); err == nil {
		t.Error("it can be copied: the test proves nothing")
	}
}

func differ(t testing.TB, got, want []byte) {
	t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	for off := 0; off < len(want); off += pageBytes {
		if !bytes.Equal(got[off:off+pageBytes], want[off:off+pageBytes]) {
			t.Fatalf("page %d of the image is not what it was at the cut", off/pageBytes)
		}
	}
}

// TestCut_IsTheMemoryOfItsInstant is the oracle: every image, full or built on
// an earlier one, is byte for byte what memory was while the writer stood still.
func TestCut_IsTheMemoryOfItsInstant(t *testing.T) {
	mustrun.Need(t, mustrun.UFFD)
	rounds := 200
	if testing.Short() {
		rounds = 20
	}
	w := startWriter(t, 32<<20+3*pageBytes) // the last leaf is a short one
	budget := NewBudget(64 << 20)
	tr := track(t, w, budget)
	var base []byte
	var incremental, faults int
	for round := range rounds {
		full := base == nil || rand.IntN(10) == 0
		c, want := takeCut(t, w, tr, full, longPatience)
		slow := time.Duration(rand.IntN(1000)) * time.Microsecond
		got := sweep(t, c, base, func() { time.Sleep(slow) }) // the load, not a wait
		differ(t, got, want)
		faults += int(c.Stats().WriteFaults)
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		if !c.full {
			incremental++
		}
		if rand.IntN(4) > 0 { // else the checkpoint came to nothing
			c.Keep()
			base = want
		}
		if t.Failed() {
			t.Fatalf("round %d", round)
		}
		w.awaitWrites(uint64(rand.IntN(200)))
	}
	if incremental == 0 || faults == 0 {
		t.Errorf("%d incremental cuts, %d faults: the test proves nothing", incremental, faults)
	}
	if free := budget.Free(); free != 64<<20 {
		t.Errorf("budget has %d bytes left, want all", free)
	}
}

// TestCut_TakesOnlyWhatWasWritten writes to one leaf of a memory that nobody
// else writes.
func TestCut_TakesOnlyWhatWasWritten(t *testing.T) {
	mustrun.Need(t, mustrun.UFFD)
	w := startWriter(t, 64<<20)
	tr := track(t, w, NewBudget(64<<20))
	c, want := takeCut(t, w, tr, true, longPatience)
	differ(t, sweep(t, c, nil, func() {}), want)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	c.Keep()
	w.stop() // nothing is written between the two cuts
	defer w.cont()
	before := c.Stats()
	if err := tr.Arm(t.Context(), false, nil); err != nil {
		t.Fatal(err)
	}
	c2, err := tr.Cut(longPatience, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c2.Close()
	src, err := c2.Source("ram0")
	if err != nil {
		t.Fatal(err)
	}
	// What the writer wrote after the first cut, and no more.
	if got := src.Data(); !got.Equal(src.Changed()) || src.Full() {
		t.Errorf("an incremental cut takes %s, changed is %s", got, src.Changed())
	}
	if before.TakenBytes == 0 {
		t.Error("the first cut says that it took nothing")
	}
	for e := range extent.Of(extent.Extent{Len: src.Size()}).Subtract(src.Changed()).All() {
		if !bytes.Equal(want[e.Off:e.End()], w.memory()[e.Off:e.End()]) {
			t.Errorf("memory at %s was changed, and tracking does not say so", e)
		}
	}
}

// TestCut_WriterWaitsWhenTheBudgetIsUsedUp lets a writer dirty far more than
// there is room for.
func TestCut_WriterWaitsWhenTheBudgetIsUsedUp(t *testing.T) {
	mustrun.Need(t, mustrun.UFFD)
	w := startWriter(t, 64<<20)
	budget := NewBudget(slabBytes)
	tr := track(t, w, budget)
	w.awaitWrites(5000)
	c, want := takeCut(t, w, tr, true, longPatience)
	got := sweep(t, c, nil, func() { time.Sleep(2 * time.Millisecond) }) // slow storage
	differ(t, got, want)
	s := c.Stats()
	if s.PeakBytes > slabBytes || s.PeakBytes < slabBytes/2 {
		t.Errorf("pre-images took %d bytes, want nearly the budget of %d", s.PeakBytes, slabBytes)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	w.awaitWrites(1000)
}

// TestCut_IsGivenUpForTheGuest has storage that never comes.
func TestCut_IsGivenUpForTheGuest(t *testing.T) {
	mustrun.Need(t, mustrun.UFFD)
	w := startWriter(t, 64<<20)
	tr := track(t, w, NewBudget(0))
	w.awaitWrites(1000)
	c, _ := takeCut(t, w, tr, true, 100*time.Millisecond)
	w.awaitWrites(1000) // although nobody sweeps
	src, err := c.Source("ram0")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := src.ReadAt(make([]byte, leafBytes), 0); !errors.Is(err, ErrStalled) {
		t.Errorf("read of a cut that was given up: %v, want ErrStalled", err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	// The next one has all that this one would have had.
	c, want := takeCut(t, w, tr, true, longPatience)
	differ(t, sweep(t, c, nil, func() {}), want)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestTracker_EndsWithItsGuest(t *testing.T) {
	mustrun.Need(t, mustrun.UFFD)
	w := startWriter(t, 16<<20)
	tr := track(t, w, NewBudget(16<<20))
	c, _ := takeCut(t, w, tr, true, longPatience)
	w.end()
	src, err := c.Source("ram0")
	if err != nil {
		t.Fatal(err)
	}
	// The file is still there, so the sweep may well succeed; it must not hang.
	_, _ = src.ReadAt(make([]byte, leafBytes), 0)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-tr.served:
	case <-time.After(10 * time.Second):
		t.Fatal("faults of a process that has ended are still waited for")
	}
	if err := tr.Arm(t.Context(), false, nil); err == nil {
		t.Error("memory of a process that has ended can be armed")
	}
}

func TestTracker_CloseLetsTheGuestRun(t *testing.T) {
	mustrun.Need(t, mustrun.UFFD)
	w := startWriter(t, 16<<20)
	budget := NewBudget(0)
	tr, err := budget.Track(t.Context(), uffd.Process{PID: w.cmd.Process.Pid}, []Block{w.block()})
	if err != nil {
		t.Fatal(err)
	}
	takeCut(t, w, tr, true, longPatience)
	if err := tr.Close(); err != nil { // writers wait: there is no room
		t.Fatal(err)
	}
	w.awaitWrites(1000)
	if err := tr.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

func TestTrack_RefusesWhatIsNotMapped(t *testing.T) {
	mustrun.Need(t, mustrun.UFFD)
	w := startWriter(t, 16<<20)
	other, err := os.CreateTemp("/dev/shm", "fermata-capture-test-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(other.Name())
	_, err = NewBudget(0).Track(context.Background(), uffd.Process{PID: w.cmd.Process.Pid}, []Block{{Name: "ram0", File: other, Size: 16 << 20}})
	if err == nil {
		t.Fatal("tracks a file that the process does not map")
	}
	w.awaitWrites(100)
}
