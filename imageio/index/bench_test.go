package index

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"fermata/imageio/object"
	"fermata/imageio/pack"
)

// million is a pack list of a million objects.
func million() (packs [][]pack.Object) {
	for range 64 {
		list := make([]pack.Object, 1<<14)
		for i := range list {
			var id object.ID
			for b := 0; b < len(id); b += 8 {
				binary.LittleEndian.PutUint64(id[b:], rand.Uint64())
			}
			list[i] = pack.Object{ID: id, Kind: object.KindPage, Run: uint32(i / 64), Offset: uint32(i%64) * object.PageBytes, Length: object.PageBytes}
		}
		packs = append(packs, list)
	}
	return packs
}

func BenchmarkAdd(b *testing.B) {
	packs := million()
	for b.Loop() {
		x := New()
		for i, list := range packs {
			x.Add(pack.ID{byte(i)}, list)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/(64<<14), "ns/object")
}

func BenchmarkLookup(b *testing.B) {
	packs := million()
	x := New()
	for i, list := range packs {
		x.Add(pack.ID{byte(i)}, list)
	}
	i := 0
	for b.Loop() {
		list := packs[i&63]
		if _, ok := x.Lookup(list[(i*2654435761)&(1<<14-1)].ID); !ok {
			b.Fatal("lost")
		}
		i++
	}
}
