package repository

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"golang.org/x/sync/errgroup"

	"fermata/imageio/damage"
	"fermata/imageio/frame"
	"fermata/imageio/manifest"
	"fermata/imageio/object"
	"fermata/imageio/pack"
	"fermata/imageio/vfs"
)

// VerifyOptions modify Verify.
type VerifyOptions struct {
	// Progress is told how many bytes are verified, uncompressed, and how many
	// there are in the packs that can be read. Its calls are never concurrent
	// and never go back.
	Progress func(doneBytes, totalBytes int64)
}

// VerifyReport is what Verify has found.
type VerifyReport struct {
	Bytes  uint64 // read and verified, uncompressed
	Damage []Damage
}

// Damage is one thing that is not as it was written.
type Damage struct {
	Object string // pack, run or object
	Reason string
	Guests []string // that cannot be restored for it, in order; none if nothing of this checkpoint lies there
}

// Verify reads every byte of the packs of a checkpoint, and follows the images
// of its guests. Packs that it finds damaged are marked, so that later
// checkpoints store their pages anew instead of relying on them.
//
// On error: the report is not complete. Damage is not an error.
func (r *Repository) Verify(ctx context.Context, m *manifest.Manifest, opt VerifyOptions) (VerifyReport, error) {
	if tell, told := opt.Progress, int64(-1); tell != nil {
		opt.Progress = func(done, total int64) {
			if done > told {
				told = done
				tell(done, total)
			}
		}
	}
	report, err := r.verify(ctx, m, opt, scans{}, func(pack.ID) bool { return true })
	if err != nil {
		return report, fmt.Errorf("verify %s@%d: %w", m.Cluster, m.Epoch, err)
	}
	return report, nil
}

// scans is what is known of packs that were read. It is shared by the checkpoints
// of one Check, so that no pack is read twice.
type scans map[pack.ID]*scan

// scan is what was found wrong with one pack.
type scan struct {
	err   error    // it cannot be read at all
	bad   []badRun // runs with damage
	bytes uint64   // that are right, uncompressed
}

// verify is Verify that reads the packs that read chooses, and of the others only
// headers and trailers. What it reads it adds to known.
func (r *Repository) verify(ctx context.Context, m *manifest.Manifest, opt VerifyOptions, known scans, read func(pack.ID) bool) (VerifyReport, error) {
	for range maxMoves {
		v := &verify{r: r, opt: opt, scans: known, read: read, runs: map[place]int{}, objects: map[place]int{}, bad: map[pack.ID]bool{}}
		err := v.run(ctx, m)
		var moved *movedError
		if !errors.As(err, &moved) {
			return v.report, err
		} // else a pack was compacted meanwhile: look again
	}
	return VerifyReport{}, errors.New("its packs move all the time")
}

// place is a run, or an object at an offset in it.
type place struct{ pack, run, offset uint32 }

// verify is one run of Verify. Only its own goroutine touches the maps.
type verify struct {
	r       *Repository
	opt     VerifyOptions
	scans   scans
	read    func(pack.ID) bool
	rd      *Reader
	failed  []int         // packs that cannot be read, as positions in report.Damage
	runs    map[place]int // damaged runs (offset 0): position in report.Damage
	objects map[place]int // damaged objects: position in report.Damage
	bad     map[pack.ID]bool
	total   int64
	report  VerifyReport
}

