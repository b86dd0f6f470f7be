package extent

import (
	"math"
	"testing"

	"pgregory.net/rapid"
)

// universe is small enough for a bitmap to be the dumb model of a Set.
const universe = 96

func drawExtent(t *rapid.T) Extent {
	off := rapid.Int64Range(0, universe-1).Draw(t, "off")
	return Extent{Off: off, Len: rapid.Int64Range(0, universe-off).Draw(t, "len")}
}

type model [universe]bool

func (m *model) set(e Extent, v bool) {
	for i := e.Off; i < e.End(); i++ {
		m[i] = v
	}
}

func (m *model) check(t *rapid.T, s Set) {
	var got model
	prev := int64(-1)
	for e := range s.All() {
		if e.Len <= 0 || e.Off <= prev {
			t.Fatalf("set %v is not canonical", s)
		}
		prev = e.End()
		got.set(e, true)
	}
	if got != *m {
		t.Fatalf("set %v differs from the model", s)
	}
}

func TestSet_AgreesWithBitmap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s Set
		var m model
		for range rapid.IntRange(0, 30).Draw(t, "steps") {
			e := drawExtent(t)
			if rapid.Bool().Draw(t, "add") {
				s.Add(e)
				m.set(e, true)
			} else {
				s.Remove(e)
				m.set(e, false)
			}
			m.check(t, s)
		}
		probe := drawExtent(t)
		all, some, bytes := true, false, int64(0)
		for i, in := range m {
			if in {
				bytes++
			}
			if int64(i) >= probe.Off && int64(i) < probe.End() {
				all, some = all && in, some || in
			}
		}
		if s.Contains(probe) != all || s.Overlaps(probe) != some || s.Bytes() != bytes {
			t.Fatalf("set %v probe %v: contains %v overlaps %v bytes %d, want %v %v %d",
				s, probe, s.Contains(probe), s.Overlaps(probe), s.Bytes(), all, some, bytes)
		}
		within := m
		for i := range within {
			within[i] = within[i] && int64(i) >= probe.Off && int64(i) < probe.End()
		}
		within.check(t, s.Within(probe))
	})
}

func TestSet_UnionAndSubtract(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var a, b Set
		var u, d model
		for range 5 {
			e := drawExtent(t)
			a.Add(e)
			u.set(e, true)
			d.set(e, true)
		}
		for range 5 {
			e := drawExtent(t)
			b.Add(e)
			u.set(e, true)
			d.set(e, false)
		}
		u.check(t, a.Union(b))
		d.check(t, a.Subtract(b))
		if !a.Union(b).Equal(b.Union(a)) {
			t.Fatalf("union of %v and %v depends on the order", a, b)
		}
	})
}

func TestRoundOut_CoversWithWholePages(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := Extent{Off: rapid.Int64Range(0, 1<<40).Draw(t, "off"), Len: rapid.Int64Range(0, 1<<30).Draw(t, "len")}
		page := int64(1) << rapid.IntRange(0, 21).Draw(t, "shift")
		r := e.RoundOut(page)
		if e.Empty() != r.Empty() {
			t.Fatalf("%v rounded out to %v", e, r)
		}
		if r.Off%page != 0 || r.Len%page != 0 || r.Off > e.Off || !r.Empty() && r.End() < e.End() || r.Len >= e.Len+2*page {
			t.Fatalf("%v rounded out to %d: %v", e, page, r)
		}
	})
}

func TestSet_RoundOutMergesNeighbours(t *testing.T) {
	s := Of(Extent{1, 1}, Extent{4095, 2}, Extent{9000, 1}).RoundOut(4096)
	if want := Of(Extent{0, 3 * 4096}); !s.Equal(want) {
		t.Fatalf("got %v, want %v", s, want)
	}
}

func TestExtent_Valid(t *testing.T) {
	for _, c := range []struct {
		e    Extent
		want bool
	}{
		{Extent{0, 0}, true}, {Extent{5, 7}, true}, {Extent{-1, 2}, false}, {Extent{1, -2}, false},
		{Extent{math.MaxInt64, 1}, false}, {Extent{1, math.MaxInt64}, false}, {Extent{math.MaxInt64, 0}, true},
	} {
		if c.e.Valid() != c.want {
			t.Errorf("%v valid: %v, want %v", c.e, c.e.Valid(), c.want)
		}
	}
}

func TestSet_RefusesInvalidExtent(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Fatal("no panic for a negative length")
		}
	}()
	var s Set
	s.Add(Extent{Off: 1, Len: -1})
}
