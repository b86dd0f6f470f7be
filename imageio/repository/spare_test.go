package repository

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"testing"

	"fermata/imageio/manifest"
	"fermata/imageio/object"
	"fermata/imageio/pack"
	"fermata/imageio/vfs/crashfs"
)

// twins commits a checkpoint of two nodes that have stored the same image at the same
// time, so that two packs hold each of its objects, and returns the packs.
func twins(t *testing.T, r *Repository, epoch uint64, img []byte) (*manifest.Manifest, []pack.ID) {
	t.Helper()
	ctx := t.Context()
	m := &manifest.Manifest{Cluster: "web", Epoch: epoch, CreatedUnixNS: int64(epoch)}
	var writers []*Writer
	for _, node := range []string{"n1", "n2"} {
		// Neither process knows what the other has stored.
		p, err := Open(ctx, r.cfg)
		if err != nil {
			t.Fatal(err)
		}
		w, err := p.NewWriter(WriterConfig{Cluster: "web", Epoch: epoch, Node: node})
		if err != nil {
			t.Fatal(err)
		}
		writers = append(writers, w)
	}
	for i, w := range writers {
		ref, err := w.PutBytes(ctx, img)
		if err != nil {
			t.Fatal(err)
		}
		res, err := w.Finish(ctx)
		if err != nil || len(res.Packs) != 1 {
			t.Fatalf("%d packs, %v", len(res.Packs), err)
		}
		m.Packs = append(m.Packs, res.Packs...)
		m.Guests = append(m.Guests, manifest.Guest{Name: fmt.Sprintf("g%d", i), Node: w.node, Objects: []manifest.Object{
			{Kind: manifest.KindMemory, Name: "ram0", ID: ref.ID, SizeBytes: uint64(ref.Size)},
		}})
	}
	slices.Sort(m.Packs)
	if err := r.Commit(ctx, m); err != nil {
		t.Fatal(err)
	}
	return m, packIDs(t, m)
}

func bigPackConfig(fsys *crashfs.FS) Config {
	cfg := smallConfig(fsys)
	cfg.PackBytes, cfg.Workers = 1<<20, 4
	return cfg
}

// TestRead_FallsBackToAGoodCopy: where two packs hold a page, damage of one copy costs
// nothing: whichever it is, every reader gets the right bytes, and every look at the same
// repository says the same.
func TestRead_FallsBackToAGoodCopy(t *testing.T) {
	for _, damage := range []string{"a page", "every run", "trailer", "pack is gone"} {
		for which := range 2 {
			t.Run(fmt.Sprintf("%s of pack %d", damage, which), func(t *testing.T) {
				ctx := t.Context()
				fsys := newCrashFS(t, 1)
				r := mustCreate(t, bigPackConfig(fsys))
				img := image(1, 30*object.PageBytes)
				m, ids := twins(t, r, 1, img)
				path := r.packPath(ids[which])
				tr, err := pack.ReadTrailer(fsys, path, ids[which], nil)
				if err != nil {
					t.Fatal(err)
				}
				flip := func(at int64) {
					if err := fsys.FlipByte(path, at, 0x10); err != nil {
						t.Fatal(err)
					}
				}
				switch damage {
				case "a page":
					spoil(t, r, fsys, ids[which])
				case "every run":
					for _, run := range tr.Runs {
						flip(run.Offset + 1)
					}
				case "trailer":
					last := tr.Runs[len(tr.Runs)-1]
					flip(last.Offset + int64(last.StoredLen) + 9)
				default:
					if err := fsys.Remove(path); err != nil {
						t.Fatal(err)
					}
				}
				var reports []string
				for range 10 {
					rd, err := r.NewReader(ctx, m.Packs)
					if err != nil {
						t.Fatal(err)
					}
					for _, g := range m.Guests {
						got, err := rd.ReadBytes(ctx, RefOf(g.Objects[0]), 1<<30)
						if err != nil || !bytes.Equal(got, img) {
							t.Fatalf("guest %s: %v", g.Name, err)
						}
					}
					if err := r.CheckReadable(ctx, m); err != nil {
						t.Fatal(err)
					}
					var b bytes.Buffer
					if err := r.Export(ctx, "web", 1, &b, ExportOptions{Progress: quiet}); err != nil {
						t.Fatal(err)
					}
					rep, err := r.Verify(ctx, m, VerifyOptions{})
					if err != nil || len(rep.Damage) == 0 {
						t.Fatalf("%+v, %v", rep, err)
					}
					for _, d := range rep.Damage {
						if len(d.Guests) > 0 {
							t.Fatalf("%s is said to cost %v, which restore", d.Object, d.Guests)
						}
					}
					reports = append(reports, fmt.Sprintf("%+v", rep))
				}
				if different := slices.Compact(reports); len(different) > 1 {
					t.Errorf("the same repository, different reports: %q", different)
				}
				// The checkpoint counts as whole.
				entries, err := r.Checkpoints(ctx, "web")
				if err != nil || len(entries) != 1 || !entries[0].Intact() {
					t.Fatalf("%+v, %v", entries, err)
				}
			})
		}
	}
}

// TestVerify_SameInputSameReport: with both copies bad, who is hit and what is named does
// not depend on which pack was read first, and neither does a restore's error.
func TestVerify_SameInputSameReport(t *testing.T) {
	ctx := t.Context()
	fsys := newCrashFS(t, 1)
	r := mustCreate(t, bigPackConfig(fsys))
	m, ids := twins(t, r, 1, image(1, 30*object.PageBytes))
	for _, id := range ids {
		spoil(t, r, fsys, id)
	}
	var want string
	for i := range 20 {
		rep, err := mustOpen(t, r.cfg, byte(i)).Verify(ctx, m, VerifyOptions{})
		if err != nil {
			t.Fatal(err)
		}
		rd, err := r.NewReader(context.WithoutCancel(ctx), m.Packs)
		if err != nil {
			t.Fatal(err)
		}
		_, rerr := rd.ReadBytes(ctx, RefOf(m.Guests[0].Objects[0]), 1<<30)
		got := fmt.Sprintf("%+v %v", rep, rerr)
		if want == "" {
			want = got
			hit := false
			for _, d := range rep.Damage {
				hit = hit || fmt.Sprint(d.Guests) == "[g0 g1]"
			}
			if !hit || rerr == nil {
				t.Fatalf("%+v, restore: %v", rep, rerr)
			}
		}
		if got != want {
			t.Fatalf("first %s\nthen %s", want, got)
		}
	}
}
