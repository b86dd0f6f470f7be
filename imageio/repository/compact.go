package repository

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"fermata/imageio/damage"
	"fermata/imageio/object"
	"fermata/imageio/pack"
	"fermata/imageio/vfs"
)

// compaction moves what is needed of some packs to one new pack. Its order is what
// R3 stands on; see FORMAT.md, "Compacting".
type compaction struct {
	r       *Repository
	token   string
	view    *view // of before anything was marked
	encoder *pack.Encoder
	report  PruneReport
	touched dirSet
}

// newCompaction begins one. view is of before anything was decided.
func (r *Repository) newCompaction(v *view) (*compaction, error) {
	token, err := r.randomHex(tokenBytes)
	if err != nil {
		return nil, err
	}
	encoder, err := r.newEncoder()
	if err != nil {
		return nil, err
	}
	return &compaction{r: r, token: token, view: v, encoder: encoder, touched: dirSet{}}, nil
}

// source is a pack that is being compacted.
type source struct {
	id  pack.ID
	use *packUse
}

// groups collects sources whose needed parts fit one pack. sources are in order
// of what is to be gained, so that a compaction that is ended early did the most.
func (r *Repository) groups(sources []source) [][]source {
	var all [][]source
	var bytes float64
	objects := 0
	for _, s := range sources {
		need := s.use.share() * float64(s.use.size)
		n := 64 * len(s.use.live)
		last := len(all) - 1
		if last < 0 || bytes+need > float64(r.cfg.PackBytes) || objects+n > pack.MaxObjects {
			all = append(all, nil)
			last++
			bytes, objects = 0, 0
		}
		all[last] = append(all[last], s)
		bytes += need
		objects += n
	}
	return all
}

// copyFunc writes a new pack with all that is needed of some packs.
type copyFunc func(context.Context, []source) (pack.ID, []pack.Object, int64, error)

// group replaces sources by the one pack that copy writes. Those that somebody
// began to rely on stay as they are.
//
// On error: sources are given their names back, as far as that can be done.
func (c *compaction) group(ctx context.Context, sources []source, copy copyFunc) error {
	condemned, err := c.condemn(sources)
	if err != nil {
		return errors.Join(err, c.giveBack(condemned))
	}
	// The second look makes condemning safe, as in a sweep: whoever relied on a
	// pack before it was condemned is seen now, whoever comes later misses it.
	now, err := c.r.look(ctx, c.view, nil)
	if err != nil {
		return errors.Join(err, c.giveBack(condemned))
	}
	var taken, busy []source
	for _, s := range condemned {
		_, claimed := now.claimed[s.id]
		_, fresh := now.fresh[s.id]
		if claimed || fresh {
			busy = append(busy, s)
		} else {
			taken = append(taken, s)
		}
	}
	if err := c.giveBack(busy); err != nil {
		return errors.Join(err, c.giveBack(taken))
	}
	c.report.Busy += len(busy)
	if len(taken) == 0 {
		return nil
	}
	to, objects, size, err := copy(ctx, taken)
	if errors.Is(err, fs.ErrNotExist) { // a sweep has taken the sources over, or our unfinished pack
		c.report.Busy += len(taken)
		return c.giveBack(taken)
	}
	if err != nil {
		return errors.Join(err, c.giveBack(taken))
	}
	c.report.WrittenBytes += uint64(size)
	return c.move(taken, to, objects)
}

// condemn gives sources names under which no round relies on them. It returns
// those that it got.
func (c *compaction) condemn(sources []source) (got []source, err error) {
	for _, s := range sources {
		err := c.r.fs.Rename(c.r.packPath(s.id), c.r.condemnedPath(s.id, c.token))
		if errors.Is(err, fs.ErrNotExist) {
			c.report.Busy++ // a sweep or another compaction has it
			continue
		}
		if err != nil {
			return got, err
		}
		c.touched[c.r.packDir(s.id)] = true
		got = append(got, s)
	}
	return got, c.sync()
}

