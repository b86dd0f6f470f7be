package repository

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"fermata/imageio/index"
	"fermata/imageio/pack"
)

// metadataReaders bounds parallel reads of trailers: enough to hide the
// latency of a metadata server, few enough not to be a burden with hundreds of
// nodes.
const metadataReaders = 8

// Refresh learns the packs that other nodes have finalised and forgets those
// that are gone, so that the next Writer neither stores what is there nor
// relies on what is not. It reads the trailers of new packs only. Packs that
// cannot be read, or that Verify has found damaged, are left out, and so are packs for
// which Config.IndexBytes leaves no room: pages are then stored once more.
func (r *Repository) Refresh(ctx context.Context) error {
	known := r.index.Packs() // before listing: what is finalised meanwhile stays
	files, err := r.listPacks(ctx)
	if err != nil {
		return fmt.Errorf("refresh: %w", err)
	}
	usable := map[pack.ID]bool{}
	for _, f := range files {
		if f.state == packFinal {
			usable[f.id] = true
		}
	}
	for _, f := range files {
		if f.state == packDamaged {
			delete(usable, f.id)
		}
	}
	var gone, fresh []pack.ID
	for _, id := range known {
		if !usable[id] {
			gone = append(gone, id)
		}
	}
	r.index.Remove(gone)
	r.room.forget(usable)
	for _, f := range files {
		if f.state == packFinal && usable[f.id] && !r.index.Has(f.id) && r.room.worthReading(f.id, r.index.Len()) {
			fresh = append(fresh, f.id)
		}
	}
	if r.room.limit == 0 { // else there may be no room for them
		if err := r.reserve(ctx, r.index, fresh); err != nil {
			return fmt.Errorf("refresh: %w", err)
		}
	}
	err = r.readTrailers(ctx, fresh, func(_ int, id pack.ID, t *pack.Trailer, err error) error {
		switch {
		case err == nil:
			r.room.learn(r.index, id, t.Objects)
			return nil
		case errors.Is(err, ErrCorrupt), errors.Is(err, ErrNewerFormat), errors.Is(err, fs.ErrNotExist):
			return nil
		default:
			return err
		}
	})
	if err != nil {
		return fmt.Errorf("refresh: %w", err)
	}
	return nil
}

// reserveFrom is from how many packs on a look at their ends is worth while.
const reserveFrom = 32

// reserve makes room in an index for the objects of packs, if there are many. A pack
// that cannot be read is of no account here.
func (r *Repository) reserve(ctx context.Context, x *index.Index, ids []pack.ID) error {
	if len(ids) < reserveFrom {
		return nil
	}
	var objects atomic.Int64
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(metadataReaders)
	for _, id := range ids {
		if gctx.Err() != nil {
			break
		}
		g.Go(func() error {
			if _, path, err := r.followPack(id); err == nil {
				if n, err := pack.AboutObjects(r.fs, path); err == nil {
					objects.Add(int64(n))
				}
			}
			return nil
		})
	}
	if err := errors.Join(g.Wait(), ctx.Err()); err != nil {
		return err
	}
	x.Reserve(int(objects.Load()))
	return nil
}

// readTrailers reads trailers in parallel and hands them on, in no order and
// from several goroutines. i is the position in ids, id that pack or what it has
// moved to.
func (r *Repository) readTrailers(ctx context.Context, ids []pack.ID, each func(i int, id pack.ID, t *pack.Trailer, err error) error) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(metadataReaders)
	for i, id := range ids {
		if gctx.Err() != nil {
			break
		}
		g.Go(func() error {
			if err := gctx.Err(); err != nil {
				return err
			}
			actual, path, err := r.followPack(id)
			if err != nil {
				return each(i, id, nil, err)
			}
			t, err := pack.ReadTrailer(r.fs, path, actual, r.domain)
			return each(i, actual, t, err)
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return ctx.Err()
}
