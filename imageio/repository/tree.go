package repository

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"fermata/imageio/damage"
	"fermata/imageio/object"
	"fermata/imageio/pack"
)

var (
	errNoPack    = errors.New("in none of the packs")
	errWrongHash = errors.New("wrong hash")
)

// nameRun turns damage of a run into damage that names it.
func nameRun(id pack.ID, run uint32, err error) error {
	name := fmt.Sprintf("%s, run %d", pack.Name(id), run)
	if errors.Is(err, ErrCorrupt) {
		return damage.New(name, err)
	}
	return fmt.Errorf("%s: %w", name, err)
}

// missingError is what keeps an object from being found, as distinct from damage of the
// node that names it.
type missingError struct{ error }

func (e *missingError) Unwrap() error { return e.error }

// fetchNodes reads leaves or branches. ids may hold zeros, which are left out;
// the tags are positions in ids.
func (rd *Reader) fetchNodes(ctx context.Context, ids []object.ID, kind object.Kind, deliver func(i int, data []byte) error) error {
	var wants []want
	for i, id := range ids {
		if id.IsZero() {
			continue
		}
		w, ok, err := rd.locate(id, kind, int64(i))
		if err != nil {
			return err
		}
		if ok {
			wants = append(wants, w)
		}
	}
	return rd.fetch(ctx, wants, func(run []byte, batch []want) error {
		for _, w := range batch {
			if err := deliver(int(w.tag), run[w.loc.Offset:][:w.loc.Length]); err != nil {
				var missing *missingError
				if errors.As(err, &missing) { // of what is below a node that is right
					return missing.error
				}
				if errors.Is(err, ErrCorrupt) {
					return damage.New(kind.String()+" "+w.id.String(), err)
				}
				return err
			}
		}
		return nil
	})
}

// branches reads the root of an image and returns the ids of its branches, zero for
// zeros. each, unless nil, gets the root's encoding.
func (rd *Reader) branches(ctx context.Context, ref Ref, each func(i int, data []byte) error) ([]object.ID, error) {
	if ref.ID.IsZero() {
		return nil, errors.New("ref names no image")
	}
	var root object.Root
	read := false
	err := rd.fetchNodes(ctx, []object.ID{ref.ID}, object.KindRoot, func(i int, data []byte) (err error) {
		read = true
		if root, err = object.DecodeRoot(data); err != nil || each == nil {
			return err
		}
		return each(i, data)
	})
	if err != nil {
		return nil, err
	}
	if !read { // lost
		return nil, nil
	}
	if root.Size != ref.Size {
		return nil, damage.New("root "+ref.ID.String(), fmt.Errorf("image of %d bytes, want %d", root.Size, ref.Size))
	}
	return root.Branches, nil
}

// below reads branches or leaves, of which all but the last of the image have Fanout
// children, and returns those, total in all, zero for zeros and below what is zero.
// each, unless nil, gets the encoding of ids[i], from several goroutines.
func (rd *Reader) below(ctx context.Context, ids []object.ID, kind object.Kind, total int, each func(i int, data []byte) error) ([]object.ID, error) {
	children := make([]object.ID, total)
	err := rd.fetchNodes(ctx, ids, kind, func(i int, data []byte) error {
		part := children[i*object.Fanout : min((i+1)*object.Fanout, total)]
		if _, err := object.DecodeNode(part[:0], data, kind, len(part)); err != nil || each == nil {
			return err
		}
		return each(i, data)
	})
	if err != nil {
		return nil, err
	}
	return children, nil
}

// leaves returns the ids of all leaves of an image, zero for zeros.
func (rd *Reader) leaves(ctx context.Context, ref Ref) ([]object.ID, error) {
	branches, err := rd.branches(ctx, ref, nil)
	if err != nil {
		return nil, err
	}
	return rd.below(ctx, branches, object.KindBranch, object.LeafCount(ref.Size), nil)
}

// pagesBelow is how many pages leaves first to end, exclusive, of an image cover.
func (ref Ref) pagesBelow(first, end int) int {
	return int(min(object.PageCount(ref.Size)-int64(first)*object.Fanout, int64(end-first)*object.Fanout))
}

// windowLeaves is how much of an image is planned at a time: 2 GiB, whose plan
// takes at most 28 MiB. Within a window each run is read once.
const windowLeaves = 1024

// pages calls visit with wants for all pages of an image that are not zeros,
// window by window; the tags are page numbers. from and to bound the bytes of
// the image that the window covers.
func (rd *Reader) pages(ctx context.Context, ref Ref, visit func(wants []want, from, to int64) error) error {
	leaves, err := rd.leaves(ctx, ref)
	if err != nil {
		return err
	}
	for first := 0; first < len(leaves); first += windowLeaves {
		end := min(first+windowLeaves, len(leaves))
		wants, err := rd.pagesOf(ctx, ref, leaves[first:end], first)
		if err != nil {
			return err
		}
		from := int64(first) * object.LeafBytes
		if err := visit(wants, from, min(int64(end)*object.LeafBytes, ref.Size)); err != nil {
			return err
		}
	}
	return nil
}

// pagesOf makes wants for the pages of some leaves, the first of which is leaf
// first of the image.
func (rd *Reader) pagesOf(ctx context.Context, ref Ref, leaves []object.ID, first int) ([]want, error) {
	var mu sync.Mutex
	var wants []want // guarded by mu
	err := rd.fetchNodes(ctx, leaves, object.KindLeaf, func(i int, data []byte) error {
		firstPage := int64(first+i) * object.Fanout
		count := min(object.Fanout, object.PageCount(ref.Size)-firstPage)
		ids, err := object.DecodeNode(make([]object.ID, 0, count), data, object.KindLeaf, int(count))
		if err != nil {
			return err
		}
		part := make([]want, 0, count)
		for n, id := range ids {
			if id.IsZero() {
				continue
			}
			w, ok, err := rd.locate(id, object.KindPage, firstPage+int64(n))
			if err != nil {
				return &missingError{err}
			}
			if ok {
				part = append(part, w)
			}
		}
		mu.Lock()
		defer mu.Unlock()
		wants = append(wants, part...)
		return nil
	})
	return wants, err
}
