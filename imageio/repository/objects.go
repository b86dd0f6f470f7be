package repository

import (
	"context"
	"fmt"

	"fermata/imageio/manifest"
	"fermata/imageio/object"
)

// traversal is what eachObject does at the objects of an image. The first two are
// never called by two goroutines at once; none is called for zeros.
type traversal struct {
	// enter says whether a node is read, and what is below it. Nil: all are.
	enter func(object.ID) bool
	// want says whether an object is handed to take.
	want func(object.Kind, object.ID) bool
	// take gets objects, verified, from several goroutines, each valid until it
	// returns. Nil if want wants none.
	take func(kind object.Kind, id object.ID, data []byte) error
	// reach is told up to where the image is done. Nil: nobody asks.
	reach func(doneBytes int64)
}

// eachObject goes over the objects of an image, nodes before what is below them.
// Pages that are not wanted are not read. An object that the image has several
// times is met several times.
func (rd *Reader) eachObject(ctx context.Context, ref Ref, do traversal) error {
	// chosen returns the nodes that are entered, and what hands over those wanted.
	chosen := func(ids []object.ID, kind object.Kind) ([]object.ID, func(i int, data []byte) error) {
		todo, wanted := make([]object.ID, len(ids)), make([]bool, len(ids))
		for i, id := range ids {
			if !id.IsZero() && (do.enter == nil || do.enter(id)) {
				todo[i], wanted[i] = id, do.want(kind, id)
			}
		}
		return todo, func(i int, data []byte) error {
			if !wanted[i] {
				return nil
			}
			return do.take(kind, ids[i], data)
		}
	}
	root, take := chosen([]object.ID{ref.ID}, object.KindRoot)
	if root[0].IsZero() {
		return nil
	}
	branches, err := rd.branches(ctx, ref, take)
	if err != nil {
		return err
	}
	branches, take = chosen(branches, object.KindBranch)
	leaves, err := rd.below(ctx, branches, object.KindBranch, object.LeafCount(ref.Size), take)
	if err != nil {
		return err
	}
	for first := 0; first < len(leaves); first += windowLeaves {
		end := min(first+windowLeaves, len(leaves))
		some, take := chosen(leaves[first:end], object.KindLeaf)
		ids, err := rd.below(ctx, some, object.KindLeaf, ref.pagesBelow(first, end), take)
		if err != nil {
			return err
		}
		var wants []want
		for i, id := range ids {
			if id.IsZero() || !do.want(object.KindPage, id) {
				continue
			}
			w, ok, err := rd.locate(id, object.KindPage, int64(i))
			if err != nil {
				return err
			}
			if ok {
				wants = append(wants, w)
			}
		}
		err = rd.fetch(ctx, wants, func(run []byte, batch []want) error {
			for _, w := range batch {
				if err := do.take(object.KindPage, w.id, run[w.loc.Offset:][:w.loc.Length]); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		if do.reach != nil {
			do.reach(min(int64(end)*object.LeafBytes, ref.Size))
		}
	}
	return nil
}

// eachRef visits the distinct images of a checkpoint.
func eachRef(m *manifest.Manifest, visit func(g *manifest.Guest, ref Ref) error) error {
	seen := map[object.ID]bool{}
	for i := range m.Guests {
		for _, o := range m.Guests[i].Objects {
			if seen[o.ID] {
				continue
			}
			seen[o.ID] = true
			if err := visit(&m.Guests[i], RefOf(o)); err != nil {
				return err
			}
		}
	}
	return nil
}

// eachObjectOf goes over the objects of all images of a checkpoint. progress is told
// how much of all of them is done.
func (rd *Reader) eachObjectOf(ctx context.Context, m *manifest.Manifest, do traversal, progress func(done, total int64)) error {
	var done, total int64
	_ = eachRef(m, func(_ *manifest.Guest, ref Ref) error { total += ref.Size; return nil }) // which has no error
	return eachRef(m, func(g *manifest.Guest, ref Ref) error {
		do.reach = func(of int64) { progress(done+of, total) }
		if err := rd.eachObject(ctx, ref, do); err != nil {
			return fmt.Errorf("guest %s: %w", g.Name, err)
		}
		done += ref.Size
		progress(done, total)
		return nil
	})
}

// has says whether the repository has an object that this round can rely on; it is
// then part of what the round needs.
func (w *Writer) has(ctx context.Context, id object.ID) (bool, error) {
	loc, known := w.r.index.Lookup(id)
	if !known {
		return false, nil
	}
	wk, err := w.worker(ctx)
	if err != nil {
		return false, err
	}
	wk.use(loc.Pack)
	w.workers <- wk
	return true, nil
}

// putObject stores an object whose id was verified.
func (w *Writer) putObject(ctx context.Context, kind object.Kind, id object.ID, data []byte) error {
	wk, err := w.worker(ctx)
	if err != nil {
		return err
	}
	defer func() { w.workers <- wk }()
	wk.holders.reset()
	return w.put(wk, kind, id, data)
}

// complete checks that packs hold every object of a checkpoint, without reading
// pages.
func (r *Repository) complete(ctx context.Context, m *manifest.Manifest, packs []string) error {
	rd, err := r.NewReader(ctx, packs)
	if err != nil {
		return err
	}
	return rd.complete(ctx, m)
}

func (rd *Reader) complete(ctx context.Context, m *manifest.Manifest) error {
	return eachRef(m, func(_ *manifest.Guest, ref Ref) error {
		return rd.pages(ctx, ref, func([]want, int64, int64) error { return nil })
	})
}
