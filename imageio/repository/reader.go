package repository

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"

	"fermata/imageio/damage"
	"fermata/imageio/index"
	"fermata/imageio/pack"
)

// Reader reads images out of a given set of packs. It keeps no file open
// between calls.
//
// Concurrency: all methods may be called from any goroutine.
type Reader struct {
	r       *Repository
	index   *index.Index
	runs    [][]pack.Run // by ordinal of the index; immutable after NewReader
	decoder *pack.Decoder

	mu    sync.Mutex
	moved map[pack.ID]*Reader // guarded by mu; of packs that others have moved to since
}

// NewReader reads the trailers of the given packs, normally those of a
// manifest.
//
// On error: ErrCorrupt if a pack is damaged or gone.
func (r *Repository) NewReader(ctx context.Context, packs []string) (*Reader, error) {
	ids, err := packIDsOf(packs)
	if err != nil {
		return nil, fmt.Errorf("new reader: %w", err)
	}
	rd, failed, err := r.loadPacks(ctx, ids, nil)
	if err != nil {
		return nil, fmt.Errorf("new reader: %w", err)
	}
	for _, id := range ids { // in the order asked, so that errors are the same every time
		if err := failed[id]; err != nil {
			return nil, fmt.Errorf("new reader: %w", err)
		}
	}
	return rd, nil
}

// loadPacks builds a reader of those packs that can be read, for the objects that
// want chooses (nil: all), and says what is wrong with the other packs. An error is none of
// the packs'.
func (r *Repository) loadPacks(ctx context.Context, ids []pack.ID, want func(pack.ID, *pack.Object) bool) (*Reader, map[pack.ID]error, error) {
	rd := &Reader{r: r, index: index.New(), decoder: &pack.Decoder{Domain: r.domain}}
	var mu sync.Mutex
	failed := map[pack.ID]error{} // guarded by mu, as rd is
	if want == nil {
		if err := r.reserve(ctx, rd.index, ids); err != nil {
			return nil, nil, err
		}
	}
	err := r.readTrailers(ctx, ids, func(i int, id pack.ID, t *pack.Trailer, err error) error {
		if errors.Is(err, fs.ErrNotExist) && !errors.Is(err, ErrCorrupt) {
			err = damage.New(pack.Name(id), err)
		}
		if err != nil {
			mu.Lock()
			defer mu.Unlock()
			failed[ids[i]] = err
			return nil
		}
		// Two may have moved to one, which has one ordinal.
		ord := int(rd.index.Add(id, slices.DeleteFunc(t.Objects, func(o pack.Object) bool { return want != nil && !want(id, &o) })))
		mu.Lock()
		defer mu.Unlock()
		for len(rd.runs) <= ord {
			rd.runs = append(rd.runs, nil)
		}
		rd.runs[ord] = t.Runs
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	return rd, failed, nil
}

// packIDsOf parses names of packs, as in a manifest.
func packIDsOf(names []string) ([]pack.ID, error) {
	ids := make([]pack.ID, len(names))
	for i, s := range names {
		var err error
		if ids[i], err = pack.ParseID(s); err != nil {
			return nil, err
		}
	}
	return ids, nil
}
