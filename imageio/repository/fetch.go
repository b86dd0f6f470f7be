package repository

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"fermata/imageio/damage"
	"fermata/imageio/index"
	"fermata/imageio/object"
	"fermata/imageio/pack"
	"fermata/imageio/vfs"
)

// want asks for one object. tag is the caller's.
type want struct {
	id    object.ID
	loc   index.Location
	kind  object.Kind
	tried int // copies beside the first; see spares
	tag   int64
}

// locate makes a want. ok is false for an object that is lost, see Reader.lost.
//
// On error: damage, as the packs of a manifest hold all of it.
func (rd *Reader) locate(id object.ID, kind object.Kind, tag int64) (w want, ok bool, err error) {
	w = want{id: id, kind: kind, tag: tag}
	if w.loc, ok = rd.index.Lookup(id); !ok {
		err = rd.lose(w, false, rd.missing(id, kind))
	}
	return w, ok, err
}

// fetch reads wants, run by run, each run once, in parallel. deliver gets a run
// and the wants in it, ascending by tag, all verified; it is called from
// several goroutines, and the run is its own until it returns. fetch reorders
// wants.
func (rd *Reader) fetch(ctx context.Context, wants []want, deliver func(run []byte, batch []want) error) error {
	slices.SortFunc(wants, func(a, b want) int {
		return cmp.Or(cmp.Compare(a.loc.Pack, b.loc.Pack), cmp.Compare(a.loc.Run, b.loc.Run), cmp.Compare(a.tag, b.tag))
	})
	var starts []int // of the runs in wants
	for i := range wants {
		if i == 0 || wants[i].loc.Pack != wants[i-1].loc.Pack || wants[i].loc.Run != wants[i-1].loc.Run {
			starts = append(starts, i)
		}
	}
	starts = append(starts, len(wants))
	var next atomic.Int64
	g, ctx := errgroup.WithContext(ctx)
	for range min(rd.r.cfg.Workers, len(starts)-1) {
		g.Go(func() error {
			f := fetcher{rd: rd}
			defer f.close()
			for {
				i := int(next.Add(1)) - 1
				if i >= len(starts)-1 {
					return nil
				}
				if err := ctx.Err(); err != nil {
					return err
				}
				if err := f.run(ctx, wants[starts[i]:starts[i+1]], deliver); err != nil {
					return err
				}
			}
		})
	}
	return g.Wait()
}

// fetcher is what one goroutine of fetch keeps from run to run.
type fetcher struct {
	rd      *Reader
	file    vfs.File // of pack ordinal, nil before the first
	ordinal uint32
	stored  []byte
	raw     []byte
	sums    sums
}

// sums verifies objects, whole pages together. The zero value has none.
type sums struct {
	pages [][]byte
	want  []object.ID
	got   [object.Lanes]object.ID
	bad   []object.ID
}

// add has data verified, which must stay as it is until wrong is called.
func (s *sums) add(id object.ID, data []byte) {
	if len(data) != object.PageBytes {
		if object.Sum(data) != id {
			s.bad = append(s.bad, id)
		}
		return
	}
	if s.pages, s.want = append(s.pages, data), append(s.want, id); len(s.pages) == object.Lanes {
		s.flush()
	}
}

func (s *sums) flush() {
	object.SumPages(s.got[:len(s.pages)], s.pages)
	for i, id := range s.want {
		if s.got[i] != id {
			s.bad = append(s.bad, id)
		}
	}
	s.pages, s.want = s.pages[:0], s.want[:0]
}

// wrong returns the objects that are not what they should be, valid until the next add,
// and begins anew.
func (s *sums) wrong() []object.ID {
	s.flush()
	bad := s.bad
	s.bad = s.bad[:0]
	return bad
}

func (f *fetcher) run(ctx context.Context, batch []want, deliver func(run []byte, batch []want) error) error {
	loc := batch[0].loc
	raw, err := f.read(loc.Pack, loc.Run)
	var moved *movedError
	if errors.As(err, &moved) {
		return f.rd.fetchMoved(ctx, moved.to, batch, deliver)
	}
	if err != nil {
		return f.rd.fetchSpare(ctx, batch, err, deliver)
	}
	checked := -1 // offset of the object looked at last; equal ones often follow each other
	for i := range batch {
		w := &batch[i]
		if int(w.loc.Offset) == checked {
			continue
		}
		f.sums.add(w.id, raw[w.loc.Offset:][:w.loc.Length])
		checked = int(w.loc.Offset)
	}
	wrong := f.sums.wrong()
	if len(wrong) == 0 {
		return deliver(raw, batch)
	}
	cause := damage.New(fmt.Sprintf("object %s in %s", wrong[0], pack.Name(f.rd.index.PackID(loc.Pack))), errWrongHash)
	isWrong := func(w want) bool { return slices.Contains(wrong, w.id) }
	bad := slices.DeleteFunc(slices.Clone(batch), func(w want) bool { return !isWrong(w) })
	if good := slices.DeleteFunc(batch, isWrong); len(good) > 0 {
		if err := deliver(raw, good); err != nil {
			return err
		}
	}
	return f.rd.fetchSpare(ctx, bad, cause, deliver)
}

// fetchMoved is fetch for objects of a pack that was compacted since the Reader
// was made.
func (rd *Reader) fetchMoved(ctx context.Context, to pack.ID, batch []want, deliver func(run []byte, batch []want) error) error {
	from, err := rd.readerOf(ctx, to)
	if err != nil {
		return err
	}
	wants := make([]want, len(batch))
	for i, w := range batch {
		loc, ok := from.index.Lookup(w.id)
		if !ok {
			return damage.New("object "+w.id.String(), fmt.Errorf("not in %s, where its pack has moved", pack.Name(to)))
		}
		wants[i] = want{id: w.id, loc: loc, kind: w.kind, tag: w.tag}
	}
	return from.fetch(ctx, wants, deliver)
}

// readerOf is the reader of a pack that others have moved to.
func (rd *Reader) readerOf(ctx context.Context, to pack.ID) (*Reader, error) {
	rd.mu.Lock()
	defer rd.mu.Unlock()
	if from := rd.moved[to]; from != nil {
		return from, nil
	}
	from, err := rd.r.NewReader(ctx, []string{to.String()})
	if err != nil {
		return nil, err
	}
	if rd.moved == nil {
		rd.moved = map[pack.ID]*Reader{}
	}
	rd.moved[to] = from
	return from, nil
}

// read returns a run, valid until the next call.
func (f *fetcher) read(ordinal, run uint32) ([]byte, error) {
	id := f.rd.index.PackID(ordinal)
	if f.file == nil || f.ordinal != ordinal {
		f.close()
		file, err := f.rd.r.openPack(id)
		if err != nil {
			return nil, err
		}
		f.file, f.ordinal = file, ordinal
	}
	entry := f.rd.runs[ordinal][run]
	stored, err := pack.ReadRun(f.file, entry, f.stored)
	if err == nil {
		f.stored = stored
		var raw []byte
		raw, err = f.rd.decoder.Decode(f.raw, entry, stored)
		if err == nil {
			if entry.Algorithm != pack.Raw { // else raw is stored
				f.raw = raw
			}
			return raw, nil
		}
	}
	return nil, nameRun(id, run, err)
}

func (f *fetcher) close() {
	if f.file != nil {
		_ = f.file.Close() // opened for reading: nothing can be lost
		f.file = nil
	}
}