func (v *verify) run(ctx context.Context, m *manifest.Manifest) error {
	ids, err := packIDsOf(m.Packs)
	if err != nil {
		return err
	}
	rd, failed, err := v.r.loadPacks(ctx, ids, nil)
	if err != nil {
		return err
	}
	v.rd = rd
	for _, id := range ids {
		if err := failed[id]; errors.Is(err, frame.ErrNewerFormat) {
			return err
		} else if err != nil {
			v.scans[id] = &scan{err: err}
			v.failed = append(v.failed, v.add(id, pack.Name(id), err))
		}
	}
	for ordinal, runs := range rd.runs {
		if !v.read(rd.index.PackID(uint32(ordinal))) {
			continue
		}
		for _, run := range runs {
			v.total += int64(run.RawLen)
		}
	}
	for ordinal := range rd.runs {
		if err := v.scanPack(ctx, uint32(ordinal)); err != nil {
			return err
		}
	}
	for i := range m.Guests {
		for _, o := range m.Guests[i].Objects {
			if err := v.follow(ctx, m.Guests[i].Name, RefOf(o)); err != nil {
				return err
			}
		}
	}
	return v.mark(append(ids, rd.index.Packs()...)) // those it names, and where they have moved
}

// add notes damage of a pack and returns its position.
func (v *verify) add(id pack.ID, name string, reason error) int {
	v.bad[id] = true
	v.report.Damage = append(v.report.Damage, Damage{Object: name, Reason: reasonOf(reason)})
	return len(v.report.Damage) - 1
}

// reasonOf leaves out the name that a damage error begins with.
func reasonOf(err error) string {
	var d *damage.Error
	if errors.As(err, &d) {
		return d.Reason.Error()
	}
	return err.Error()
}

// badRun is what a scan found wrong with one run.
type badRun struct {
	run  uint32
	err  error         // the run cannot be read
	objs []pack.Object // else: these are not what they should be
}

// scanPack notes what is wrong with a pack, which it reads if nobody has.
func (v *verify) scanPack(ctx context.Context, ordinal uint32) error {
	id := v.rd.index.PackID(ordinal)
	found := v.scans[id]
	if found == nil {
		var err error
		if found, err = v.scan(ctx, id); err != nil {
			return err
		}
		v.scans[id] = found
	}
	if found.err != nil {
		v.failed = append(v.failed, v.add(id, pack.Name(id), found.err))
		return nil
	}
	for _, b := range found.bad {
		name := fmt.Sprintf("%s, run %d", pack.Name(id), b.run)
		if b.err != nil {
			v.runs[place{ordinal, b.run, 0}] = v.add(id, name, b.err)
		}
		for _, o := range b.objs {
			at := v.add(id, fmt.Sprintf("%s %s in %s", o.Kind, o.ID, name), errWrongHash)
			v.objects[place{ordinal, b.run, o.Offset}] = at
		}
	}
	v.report.Bytes += found.bytes
	if v.opt.Progress != nil {
		v.opt.Progress(int64(v.report.Bytes), v.total)
	}
	return nil
}

// scan reads all of a pack, if it is to be read.
//
// On error: *movedError, or ctx.
func (v *verify) scan(ctx context.Context, id pack.ID) (*scan, error) {
	t, f, err := v.openWhole(id)
	var moved *movedError
	if errors.As(err, &moved) {
		return nil, err
	}
	if err != nil {
		return &scan{err: err}, nil
	}
	defer f.Close() // opened for reading: nothing can be lost
	if !v.read(id) {
		return &scan{}, nil
	}
	all := make([]badRun, len(t.Runs))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(v.r.cfg.Workers)
	for i := range t.Runs {
		if gctx.Err() != nil {
			break
		}
		g.Go(func() error {
			all[i] = v.scanRun(t, f, uint32(i))
			return nil
		})
	}
	if err := errors.Join(g.Wait(), ctx.Err()); err != nil {
		return nil, err
	}
	found := &scan{}
	for i, b := range all {
		if b.err == nil {
			found.bytes += uint64(t.Runs[i].RawLen)
		}
		if b.err != nil || len(b.objs) > 0 {
			found.bad = append(found.bad, b)
		}
	}
	return found, nil
}

