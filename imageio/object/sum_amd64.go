package object

import (
	"encoding/binary"

	"golang.org/x/sys/cpu"
)

// lanes is how many pages the processor hashes at once: 16, or 1 if it cannot.
var lanes = func() int {
	if cpu.X86.HasAVX512F && cpu.X86.HasAVX512BW {
		return Lanes
	}
	return 1
}()

// fewLanes is from how many pages on all lanes are worth while; below, the
// processor's own instructions for SHA-256 are faster, page by page.
const fewLanes = 6

//go:noescape
func sumPages16(state *[8][Lanes]uint32, pages *[Lanes]*byte, k, last *[64]uint32)

// sumLanes hashes fewLanes to Lanes pages.
func sumLanes(ids []ID, pages [][]byte) {
	var first [Lanes]*byte
	for i := range first {
		first[i] = &pages[min(i, len(pages)-1)][:PageBytes][0] // idle lanes do the last page again
	}
	state := initialState
	sumPages16(&state, &first, &roundConstants, &lastConstants)
	for i := range pages {
		for w := range state {
			binary.BigEndian.PutUint32(ids[i][4*w:], state[w][i])
		}
	}
}

// roundConstants are the K of FIPS 180-4, 4.2.2.
var roundConstants = [64]uint32{
	0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
	0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
	0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
	0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
	0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
	0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
	0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
	0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
}

// initialState is H of FIPS 180-4, 5.3.3, for all lanes.
var initialState = func() (s [8][Lanes]uint32) {
	for w, v := range [8]uint32{
		0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
	} {
		for lane := range s[w] {
			s[w][lane] = v
		}
	}
	return s
}()

// lastConstants are roundConstants with the schedule of the block behind a page
// added: a bit, zeros, and the length in bits.
var lastConstants = func() (k [64]uint32) {
	var w [64]uint32
	w[0], w[15] = 1<<31, 8*PageBytes
	ror := func(v uint32, n int) uint32 { return v>>n | v<<(32-n) }
	for i := 16; i < len(w); i++ {
		s0 := ror(w[i-15], 7) ^ ror(w[i-15], 18) ^ w[i-15]>>3
		s1 := ror(w[i-2], 17) ^ ror(w[i-2], 19) ^ w[i-2]>>10
		w[i] = w[i-16] + s0 + w[i-7] + s1
	}
	for i := range k {
		k[i] = roundConstants[i] + w[i]
	}
	return k
}()
