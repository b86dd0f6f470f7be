package index

import (
	"encoding/binary"
	"math/rand/v2"
	"runtime"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"fermata/imageio/object"
	"fermata/imageio/pack"
)

// TestIndex_IsAMap compares an index with maps, pack by pack, through removals that
// free numbers for later packs.
func TestIndex_IsAMap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x := New()
		type place struct {
			pack pack.ID
			loc  Location
		}
		known := map[pack.ID][]pack.Object{}
		var order []pack.ID
		var next byte
		check := func() {
			want := map[object.ID]place{}
			for _, id := range order {
				for _, o := range known[id] {
					if _, taken := want[o.ID]; !taken {
						want[o.ID] = place{id, Location{Run: o.Run, Offset: o.Offset, Length: o.Length}}
					}
				}
			}
			for i := range 200 {
				id := object.Sum([]byte{byte(i)})
				loc, ok := x.Lookup(id)
				w, has := want[id]
				if ok != has {
					t.Fatalf("object %d: found %v, want %v", i, ok, has)
				}
				if !ok {
					continue
				}
				if got := x.PackID(loc.Pack); got != w.pack || loc.Run != w.loc.Run || loc.Offset != w.loc.Offset || loc.Length != w.loc.Length {
					t.Fatalf("object %d: %+v in %s, want %+v", i, loc, got, w)
				}
			}
			if x.Len() != len(want) || len(x.Packs()) != len(order) {
				t.Fatalf("%d objects in %d packs, want %d in %d", x.Len(), len(x.Packs()), len(want), len(order))
			}
		}
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			if len(order) > 0 && rapid.Bool().Draw(t, "remove") {
				// The newest go: of what two packs hold, the index forgets the place
				// that it knew, and with it the object.
				n := rapid.IntRange(1, len(order)).Draw(t, "packs")
				x.Remove(order[len(order)-n:])
				for _, id := range order[len(order)-n:] {
					delete(known, id)
				}
				order = order[:len(order)-n]
			} else {
				next++
				id := pack.ID{next}
				var list []pack.Object
				run, off := uint32(0), uint32(0)
				for range rapid.IntRange(0, 40).Draw(t, "objects") {
					if rapid.IntRange(0, 5).Draw(t, "new run") == 0 {
						run, off = run+1, 0
					}
					length := rapid.SampledFrom([]uint32{4096, 4096, 4096, 72, 1000}).Draw(t, "length")
					list = append(list, pack.Object{ID: object.Sum([]byte{rapid.Byte().Draw(t, "content") % 200}), Run: run, Offset: off, Length: length})
					off += length
				}
				x.Add(id, list)
				known[id] = list
				order = append(order, id)
			}
			check()
		}
	})
}

// TestIndex_BytesAnObject holds the package's promise, with as many objects as fill
// tables to all degrees.
func TestIndex_BytesAnObject(t *testing.T) {
	var before, after runtime.MemStats
	for _, packs := range []int{40, 50, 60, 75} {
		runtime.GC()
		runtime.ReadMemStats(&before)
		x := New()
		n := 0
		if packs%2 == 0 { // told before, or not
			x.Reserve(packs * 16000)
		}
		for p := range packs {
			list := make([]pack.Object, 16000)
			for i := range list {
				var id object.ID
				binary.LittleEndian.PutUint64(id[:], rand.Uint64())
				binary.LittleEndian.PutUint64(id[8:], uint64(n))
				list[i] = pack.Object{ID: id, Kind: object.KindPage, Run: uint32(i / 64), Offset: uint32(i%64) * 4096, Length: 4096}
				n++
			}
			x.Add(pack.ID{byte(p), byte(p >> 8)}, list)
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		if per := float64(after.HeapAlloc-before.HeapAlloc) / float64(n); per > 40 {
			t.Errorf("%d objects: %.1f bytes each", n, per)
		}
		runtime.KeepAlive(x)
	}
}

// TestIndex_AddsTogether adds packs that share objects from several goroutines, while
// others look them up and packs are removed. Each object that is left is found.
func TestIndex_AddsTogether(t *testing.T) {
	x := New()
	list := func(p int) []pack.Object {
		var out []pack.Object
		for i := range 3 * segmentObjects / 2 {
			var id object.ID
			binary.LittleEndian.PutUint64(id[:], uint64(i*7919)|uint64(p%5)<<40)
			binary.LittleEndian.PutUint64(id[8:], uint64(i))
			out = append(out, pack.Object{ID: id, Run: uint32(i / 64), Offset: uint32(i%64) * 4096, Length: 4096})
		}
		return out
	}
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for p := g; p < 40; p += 4 {
				objects := list(p)
				x.Add(pack.ID{byte(p)}, objects)
				for i := range objects {
					if loc, ok := x.Lookup(objects[i].ID); ok && (loc.Run != objects[i].Run || loc.Offset != objects[i].Offset) {
						t.Errorf("object %d of pack %d at %+v", i, p, loc)
						return
					}
				}
				if p%8 == 7 {
					x.Remove([]pack.ID{{byte(p)}})
				}
			}
		})
	}
	wg.Wait()
	if got := len(x.Packs()); got != 35 {
		t.Errorf("%d packs, want 35", got)
	}
	for _, id := range x.Packs() {
		x.Remove([]pack.ID{id})
	}
	if x.Len() != 0 {
		t.Errorf("%d objects of no pack", x.Len())
	}
}

// TestIndex_AbsentIsFoundAbsent fills one shard, one object at a time: a search ends
// at a free slot, so there must be one.
func TestIndex_AbsentIsFoundAbsent(t *testing.T) {
	x := New()
	for i := range 300 {
		x.Add(pack.ID{byte(i), byte(i >> 8)}, []pack.Object{{ID: object.ID{7, byte(i), byte(i >> 8), 1}, Length: 4096}})
		if _, ok := x.Lookup(object.ID{7, 0xff, 0xff, 2}); ok {
			t.Fatal("found")
		}
		if i%50 == 49 {
			x.Remove([]pack.ID{{byte(i), byte(i >> 8)}})
			if _, ok := x.Lookup(object.ID{7, 0xff, 0xff, 2}); ok {
				t.Fatal("found")
			}
		}
	}
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
