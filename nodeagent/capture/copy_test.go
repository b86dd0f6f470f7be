package capture

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"pgregory.net/rapid"

	"fermata/imageio/extent"
)

// sparseFile writes data at the given pages of a file of size bytes.
func sparseFile(t testing.TB, dir string, size int64, pages map[int64][]byte) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "ram"))
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	for n, b := range pages {
		if _, err := f.WriteAt(b, n*pageBytes); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

func TestCopyFile_EqualsTheFile(t *testing.T) {
	root := "/dev/shm" // guests' memory lies on tmpfs, whose holes are of its own kind
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp(root, "fermata-capture-test-")
		if err != nil {
			rt.Fatal(err)
		}
		defer os.RemoveAll(dir)
		size := rapid.Int64Range(1, 64*pageBytes).Draw(rt, "size")
		pages := map[int64][]byte{}
		for _, n := range rapid.SliceOfN(rapid.Int64Range(0, (size-1)/pageBytes), 0, 20).Draw(rt, "pages") {
			b := make([]byte, min(pageBytes, size-n*pageBytes))
			if rapid.Bool().Draw(rt, "non-zero") {
				b[rand.IntN(len(b))] = 1
			}
			pages[n] = b
		}
		f := sparseFile(t, dir, size, pages)
		defer f.Close()
		want, err := os.ReadFile(f.Name())
		if err != nil {
			rt.Fatal(err)
		}
		budget := NewBudget(1 << 20)
		take := func(ctx context.Context, f *os.File, size int64, hidden extent.Set) (*Copy, error) {
			return budget.CopyFile(ctx, f, 0, size, hidden)
		}
		if size%pageBytes == 0 && rapid.Bool().Draw(rt, "memory") {
			take = budget.CopyMemory
		}
		var hidden extent.Set
		if first := rapid.Int64Range(0, (size-1)/pageBytes).Draw(rt, "first hidden page"); rapid.Bool().Draw(rt, "hide") {
			hidden.Add(extent.Extent{Off: first * pageBytes, Len: rapid.Int64Range(1, 8).Draw(rt, "hidden pages") * pageBytes})
			for e := range hidden.Within(extent.Extent{Len: size}).All() {
				clear(want[e.Off:e.End()])
			}
		}
		c, err := take(t.Context(), f, size, hidden)
		if err != nil {
			rt.Fatal(err)
		}
		// The copy must not see what is written after it was taken.
		if _, err := f.WriteAt(bytes.Repeat([]byte{0xff}, int(size)), 0); err != nil {
			rt.Fatal(err)
		}
		got, err := io.ReadAll(io.NewSectionReader(c, 0, c.Size()))
		if err != nil {
			rt.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			rt.Fatal("copy differs from the file")
		}
		for off := int64(0); off < size; off += pageBytes {
			if !isZeroSlow(want[off:min(off+pageBytes, size)]) && !c.Data().Overlaps(extent.Extent{Off: off, Len: 1}) {
				rt.Fatalf("page at %d holds data, Data leaves it out", off)
			}
		}
		if err := errors.Join(c.Close(), c.Close()); err != nil {
			rt.Fatal(err)
		}
		if budget.free != 1<<20 {
			rt.Fatalf("budget has %d bytes left after Close, want all", budget.free)
		}
	})
}

func isZeroSlow(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }

func TestCopyFile_RefusesOverBudget(t *testing.T) {
	f := sparseFile(t, t.TempDir(), 16*pageBytes, map[int64][]byte{0: bytes.Repeat([]byte{1}, 4*pageBytes)})
	defer f.Close()
	budget := NewBudget(3 * pageBytes)
	if _, err := budget.CopyFile(t.Context(), f, 0, 16*pageBytes, extent.Set{}); !errors.Is(err, ErrOverBudget) {
		t.Fatalf("error = %v, want ErrOverBudget", err)
	}
	if budget.free != 3*pageBytes {
		t.Errorf("a refused copy took %d bytes", 3*pageBytes-budget.free)
	}
}

