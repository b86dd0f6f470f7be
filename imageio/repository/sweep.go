package repository

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"

	"fermata/imageio/damage"
	"fermata/imageio/pack"
	"fermata/imageio/vfs"
)

// SweepReport is what a sweep did.
type SweepReport struct {
	Packs      int    // removed
	FreedBytes uint64 // by them and by unfinished packs
	Unfinished int    // packs removed that were never finalised
	Rescued    int    // packs that were condemned and given back
	// InFlight lists the rounds without an outcome, and the restarts, for which packs
	// were kept. One that will never end is ended with Abort.
	InFlight []Round
	// Unknown names packs that were kept because nothing tells their round.
	Unknown []string
}

// Round names a round.
type Round struct {
	Cluster string
	Epoch   uint64
	// Copied says that it is a copy or an import, which no coordinator drives. One that
	// was given up goes on when it is tried again.
	Copied bool
}

// Sweep removes the packs that no manifest needs, except those of rounds that
// have no outcome yet and those that such rounds have claimed, and what killed
// writers have left behind. It may be killed at any step, and it may run beside
// writers, commits, restarts of committed checkpoints and other sweeps.
//
// On error: it has removed at most what it might. An outcome or a claim that
// cannot be read stops it before it removes a single pack, as that record may
// need any; Delete or Abort the epoch, or bring the record back.
func (r *Repository) Sweep(ctx context.Context) (SweepReport, error) {
	token, err := r.randomHex(tokenBytes)
	if err != nil {
		return SweepReport{}, fmt.Errorf("sweep: %w", err)
	}
	s := &sweep{r: r, token: token, inFlight: map[epochKey]bool{}, touched: dirSet{}}
	if err := s.run(ctx); err != nil {
		return s.report, fmt.Errorf("sweep: %w", err)
	}
	return s.report, nil
}

// sweep is one run of Sweep. Its order is what R3 stands on; see FORMAT.md.
type sweep struct {
	r         *Repository
	token     string // makes the names it condemns its own
	view      *view
	condemned []condemnedPack
	inFlight  map[epochKey]bool
	touched   dirSet
	report    SweepReport
}

type condemnedPack struct {
	id   pack.ID
	path string
	size int64
}

func (s *sweep) run(ctx context.Context) error {
	files, err := s.r.listPacks(ctx)
	if err != nil {
		return err
	}
	if s.view, err = s.r.look(ctx, nil, nil); err != nil {
		return err
	}
	if err := s.condemn(ctx, files); err != nil {
		return errors.Join(err, s.giveBack())
	}
	// The second look is what makes condemning safe: whoever relied on a pack
	// before it was condemned is seen now, whoever comes later misses it.
	second, err := s.r.look(ctx, s.view, nil)
	if err != nil {
		return errors.Join(err, s.giveBack())
	}
	s.view = second
	if err := s.execute(); err != nil {
		return err
	}
	if err := s.finishMoves(files); err != nil {
		return err
	}
	s.removeStale(files)
	for _, e := range slices.SortedFunc(maps.Keys(s.view.claimers), compareRounds) {
		s.noteInFlight(e)
	}
	return s.syncTouched()
}

// condemn renames the packs that nothing needs, so that no round can begin to
// rely on them.
func (s *sweep) condemn(ctx context.Context, files []packFile) error {
	for _, f := range files {
		if err := ctx.Err(); err != nil {
			return err
		}
		if f.state != packFinal && f.state != packCondemned {
			continue
		}
		path := filepath.Join(s.r.packDir(f.id), f.name)
		// What another sweep has condemned is taken over in any case: it may
		// be dead, and the pack needed.
		if f.state == packFinal {
			condemn, err := s.isGarbage(f.id, path)
			if err != nil {
				return err
			}
			if !condemn {
				continue
			}
		}
		info, err := s.r.fs.Stat(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // another sweep has it
		}
		if err != nil {
			return err
		}
		to := s.r.condemnedPath(f.id, s.token)
		if err := s.r.fs.Rename(path, to); errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return err
		}
		s.touched[s.r.packDir(f.id)] = true
		s.condemned = append(s.condemned, condemnedPack{id: f.id, path: to, size: info.Size})
	}
	return s.syncTouched()
}

// isGarbage says that the first look shows no need for a pack.
func (s *sweep) isGarbage(id pack.ID, path string) (bool, error) {
	if s.view.needs(id) {
		return false, nil
	}
	e, err := s.r.roundOf(id, path)
	switch {
	case err == nil:
	case errors.Is(err, fs.ErrNotExist):
		return false, nil // another sweep has it
	case errors.Is(err, ErrCorrupt), errors.Is(err, ErrNewerFormat):
		s.report.Unknown = append(s.report.Unknown, pack.Name(id))
		return false, nil
	default:
		return false, err
	}
	if s.view.outcomes[e] == OutcomeNone {
		s.noteInFlight(e)
		return false, nil
	}
	return true, nil
}

