package repository

import (
	"math/rand/v2"
	"testing"

	"fermata/imageio/object"
)

// TestFingerprint_SparesWhatIsTheSame: without anybody who tracked, a leaf that is
// as it was is neither named nor stored, one that changed is, and one whose pack is
// gone is stored again.
func TestFingerprint_SparesWhatIsTheSame(t *testing.T) {
	ctx := t.Context()
	fsys := newCrashFS(t, 1)
	r := mustCreate(t, bigPacks(fsys))
	const leaves = 6
	g := &guestMemory{b: make([]byte, leaves*object.LeafBytes-100)}
	rng := rand.New(rand.NewPCG(4, 4))
	for leaf := range leaves - 1 { // the last but one ends in a hole
		g.write(rng, leaf*object.LeafBytes+7*object.PageBytes, 30*object.PageBytes, 1)
	}
	g.write(rng, len(g.b)-50, 50, 1)
	generation := func(epoch uint64) ImageStats {
		t.Helper()
		m, images, err := round(ctx, r, epoch, g.put(ctx, PutOptions{Base: g.base, Fingerprint: true}))
		if err == nil {
			err = r.Commit(ctx, m)
		}
		if err != nil {
			t.Fatal(err)
		}
		g.stored(images[0])
		if want := refByHand(g.b); images[0].Ref != want {
			t.Fatalf("epoch %d is %s, want %s", epoch, images[0].Ref, want)
		}
		wantRestore(t, r, epoch, map[string][]byte{"a": g.b})
		return images[0].Stats
	}
	if s := generation(1); s.SameBytes != 0 {
		t.Fatalf("%+v", s)
	}
	if s := generation(2); s.SameBytes != int64(len(g.b)) || s.ChangedBytes != 0 || s.NewBytes != 0 {
		t.Fatalf("nothing changed: %+v", s)
	}
	at := 2*object.LeafBytes + 9*object.PageBytes
	was := g.b[at]
	g.b[at]++
	if s := generation(3); s.ChangedBytes != object.LeafBytes || s.NewBytes != object.PageBytes {
		t.Fatalf("one byte changed: %+v", s)
	}
	g.b[at] = was // and back: the fingerprint must be that of the last generation
	if s := generation(4); s.ChangedBytes != object.LeafBytes || s.NewBytes != 0 {
		t.Fatalf("it changed back: %+v", s)
	}
	copy(g.b[at:], make([]byte, object.PageBytes)) // zeros
	if s := generation(5); s.ChangedBytes != object.LeafBytes {
		t.Fatalf("zeros: %+v", s)
	}
	// Pages that change places are a change.
	for i := range object.PageBytes {
		a, b := 7*object.PageBytes+i, 8*object.PageBytes+i
		g.b[a], g.b[b] = g.b[b], g.b[a]
	}
	if s := generation(6); s.ChangedBytes != object.LeafBytes || s.NewBytes != 0 {
		t.Fatalf("pages changed places: %+v", s)
	}
	for epoch := uint64(1); epoch <= 6; epoch++ {
		if _, err := r.Delete(ctx, "web", epoch); err != nil {
			t.Fatal(err)
		}
	}
	if s := generation(7); s.SameBytes != 0 || s.NewBytes == 0 {
		t.Fatalf("its packs are gone: %+v", s)
	}
}