// giveBack undoes condemn.
func (c *compaction) giveBack(sources []source) error {
	var errs []error
	for _, s := range sources {
		err := c.r.fs.Rename(c.r.condemnedPath(s.id, c.token), c.r.packPath(s.id))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
		c.touched[c.r.packDir(s.id)] = true
	}
	return errors.Join(append(errs, c.sync())...)
}

// copyLive writes the new pack. Its header names the round of the first source,
// which has an outcome: until something has moved to it, it is garbage.
func (c *compaction) copyLive(ctx context.Context, sources []source) (pack.ID, []pack.Object, int64, error) {
	return c.writePack(sources[0].use.round, func(out *repack) error {
		for _, s := range sources {
			if err := c.copyFrom(ctx, s, out); err != nil {
				return err
			}
		}
		return nil
	})
}

// writePack makes a pack of what fill adds.
func (c *compaction) writePack(round epochKey, fill func(*repack) error) (pack.ID, []pack.Object, int64, error) {
	id, err := c.r.newPackID()
	if err != nil {
		return id, nil, 0, err
	}
	h := pack.Header{ID: id, Repository: c.r.id, Cluster: round.cluster, Epoch: round.epoch, Node: compactorName}
	w, err := pack.Create(c.r.fs, c.r.packTempPath(id, round), c.r.packPath(id), h, pack.Options{Domain: c.r.domain})
	if err != nil {
		return id, nil, 0, err
	}
	out := &repack{w: w, encoder: c.encoder, decoder: pack.Decoder{Domain: c.r.domain}, written: map[object.ID]bool{},
		openRuns: newOpenRuns(c.r.cfg.RunBytes), compressed: make([]byte, pack.MaxStoredLen(pack.MaxRunBytes))}
	if err := fill(out); err != nil {
		return id, nil, 0, errors.Join(err, w.Discard())
	}
	for _, b := range []*runBuilder{&out.pages, &out.nodes} {
		if err := out.flush(b); err != nil {
			return id, nil, 0, errors.Join(err, w.Discard())
		}
	}
	objects := slices.Clone(w.Objects())
	size, err := w.Finalise()
	if err != nil {
		return id, nil, 0, errors.Join(err, w.Discard())
	}
	return id, objects, size, nil
}

// compactorName stands for the node in the header of a pack that was made of
// others.
const compactorName = "compaction"

// copyFrom copies the live objects of one source, each verified.
func (c *compaction) copyFrom(ctx context.Context, s source, out *repack) error {
	path, err := c.r.findPack(s.id)
	if err != nil {
		return err
	}
	t, err := pack.ReadTrailer(c.r.fs, path, s.id, c.r.domain)
	if err != nil {
		return err
	}
	if len(t.Objects) > 64*len(s.use.live) {
		return fmt.Errorf("%s has changed", pack.Name(s.id))
	}
	f, err := c.r.fs.Open(path)
	if err != nil {
		return err
	}
	defer f.Close() // opened for reading: nothing can be lost
	var stored, raw []byte
	var keep []pack.Object
	for n, run := range t.Runs {
		if err := ctx.Err(); err != nil {
			return err
		}
		keep = keep[:0]
		for i, o := range t.Objects[run.First : run.First+run.Count] {
			if s.use.isLive(int(run.First)+i) && !out.written[o.ID] {
				keep = append(keep, o)
			}
		}
		if len(keep) == 0 {
			continue
		}
		if stored, err = pack.ReadRun(f, run, stored); err != nil {
			return nameRun(s.id, uint32(n), err)
		}
		data, err := out.decoder.Decode(raw, run, stored)
		if err != nil {
			return nameRun(s.id, uint32(n), err)
		}
		if run.Algorithm != pack.Raw { // else data is stored
			raw = data
		}
		for _, o := range keep {
			out.sums.add(o.ID, data[o.Offset:][:o.Length])
		}
		if wrong := out.sums.wrong(); len(wrong) > 0 {
			return damage.New(fmt.Sprintf("object %s in %s", wrong[0], pack.Name(s.id)), errWrongHash)
		}
		for _, o := range keep {
			if err := out.add(o.Kind, o.ID, data[o.Offset:][:o.Length]); err != nil {
				return err
			}
		}
	}
	return nil
}