func TestCopy_GivesUpWithItsContext(t *testing.T) {
	f := sparseFile(t, t.TempDir(), 4*pageBytes, map[int64][]byte{0: bytes.Repeat([]byte{1}, 4*pageBytes)})
	defer f.Close()
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("pause is over")
	budget := NewBudget(1 << 20)
	fill := func([]byte, extent.Set) error {
		cancel(stop) // in the middle of the work
		return eachPiece(ctx, extent.Of(extent.Extent{Len: 1 << 40}), func(extent.Extent) error { return nil })
	}
	if _, err := budget.copy(ctx, f, 0, 4*pageBytes, extent.Set{}, fill); !errors.Is(err, stop) {
		t.Errorf("error = %v, want the context's cause", err)
	}
	if budget.free != 1<<20 {
		t.Errorf("a copy that was given up keeps %d bytes", 1<<20-budget.free)
	}
	if _, err := budget.CopyMemory(ctx, f, 4*pageBytes, extent.Set{}); !errors.Is(err, stop) {
		t.Errorf("error = %v, want the context's cause", err)
	}
}

func TestIsZero(t *testing.T) {
	b, err := mapAnonymous(2 * pageBytes)
	if err != nil {
		t.Fatal(err)
	}
	if !isZero(b) {
		t.Error("fresh memory is not zero")
	}
	for i := range b {
		b[i] = 1
		if isZero(b) {
			t.Fatalf("byte %d went unseen", i)
		}
		b[i] = 0
	}
}

// BenchmarkCopyFile copies memory as a pause does; compare with memory bandwidth.
func BenchmarkCopyFile(b *testing.B) {
	const size = 64 << 20
	dir, err := os.MkdirTemp("/dev/shm", "fermata-capture-bench-")
	if err != nil {
		b.Fatal(err)
	}
	defer os.RemoveAll(dir)
	f := sparseFile(b, dir, size, map[int64][]byte{0: bytes.Repeat([]byte{7}, size)})
	defer f.Close()
	b.SetBytes(size)
	for b.Loop() {
		c, err := NewBudget(size).CopyMemory(b.Context(), f, size, extent.Set{})
		if err != nil {
			b.Fatal(err)
		}
		if err := c.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

// TestWarm_CopiesWhatIsThereAtTheCut changes memory between the two calls.
func TestWarm_CopiesWhatIsThereAtTheCut(t *testing.T) {
	f := sparseFile(t, t.TempDir(), 64*pageBytes, map[int64][]byte{1: bytes.Repeat([]byte{1}, pageBytes), 2: bytes.Repeat([]byte{2}, pageBytes)})
	defer f.Close()
	budget := NewBudget(1 << 20)
	w, err := budget.Warm(t.Context(), f, 64*pageBytes)
	if err != nil {
		t.Fatal(err)
	}
	// The guest goes on: it clears a page, changes one, and touches a new one.
	for n, b := range map[int64]byte{1: 0, 2: 7, 40: 9} {
		if _, err := f.WriteAt(bytes.Repeat([]byte{b}, pageBytes), n*pageBytes); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	c, err := w.Copy(t.Context(), f, extent.Set{})
	if err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(io.NewSectionReader(c, 0, c.Size()))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("the copy is not what was there at the cut")
	}
	if err := errors.Join(c.Close(), w.Close()); err != nil {
		t.Fatal(err)
	}
	if free := budget.Free(); free != 1<<20 {
		t.Errorf("budget has %d bytes left, want all", free)
	}
}

func TestWarm_GrowsWithinTheBudgetOnly(t *testing.T) {
	f := sparseFile(t, t.TempDir(), 64*pageBytes, map[int64][]byte{0: bytes.Repeat([]byte{1}, 2*pageBytes)})
	defer f.Close()
	budget := NewBudget(3 * pageBytes)
	w, err := budget.Warm(t.Context(), f, 64*pageBytes)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(bytes.Repeat([]byte{1}, 2*pageBytes), 32*pageBytes); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Copy(t.Context(), f, extent.Set{}); !errors.Is(err, ErrOverBudget) {
		t.Errorf("copy beyond the budget: %v", err)
	}
	if free := budget.Free(); free != 3*pageBytes {
		t.Errorf("budget has %d bytes left, want all", free)
	}
}