// roundOf tells which round made a pack, from its header or, if that is
// damaged, from the copy in its trailer.
func (r *Repository) roundOf(id pack.ID, path string) (epochKey, error) {
	h, err := pack.ReadHeader(r.fs, path, id)
	if errors.Is(err, ErrCorrupt) {
		t, terr := pack.ReadTrailer(r.fs, path, id, r.domain)
		if terr != nil {
			return epochKey{}, err
		}
		h, err = t.Header, nil
	}
	if err != nil {
		return epochKey{}, err
	}
	if h.Repository != r.id {
		return epochKey{}, damage.New(pack.Name(id), fmt.Errorf("is of repository %.80q", h.Repository))
	}
	return epochKey{h.Cluster, h.Epoch}, nil
}

// execute removes the condemned packs that the second look does not need
// either, and gives back the others.
func (s *sweep) execute() error {
	var gone []pack.ID
	var errs []error
	for _, c := range s.condemned {
		if s.view.needs(c.id) {
			errs = append(errs, s.rescue(c))
			continue
		}
		err := s.r.fs.Remove(c.path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // another sweep has taken it over
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		s.touched[s.r.packDir(c.id)] = true
		s.report.Packs++
		s.report.FreedBytes += uint64(c.size)
		gone = append(gone, c.id)
	}
	s.r.index.Remove(gone)
	return errors.Join(errs...)
}

// rescue gives a condemned pack its name back.
func (s *sweep) rescue(c condemnedPack) error {
	err := s.r.fs.Rename(c.path, s.r.packPath(c.id))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // another sweep has taken it over
	}
	if err == nil {
		s.report.Rescued++
		s.touched[s.r.packDir(c.id)] = true
	}
	return err
}

// giveBack undoes condemn when the sweep cannot go on.
func (s *sweep) giveBack() error {
	var errs []error
	for _, c := range s.condemned {
		errs = append(errs, s.rescue(c))
	}
	s.condemned = nil
	return errors.Join(append(errs, s.syncTouched())...)
}

// finishMoves ends what killed compactions have begun.
func (s *sweep) finishMoves(files []packFile) error {
	var errs []error
	for _, f := range files {
		if f.state != packMoved || !s.view.needs(f.id) {
			continue
		}
		freed, err := s.r.settleMove(f.id, f.to)
		s.report.FreedBytes += uint64(freed)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// removeStale removes what decided rounds have left: unfinished packs, claims,
// temporary names, marks of damage on packs that are gone. What cannot be
// removed now is left to the next sweep.
func (s *sweep) removeStale(files []packFile) {
	present := map[pack.ID]bool{}
	for _, f := range files {
		if f.state == packFinal || f.state == packCondemned {
			present[f.id] = true
		}
	}
	for _, f := range files {
		path := filepath.Join(s.r.packDir(f.id), f.name)
		switch {
		case f.state == packTemp && s.view.outcomes[f.epoch] != OutcomeNone:
			info, err := s.r.fs.Stat(path)
			if err == nil && s.remove(path) {
				s.report.Unfinished++
				s.report.FreedBytes += uint64(info.Size)
			}
		case f.state == packTemp:
			s.noteInFlight(f.epoch)
		case f.state == packDamaged && !present[f.id]:
			s.remove(path)
		case f.state == packEmpty, f.state == packMoved && !s.view.needs(f.id):
			s.remove(path)
		}
	}
	for _, path := range s.view.stale {
		s.remove(path)
	}
}

func (s *sweep) remove(path string) bool {
	if s.r.fs.Remove(path) != nil {
		return false
	}
	s.touched[filepath.Dir(path)] = true
	return true
}

func compareRounds(a, b epochKey) int {
	return cmp.Or(cmp.Compare(a.cluster, b.cluster), cmp.Compare(a.epoch, b.epoch))
}

func (s *sweep) noteInFlight(e epochKey) {
	if !s.inFlight[e] {
		s.inFlight[e] = true
		s.report.InFlight = append(s.report.InFlight, Round{Cluster: e.cluster, Epoch: e.epoch, Copied: s.view.copied[e]})
	}
}

func (s *sweep) syncTouched() error { return s.touched.sync(s.r.fs) }

// dirSet is directories whose names are to be made durable.
type dirSet map[string]bool

// sync makes them durable, in order of name, and forgets them.
func (d dirSet) sync(fsys vfs.FS) error {
	var errs []error
	for _, dir := range slices.Sorted(maps.Keys(d)) {
		errs = append(errs, fsys.SyncDir(dir))
	}
	clear(d)
	return errors.Join(errs...)
}
