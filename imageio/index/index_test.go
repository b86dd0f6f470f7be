package index

import (
	"testing"

	"pgregory.net/rapid"

	"fermata/imageio/object"
	"fermata/imageio/pack"
)

func TestEntry_HoldsEveryLocation(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := Location{
			Pack:   rapid.Uint32().Draw(t, "pack"),
			Run:    rapid.Uint32Range(0, pack.MaxRuns-1).Draw(t, "run"),
			Offset: rapid.Uint32Range(0, pack.MaxRunBytes-1).Draw(t, "offset"),
			Length: rapid.Uint32Range(0, pack.MaxRunBytes).Draw(t, "length"),
		}
		if got := packLocation(want).location(); got != want {
			t.Fatalf("got %+v, want %+v", got, want)
		}
	})
}

func objects(contents ...string) []pack.Object {
	var out []pack.Object
	for i, c := range contents {
		out = append(out, pack.Object{ID: object.Sum([]byte(c)), Kind: object.KindPage, Run: 3, Offset: uint32(i) * 4096, Length: 4096})
	}
	return out
}

func (x *Index) packOf(t *testing.T, content string) (pack.ID, bool) {
	t.Helper()
	loc, ok := x.Lookup(object.Sum([]byte(content)))
	if !ok {
		return pack.ID{}, false
	}
	return x.PackID(loc.Pack), true
}

func TestIndex_FirstPlaceWinsAndRemoveForgets(t *testing.T) {
	x := New()
	one, two := pack.ID{1}, pack.ID{2}
	x.Add(one, objects("a", "b"))
	x.Add(two, objects("b", "c"))
	x.Add(two, objects("never"))
	for content, want := range map[string]pack.ID{"a": one, "b": one, "c": two} {
		if got, ok := x.packOf(t, content); !ok || got != want {
			t.Errorf("%s in pack %s (%v), want %s", content, got, ok, want)
		}
	}
	if x.Len() != 3 {
		t.Errorf("%d objects", x.Len())
	}
	x.Remove([]pack.ID{one, {9}})
	if _, ok := x.packOf(t, "a"); ok || x.Has(one) || !x.Has(two) || x.Len() != 1 {
		t.Errorf("after removal: %d objects, packs %v", x.Len(), x.Packs())
	}
	if x.PackID(0) != one {
		t.Error("an ordinal changed its meaning")
	}
	x.Add(one, objects("a"))
	if got, ok := x.packOf(t, "a"); !ok || got != one {
		t.Error("a pack that came back is not found")
	}
}
