package repository

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"

	"fermata/imageio/damage"
	"fermata/imageio/frame"
	"fermata/imageio/index"
	"fermata/imageio/object"
	"fermata/imageio/pack"
)

// Reader reads images out of a given set of packs. It keeps no file open
// between calls. Where several packs hold an object, it reads the copy in the pack with
// the lowest ID, and falls back to the others if that copy cannot be read or is wrong.
//
// Concurrency: all methods may be called from any goroutine.
type Reader struct {
	r           *Repository
	packs       []pack.ID                        // immutable; ascending
	want        func(pack.ID, *pack.Object) bool // immutable; the objects it knows; nil: all
	failed      map[pack.ID]error                // immutable after loadPacks; packs that cannot be read
	firstFailed error                            // immutable after loadPacks; of the lowest of those
	index       *index.Index                     // lowest pack first
	runs        [][]pack.Run                     // by ordinal of the index; immutable after loadPacks
	decoder     *pack.Decoder
	// lost, unless nil, is told of every object that no pack has whole, and the Reader
	// goes on without it. It is called from several goroutines.
	lost func(w want, known bool, cause error)

	mu    sync.Mutex
	moved map[pack.ID]*Reader // guarded by mu; of packs that others have moved to since

	copiesMu sync.Mutex
	copies   map[object.ID][]index.Location // guarded by copiesMu; immutable once set; see spares
}

// NewReader reads the trailers of the given packs, normally those of a
// manifest. A pack that is damaged or gone is an error only of the objects that no
// other pack has: CheckReadable finds those.
//
// On error: ErrCorrupt if no pack can be read, ErrNewerFormat.
func (r *Repository) NewReader(ctx context.Context, packs []string) (*Reader, error) {
	ids, err := packIDsOf(packs)
	if err != nil {
		return nil, fmt.Errorf("new reader: %w", err)
	}
	rd, err := r.loadPacks(ctx, ids, nil)
	if err != nil {
		return nil, fmt.Errorf("new reader: %w", err)
	}
	for _, id := range rd.packs {
		if err := rd.failed[id]; err != nil && (len(rd.failed) == len(rd.packs) || errors.Is(err, frame.ErrNewerFormat)) {
			return nil, fmt.Errorf("new reader: %w", err)
		}
	}
	return rd, nil
}

// loadPacks builds a reader of those packs that can be read, for the objects that
// want chooses (nil: all). What is wrong with the other packs is in failed; an error is
// none of the packs'.
func (r *Repository) loadPacks(ctx context.Context, ids []pack.ID, want func(pack.ID, *pack.Object) bool) (*Reader, error) {
	ids = slices.Clone(ids)
	slices.SortFunc(ids, func(a, b pack.ID) int { return bytes.Compare(a[:], b[:]) })
	ids = slices.Compact(ids)
	rd := &Reader{r: r, packs: ids, want: want, failed: map[pack.ID]error{}, index: index.NewLowest(), decoder: &pack.Decoder{Domain: r.domain}}
	var mu sync.Mutex // guards rd
	if want == nil {
		if err := r.reserve(ctx, rd.index, ids); err != nil {
			return nil, err
		}
	}
	err := r.readTrailers(ctx, ids, func(i int, id pack.ID, t *pack.Trailer, err error) error {
		if errors.Is(err, fs.ErrNotExist) && !errors.Is(err, ErrCorrupt) {
			err = damage.New(pack.Name(id), err)
		}
		if err != nil {
			mu.Lock()
			defer mu.Unlock()
			rd.failed[ids[i]] = err
			return nil
		}
		// Two may have moved to one, which has one ordinal.
		ord := int(rd.index.Add(id, rd.wanted(id, t.Objects)))
		mu.Lock()
		defer mu.Unlock()
		for len(rd.runs) <= ord {
			rd.runs = append(rd.runs, nil)
		}
		rd.runs[ord] = t.Runs
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		if rd.firstFailed = rd.failed[id]; rd.firstFailed != nil {
			break
		}
	}
	return rd, nil
}

// wanted is the objects of a pack that the reader knows.
func (rd *Reader) wanted(id pack.ID, objects []pack.Object) []pack.Object {
	if rd.want == nil {
		return objects
	}
	return slices.DeleteFunc(objects, func(o pack.Object) bool { return !rd.want(id, &o) })
}

// ordinals lists the packs that were read, in the order of their IDs.
func (rd *Reader) ordinals() []uint32 {
	all := make([]uint32, len(rd.runs))
	for i := range all {
		all[i] = uint32(i)
	}
	slices.SortFunc(all, func(a, b uint32) int {
		x, y := rd.index.PackID(a), rd.index.PackID(b)
		return bytes.Compare(x[:], y[:])
	})
	return all
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
