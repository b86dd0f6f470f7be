package object

import (
	"math/rand/v2"
	"testing"
)

// TestSumPages_IsSumOfEach compares with the library, for every number of pages, of
// all zeros, all ones and noise, wherever they begin.
func TestSumPages_IsSumOfEach(t *testing.T) {
	rng := rand.NewChaCha8([32]byte{3})
	buf := make([]byte, 64*PageBytes+64)
	for _, content := range []string{"noise", "zeros", "ones"} {
		switch content {
		case "noise":
			rng.Read(buf)
		case "zeros":
			clear(buf)
		default:
			for i := range buf {
				buf[i] = 0xff
			}
		}
		for n := range 3*Lanes + 2 {
			pages, ids := make([][]byte, n), make([]ID, n)
			for i := range pages {
				at := (i*7)%64*PageBytes + i%61
				pages[i] = buf[at : at+PageBytes]
			}
			SumPages(ids, pages)
			for i := range pages {
				if want := Sum(pages[i]); ids[i] != want {
					t.Fatalf("%s: page %d of %d: %s, want %s", content, i, n, ids[i], want)
				}
			}
		}
	}
}

func TestSumPages_OneBitCounts(t *testing.T) {
	pages, ids := make([][]byte, Lanes), make([]ID, Lanes)
	for i := range pages {
		pages[i] = make([]byte, PageBytes)
		pages[i][i*256+i] = 1 << (i % 8)
	}
	SumPages(ids, pages)
	for i := range ids {
		if ids[i] != Sum(pages[i]) {
			t.Fatalf("lane %d", i)
		}
	}
}

func BenchmarkSumPages(b *testing.B) {
	buf := make([]byte, 512*PageBytes)
	rand.NewChaCha8([32]byte{3}).Read(buf)
	pages, ids := make([][]byte, 512), make([]ID, 512)
	for i := range pages {
		pages[i] = buf[i*PageBytes:][:PageBytes]
	}
	b.Run("lanes", func(b *testing.B) {
		b.SetBytes(int64(len(buf)))
		for b.Loop() {
			SumPages(ids, pages)
		}
	})
	b.Run("each", func(b *testing.B) {
		b.SetBytes(int64(len(buf)))
		for b.Loop() {
			for i := range pages {
				ids[i] = Sum(pages[i])
			}
		}
	})
}
