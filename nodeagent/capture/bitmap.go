package capture

import (
	"iter"
	"math/bits"
)

// bitmap is a set of the units of one leaf. The zero value is empty.
type bitmap [maxUnits / 64]uint64

func (b *bitmap) has(i int) bool { return b[i/64]&(1<<(i%64)) != 0 }

func (b *bitmap) set(i int) { b[i/64] |= 1 << (i % 64) }

// add puts the n units from first on into the set.
func (b *bitmap) add(first, n int) {
	for i := first; i < first+n; i++ {
		b.set(i)
	}
}

func (b *bitmap) remove(first, n int) {
	for i := first; i < first+n; i++ {
		b[i/64] &^= 1 << (i % 64)
	}
}

func (b *bitmap) empty() bool { return *b == bitmap{} }

func (b *bitmap) count() int {
	n := 0
	for _, w := range b {
		n += bits.OnesCount64(w)
	}
	return n
}

// runs yields the first unit and the length of each run of set units, ascending.
// The set may lose the units of a run while that is being looked at.
func (b *bitmap) runs() iter.Seq2[int, int] {
	return func(yield func(int, int) bool) {
		for i := 0; i < maxUnits; {
			word := b[i/64] >> (i % 64)
			if word == 0 {
				i = (i/64 + 1) * 64
				continue
			}
			i += bits.TrailingZeros64(word)
			n := 0
			for i+n < maxUnits && b.has(i+n) {
				n++
			}
			if !yield(i, n) {
				return
			}
			i += n
		}
	}
}
