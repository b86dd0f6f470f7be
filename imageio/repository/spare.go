package repository

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"

	"fermata/imageio/damage"
	"fermata/imageio/index"
	"fermata/imageio/manifest"
	"fermata/imageio/object"
	"fermata/imageio/pack"
)

// Several packs hold one object where two nodes stored it at the same time, or where it
// was stored again because a pack is damaged. The index knows one place of each object;
// the others are looked up only once something cannot be read.

// fetchSpare is fetch for wants whose place cannot be read for cause: it tries the next
// copy of each. A want without another copy fails with its cause, or is told to lost.
func (rd *Reader) fetchSpare(ctx context.Context, batch []want, cause error, deliver func(run []byte, batch []want) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	copies, err := rd.spares(ctx)
	if err != nil {
		return err
	}
	var again []want
	for _, w := range batch {
		if places := copies[w.id]; w.tried < len(places) {
			w.loc = places[w.tried]
			w.tried++
			again = append(again, w)
			continue
		}
		if err := rd.lose(w, true, cause); err != nil {
			return err
		}
	}
	return rd.fetch(ctx, again, deliver)
}

// lose reports an object that cannot be had. known says that w has a place.
func (rd *Reader) lose(w want, known bool, cause error) error {
	if rd.lost == nil {
		return cause
	}
	rd.lost(w, known, cause)
	return nil
}

// spares returns the places of objects beside the one that the index has, in the order
// of their packs. It reads all trailers once more, the first time.
func (rd *Reader) spares(ctx context.Context) (map[object.ID][]index.Location, error) {
	rd.copiesMu.Lock()
	defer rd.copiesMu.Unlock()
	if rd.copies != nil {
		return rd.copies, nil
	}
	copies, err := rd.findSpares(ctx)
	if err == nil {
		rd.copies = copies
	}
	return copies, err
}

func (rd *Reader) findSpares(ctx context.Context) (map[object.ID][]index.Location, error) {
	var mu sync.Mutex
	copies := map[object.ID][]index.Location{} // guarded by mu
	ids := make([]pack.ID, 0, len(rd.runs))
	for _, ordinal := range rd.ordinals() {
		ids = append(ids, rd.index.PackID(ordinal))
	}
	err := rd.r.readTrailers(ctx, ids, func(_ int, id pack.ID, t *pack.Trailer, err error) error {
		if err != nil || !rd.index.Has(id) {
			return nil // it could be read before: what it holds fails when it is read
		}
		ordinal := rd.index.Add(id, nil)
		mu.Lock()
		defer mu.Unlock()
		for _, o := range rd.wanted(id, t.Objects) {
			loc := index.Location{Pack: ordinal, Run: o.Run, Offset: o.Offset, Length: o.Length}
			if first, known := rd.index.Lookup(o.ID); known && first != loc {
				copies[o.ID] = append(copies[o.ID], loc)
			}
		}
		return nil
	})
	for _, places := range copies {
		slices.SortFunc(places, func(a, b index.Location) int {
			x, y := rd.index.PackID(a.Pack), rd.index.PackID(b.Pack)
			return cmp.Or(bytes.Compare(x[:], y[:]), cmp.Compare(a.Run, b.Run), cmp.Compare(a.Offset, b.Offset))
		})
	}
	return copies, err
}

// missing is why an object is in no pack of the reader.
func (rd *Reader) missing(id object.ID, kind object.Kind) error {
	name := kind.String() + " " + id.String()
	if rd.firstFailed == nil {
		return damage.New(name, errNoPack)
	}
	return fmt.Errorf("%w; no other pack has %s", rd.firstFailed, name)
}

// CheckReadable looks whether the packs of a checkpoint are there and describe
// themselves and, if some do not, whether the others hold every object. It reads no pages.
//
// On error: ErrCorrupt names what is missing.
func (r *Repository) CheckReadable(ctx context.Context, m *manifest.Manifest) error {
	rd, err := r.NewReader(ctx, m.Packs)
	if err != nil || rd.firstFailed == nil {
		return err
	}
	return rd.complete(ctx, m)
}