// repack collects objects in the runs of a new pack.
type repack struct {
	openRuns
	w          *pack.Writer
	encoder    *pack.Encoder
	decoder    pack.Decoder
	sums       sums
	compressed []byte
	written    map[object.ID]bool
}

func (p *repack) add(kind object.Kind, id object.ID, data []byte) error {
	b := p.of(kind)
	if b.isFull(len(data)) {
		if err := p.flush(b); err != nil {
			return err
		}
	}
	b.add(id, kind, data)
	p.written[id] = true
	return nil
}

func (p *repack) flush(b *runBuilder) error {
	if len(b.objects) == 0 {
		return nil
	}
	enc, err := p.encoder.Encode(p.compressed, b.raw)
	if err == nil {
		err = p.w.Append(enc, b.objects)
	}
	b.reset()
	return err
}

// move makes the new pack stand for the sources. From the rename on, who misses a
// source looks there. Only when that name is durable, and the new pack is still
// there, are the old bytes let go.
func (c *compaction) move(sources []source, to pack.ID, objects []pack.Object) error {
	var moved []source
	var errs []error
	for _, s := range sources {
		err := c.r.fs.Rename(c.r.condemnedPath(s.id, c.token), c.r.movedPath(s.id, to))
		if errors.Is(err, fs.ErrNotExist) {
			c.report.Busy++ // a sweep has taken it over
			continue
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		c.touched[c.r.packDir(s.id)] = true
		moved = append(moved, s)
	}
	if err := c.sync(); err != nil {
		return errors.Join(append(errs, err)...)
	}
	var gone []pack.ID
	for _, s := range moved {
		freed, err := c.r.settleMove(s.id, to)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if freed == 0 {
			c.report.Busy++
			continue
		}
		c.report.Compacted++
		c.report.FreedBytes += uint64(freed)
		gone = append(gone, s.id)
	}
	c.r.index.Remove(gone)
	if len(gone) > 0 {
		c.r.index.Add(to, objects)
	}
	return errors.Join(errs...)
}

func (c *compaction) sync() error { return c.touched.sync(c.r.fs) }

// settleMove ends a move whose name is durable: it lets the old bytes go if the
// pack they were copied to is there, and gives the old pack its name back if that
// one is gone, which can be when whoever moved it was killed. freed is the length
// of what was let go.
//
// It may be called by several processes at once, for any pack that is needed.
func (r *Repository) settleMove(id, to pack.ID) (freed int64, err error) {
	path := r.movedPath(id, to)
	info, err := r.fs.Stat(path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && info.Size == 0 {
		return 0, nil // somebody else has settled it
	}
	if err != nil {
		return 0, err
	}
	if err := r.fs.SyncDir(r.packDir(id)); err != nil { // whoever renamed it may have died before
		return 0, err
	}
	actual, _, err := r.followPack(to)
	if errors.Is(err, ErrCorrupt) && errors.Is(err, fs.ErrNotExist) {
		if err := r.fs.Rename(path, r.packPath(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return 0, err
		}
		return 0, r.fs.SyncDir(r.packDir(id))
	}
	if err != nil {
		return 0, err
	}
	if _, err := r.fs.Stat(r.packPath(actual)); errors.Is(err, fs.ErrNotExist) {
		return 0, nil // condemned by a sweep, which will give it back
	} else if err != nil {
		return 0, err
	}
	token, err := r.randomHex(tokenBytes)
	if err != nil {
		return 0, err
	}
	empty := filepath.Join(r.packDir(id), id.String()+emptyInfix+token)
	if err := vfs.WriteFile(r.fs, empty, nil); err != nil {
		return 0, err
	}
	if err := r.fs.Rename(empty, path); errors.Is(err, fs.ErrNotExist) {
		return 0, nil // a sweep took it for a dead process's; the next one settles the move
	} else if err != nil {
		return 0, err
	}
	return info.Size, r.fs.SyncDir(r.packDir(id))
}
