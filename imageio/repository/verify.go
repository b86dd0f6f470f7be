package repository

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"

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

// VerifyReport is what Verify has found. It is the same for the same repository.
type VerifyReport struct {
	Bytes  uint64   // read and verified, uncompressed
	Damage []Damage // in order of Object
	// Unrecorded is why the repository could not be told of what was found, as on a file
	// system that is full or can only be read. Empty: it was.
	Unrecorded string
}

// Damage is one thing that is not as it was written.
type Damage struct {
	Object string // pack, run or object
	Reason string
	// Guests cannot be restored because of it; in order. None if nothing of this
	// checkpoint lies there, or if other packs hold whole copies.
	Guests []string
}

// Verify reads every byte of the packs of a checkpoint, and follows the images
// of its guests. Packs that it finds damaged are marked, so that later
// checkpoints store their pages anew instead of relying on them. What the damage costs
// this checkpoint, and others that need those packs, is recorded: see KnownDamage.
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
	known := scans{}
	report, err := r.verify(ctx, m, opt, known, func(pack.ID) bool { return true })
	if err != nil {
		return report, fmt.Errorf("verify %s@%d: %w", m.Cluster, m.Epoch, err)
	}
	err = r.record(ctx, epochKey{m.Cluster, m.Epoch}, costly(report.Damage), true)
	if len(report.Damage) > 0 {
		err = errors.Join(err, r.spread(ctx, m, known))
	}
	report.noteUnrecorded(err)
	return report, nil
}

// noteUnrecorded keeps the first reason why something could not be recorded.
func (r *VerifyReport) noteUnrecorded(err error) {
	if err != nil && r.Unrecorded == "" {
		r.Unrecorded = err.Error()
	}
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

	mu      sync.Mutex
	missing []lostObject // guarded by mu; of the image that is followed
}

// lostObject is an object that no pack has whole.
type lostObject struct {
	want  want
	known bool // a trailer says where it is
	cause error
}

func (v *verify) noteLost(w want, known bool, cause error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.missing = append(v.missing, lostObject{w, known, cause})
}

func (v *verify) run(ctx context.Context, m *manifest.Manifest) error {
	ids, err := packIDsOf(m.Packs)
	if err != nil {
		return err
	}
	rd, err := v.r.loadPacks(ctx, ids, nil)
	if err != nil {
		return err
	}
	rd.lost = v.noteLost
	v.rd = rd
	for _, id := range rd.packs {
		if err := rd.failed[id]; errors.Is(err, frame.ErrNewerFormat) {
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
	for _, ordinal := range rd.ordinals() {
		if err := v.scanPack(ctx, ordinal); err != nil {
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
	slices.SortStableFunc(v.report.Damage, func(a, b Damage) int { return cmp.Compare(a.Object, b.Object) })
	v.report.noteUnrecorded(v.mark(append(ids, rd.index.Packs()...))) // those it names, and where they have moved
	return nil
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
	if len(all.wrong()) == 0 {
		return bad
	}
	for _, o := range objects { // which?
		if object.Sum(raw[o.Offset:o.Offset+o.Length]) != o.ID {
			bad.objs = append(bad.objs, o)
		}
	}
	return bad
}

// follow walks an image and attributes what is lost of it to the guest. Pages with
// damage are read: other packs may hold whole copies.
func (v *verify) follow(ctx context.Context, guest string, ref Ref) error {
	v.missing = nil
	err := v.rd.pages(ctx, ref, func(wants []want, _, _ int64) error {
		var doubtful []want
		for _, w := range wants {
			if _, _, bad := v.damageAt(w); bad {
				doubtful = append(doubtful, w)
			}
		}
		return v.rd.fetch(ctx, doubtful, func([]byte, []want) error { return nil })
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil { // a node that is whole, and yet wrong
		v.hitNamed(guest, "image "+ref.ID.String(), err)
	}
	slices.SortFunc(v.missing, func(a, b lostObject) int { return bytes.Compare(a.want.id[:], b.want.id[:]) })
	for _, l := range v.missing {
		v.attribute(guest, l)
	}
	return nil
}

// damageAt returns the positions in the report of what is wrong where an object has its
// first copy: of its run, and of itself, -1 for neither.
func (v *verify) damageAt(w want) (run, object int, bad bool) {
	run, object = -1, -1
	if at, ok := v.runs[place{w.loc.Pack, w.loc.Run, 0}]; ok {
		run, bad = at, true
	}
	if at, ok := v.objects[place{w.loc.Pack, w.loc.Run, w.loc.Offset}]; ok {
		object, bad = at, true
	}
	return run, object, bad
}

// attribute says which damage costs the guest a lost object.
func (v *verify) attribute(guest string, l lostObject) {
	run, object, bad := v.damageAt(l.want) // of the copy that was tried last
	switch {
	case l.known && bad:
		for _, at := range []int{run, object} {
			if at >= 0 {
				v.hit(at, guest)
			}
		}
	case !l.known && len(v.failed) > 0:
		for _, at := range v.failed { // which of them had it, nothing tells
			v.hit(at, guest)
		}
	default:
		v.hitNamed(guest, fmt.Sprintf("%s %s", l.want.kind, l.want.id), l.cause)
	}
}

// hitNamed attributes damage that no scan has found. name is its object if err has none.
func (v *verify) hitNamed(guest, name string, err error) {
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
