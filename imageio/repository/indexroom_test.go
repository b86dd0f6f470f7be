package repository

import (
	"testing"

	"fermata/imageio/index"
	"fermata/imageio/object"
)

// TestIndexBytes_BoundsWhatIsLearnt: packs for which there is no room are not relied on, so
// pages are stored again; nothing else changes, and room that becomes free is used.
func TestIndexBytes_BoundsWhatIsLearnt(t *testing.T) {
	ctx := t.Context()
	fsys := newCrashFS(t, 1)
	first := mustCreate(t, smallConfig(fsys))
	const pages = 100
	mustCheckpoint(t, first, 1, map[string][]byte{"a": noise(1, pages*object.PageBytes)})
	mustCheckpoint(t, first, 2, map[string][]byte{"a": noise(2, pages*object.PageBytes)})

	cfg := smallConfig(fsys)
	cfg.IndexBytes = 110 * index.ObjectBytes // one image of the two, and its nodes
	r := mustOpen(t, cfg, 7)
	use := r.IndexUse()
	if use.Bytes > use.Limit || use.Bytes < use.Limit/2 || use.Declined == 0 {
		t.Fatalf("%+v", use)
	}
	// Declined packs are not read again as long as there is no room.
	if err := r.Refresh(ctx); err != nil || r.IndexUse() != use {
		t.Fatalf("%+v, %v", r.IndexUse(), err)
	}
	both := map[string][]byte{"a": noise(1, pages*object.PageBytes), "b": noise(2, pages*object.PageBytes)}
	m := mustCheckpoint(t, r, 3, both)
	if stored := m.Stats.StoredBytes; stored < pages/2*object.PageBytes || stored > 3*pages/2*object.PageBytes {
		t.Errorf("%d bytes stored, want about what found no room", stored)
	}
	wantRestore(t, r, 3, both)
	// What it has stored itself it knows, though that is more than the limit.
	if m := mustCheckpoint(t, r, 4, both); m.Stats.StoredBytes > pages/2*object.PageBytes {
		t.Errorf("%d bytes stored of what is there", m.Stats.StoredBytes)
	}
	for epoch := uint64(1); epoch <= 4; epoch++ {
		if _, err := r.Delete(ctx, "web", epoch); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Refresh(ctx); err != nil || r.IndexUse().Bytes != 0 || r.IndexUse().Declined != 0 {
		t.Fatalf("%+v, %v", r.IndexUse(), err)
	}
	mustCheckpoint(t, first, 5, map[string][]byte{"a": noise(5, pages*object.PageBytes)})
	if err := r.Refresh(ctx); err != nil || r.IndexUse().Bytes == 0 || r.IndexUse().Declined != 0 {
		t.Fatalf("%+v, %v", r.IndexUse(), err)
	}
}