// openWhole opens a pack and checks what readers pass over: its header.
func (v *verify) openWhole(id pack.ID) (*pack.Trailer, vfs.File, error) {
	path, err := v.r.findPack(id)
	if err != nil {
		return nil, nil, err
	}
	t, err := pack.ReadTrailer(v.r.fs, path, id, v.r.domain)
	if err != nil {
		return nil, nil, err
	}
	h, err := pack.ReadHeader(v.r.fs, path, id)
	if err != nil {
		return nil, nil, err
	}
	if h != t.Header {
		return nil, nil, errors.New("header and trailer differ")
	}
	f, err := v.r.fs.Open(path)
	return t, f, err
}

func (v *verify) scanRun(t *pack.Trailer, f vfs.File, i uint32) badRun {
	run := t.Runs[i]
	bad := badRun{run: i}
	stored, err := pack.ReadRun(f, run, nil)
	if err != nil {
		bad.err = err
		return bad
	}
	raw, err := v.rd.decoder.Decode(nil, run, stored)
	if err != nil {
		bad.err = err
		return bad
	}
	objects := t.Objects[run.First : run.First+run.Count]
	var all sums
	for _, o := range objects {
		all.add(o.ID, raw[o.Offset:o.Offset+o.Length])
	}
	if _, some := all.wrong(); !some {
		return bad
	}
	for _, o := range objects { // which?
		if object.Sum(raw[o.Offset:o.Offset+o.Length]) != o.ID {
			bad.objs = append(bad.objs, o)
		}
	}
	return bad
}

// follow walks an image and attributes damage to the guest.
func (v *verify) follow(ctx context.Context, guest string, ref Ref) error {
	err := v.rd.pages(ctx, ref, func(wants []want, _, _ int64) error {
		for _, w := range wants {
			if at, ok := v.runs[place{w.loc.Pack, w.loc.Run, 0}]; ok {
				v.hit(at, guest)
			}
			if at, ok := v.objects[place{w.loc.Pack, w.loc.Run, w.loc.Offset}]; ok {
				v.hit(at, guest)
			}
		}
		return nil
	})
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, errNoPack) && len(v.failed) > 0 {
		for _, at := range v.failed { // which of them had it, nothing tells
			v.hit(at, guest)
		}
		return nil
	}
	v.hitNamed(guest, ref, err)
	return nil
}

// hitNamed attributes damage that stops the walk: of leaves and above.
func (v *verify) hitNamed(guest string, ref Ref, err error) {
	name := "image " + ref.ID.String()
	var d *damage.Error
	if errors.As(err, &d) {
		name = d.Object
	}
	for at := range v.report.Damage {
		if v.report.Damage[at].Object == name {
			v.hit(at, guest)
			return
		}
	}
	v.report.Damage = append(v.report.Damage, Damage{Object: name, Reason: reasonOf(err), Guests: []string{guest}})
}

func (v *verify) hit(at int, guest string) {
	d := &v.report.Damage[at]
	if i, found := slices.BinarySearch(d.Guests, guest); !found {
		d.Guests = slices.Insert(d.Guests, i, guest)
	}
}

// mark leaves a mark beside each damaged pack that is there, and takes it from
// those that are whole: a disk that could not be read may be back.
func (v *verify) mark(ids []pack.ID) error {
	var errs []error
	for _, id := range ids {
		err := v.markPack(id)
		if err != nil && !errors.Is(err, fs.ErrExist) && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("mark %s: %w", pack.Name(id), err))
		}
	}
	return errors.Join(errs...)
}

func (v *verify) markPack(id pack.ID) error {
	mark := v.r.damagedPath(id)
	if v.bad[id] {
		v.r.index.Remove([]pack.ID{id})
		if _, err := v.r.fs.Stat(v.r.packPath(id)); err != nil {
			return err
		}
		if err := vfs.WriteFile(v.r.fs, mark, nil); err != nil {
			return err
		}
	} else if v.read(id) {
		if _, err := v.r.fs.Stat(mark); err != nil {
			return err
		}
		if err := v.r.fs.Remove(mark); err != nil {
			return err
		}
	}
	return v.r.fs.SyncDir(v.r.packDir(id))
}
