package repository

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"

	"fermata/imageio/manifest"
	"fermata/imageio/object"
	"fermata/imageio/pack"
	"fermata/imageio/vfs"
)

// RepairReport is what Repair found and did.
type RepairReport struct {
	Found    CheckReport // before
	Repaired []string    // packs that were replaced, by ID
	Left     CheckReport // after: what the damage that is left costs
}

// Repair looks for damage as a Check that reads everything does, and makes good
// what can be: a pack that is damaged or gone is replaced, if whatever checkpoints
// need of it is whole in that pack or in any other one. Later checkpoints store the
// pages of a marked pack again, so that time mends. Bytes are given up only if all
// that is needed of their pack is elsewhere; a pack of which something is lost
// stays as it is, for its disk may come back.
//
// It may run beside everything else, and be killed, as Prune may. progress is told
// how many checkpoints are checked.
func (r *Repository) Repair(ctx context.Context, progress func(done, total int)) (RepairReport, error) {
	var report RepairReport
	if err := r.repair(ctx, &report, progress); err != nil {
		return report, fmt.Errorf("repair: %w", err)
	}
	return report, nil
}

func (r *Repository) repair(ctx context.Context, report *RepairReport, progress func(done, total int)) error {
	opt := CheckOptions{ReadData: true, Progress: progress}
	// First what others were killed at: condemned packs get their names back.
	_, err := r.Sweep(ctx)
	var before *view
	if err == nil {
		before, err = r.look(ctx, nil, nil)
	}
	if errors.Is(err, ErrCorrupt) {
		// A record that cannot be read may need any pack, so none may be replaced.
		c, cerr := r.check(ctx, opt)
		report.Found, report.Left = c.report, c.report
		return cerr
	}
	if err != nil {
		return err
	}
	c, err := r.check(ctx, opt)
	report.Found, report.Left = c.report, c.report
	if err != nil || len(c.report.Damage) == 0 {
		return err
	}
	m := &mending{r: r, found: c, lost: map[pack.ID]bool{}, needs: map[pack.ID]*needs{}}
	if err := m.plan(ctx); err != nil {
		return err
	}
	for _, id := range m.order {
		if m.lost[id] {
			continue
		}
		ok, err := m.mend(ctx, before, id)
		if err != nil {
			return err
		}
		if ok {
			report.Repaired = append(report.Repaired, id.String())
		}
	}
	if len(report.Repaired) == 0 {
		return nil
	}
	if c, err = r.check(ctx, opt); err != nil {
		return err
	}
	report.Left = c.report
	return nil
}

// mending is one run of Repair.
type mending struct {
	r       *Repository
	found   *checked
	healthy *Reader            // of all objects that are whole, wherever
	order   []pack.ID          // packs to replace
	needs   map[pack.ID]*needs // by pack to replace
	lost    map[pack.ID]bool   // packs of which something is nowhere
}

// needs is what checkpoints need of a pack.
type needs struct {
	round   epochKey // one that needs it, and has an outcome
	present bool     // the pack has a name
	objects map[object.ID]object.Kind
}

// isSick says that a pack was found wrong.
func (c *checked) isSick(id pack.ID) bool {
	s := c.known[id]
	return s != nil && (s.err != nil || len(s.bad) > 0)
}

// isWhole says that an object of a pack was found right, or was not looked at.
func (c *checked) isWhole(id pack.ID, o *pack.Object) bool {
	s := c.known[id]
	if s == nil {
		return true
	}
	for _, b := range s.bad {
		if b.run != o.Run {
			continue
		}
		return b.err == nil && !slices.ContainsFunc(b.objs, func(x pack.Object) bool { return x.Offset == o.Offset })
	}
	return s.err == nil
}

// plan finds out what is needed of packs with damage.
func (m *mending) plan(ctx context.Context) error {
	files, err := m.r.listPacks(ctx)
	if err != nil {
		return err
	}
	var all []pack.ID
	for _, f := range files {
		if f.state == packFinal {
			all = append(all, f.id)
		}
	}
	// Packs that cannot be read are left out.
	if m.healthy, err = m.r.loadPacks(ctx, all, m.found.isWhole); err != nil {
		return err
	}
	return m.r.eachManifest(ctx, nil, func(man *manifest.Manifest) error { return m.planOne(ctx, man) })
}

// planOne adds what one checkpoint needs.
func (m *mending) planOne(ctx context.Context, man *manifest.Manifest) error {
	ids, err := packIDsOf(man.Packs)
	if err != nil {
		return err
	}
	var sick []pack.ID
	for _, id := range ids {
		actual, _, err := m.r.followPack(id)
		if err != nil {
			actual = id // gone under this name
		}
		if err != nil || m.found.isSick(id) || m.found.isSick(actual) {
			sick = append(sick, actual)
			if m.needs[actual] == nil {
				m.needs[actual] = &needs{round: epochKey{man.Cluster, man.Epoch}, present: err == nil, objects: map[object.ID]object.Kind{}}
				m.order = append(m.order, actual)
			}
		}
	}
	if len(sick) == 0 {
		return nil
	}
	own, err := m.r.loadPacks(ctx, ids, m.found.isWhole)
	if err != nil {
		return err
	}
	contents := map[pack.ID]*Reader{} // of what the trailers of the sick say
	for _, id := range sick {
		if contents[id], err = m.r.loadPacks(ctx, []pack.ID{id}, nil); err != nil {
			return err
		}
	}
	need := func(kind object.Kind, id object.ID) {
		_, there := own.index.Lookup(id)
		_, found := m.healthy.index.Lookup(id)
		for _, p := range sick {
			// Of what no trailer tells the pack, any of the sick may have had it.
			if _, here := contents[p].index.Lookup(id); here || !there {
				m.needs[p].objects[id] = kind
				m.lost[p] = m.lost[p] || !found
			}
		}
	}
	return eachRef(man, func(_ *manifest.Guest, ref Ref) error {
		need(object.KindRoot, ref.ID)
		err := m.healthy.eachObject(ctx, ref, traversal{want: func(kind object.Kind, id object.ID) bool {
			need(kind, id)
			return false
		}})
		if errors.Is(err, ErrCorrupt) { // a node is nowhere, and what is below it is not known
			for _, p := range sick {
				m.lost[p] = true
			}
			return nil
		}
		return err
	})
}

// mend replaces one pack.
func (m *mending) mend(ctx context.Context, before *view, id pack.ID) (bool, error) {
	c, err := m.r.newCompaction(before)
	if err != nil {
		return false, err
	}
	need := m.needs[id]
	gather := func(ctx context.Context, _ []source) (pack.ID, []pack.Object, int64, error) {
		return c.writePack(need.round, func(out *repack) error { return m.gather(ctx, need, out) })
	}
	if need.present {
		err := c.group(ctx, []source{{id, &packUse{round: need.round}}}, gather)
		return err == nil && c.report.Compacted > 0, err
	}
	to, objects, _, err := gather(ctx, nil)
	if err != nil {
		return false, err
	}
	dir := m.r.packDir(id)
	if err := m.r.ensureDir(dir); err != nil {
		return false, err
	}
	// As for a pack that moves: first the name, then the look whether the new pack
	// is there, so that a sweep sees the one or has taken the other.
	if err := vfs.WriteFile(m.r.fs, m.r.movedPath(id, to), nil); err != nil {
		return false, err
	}
	if err := m.r.fs.SyncDir(dir); err != nil {
		return false, err
	}
	if _, err := m.r.fs.Stat(m.r.packPath(to)); errors.Is(err, fs.ErrNotExist) {
		return false, errors.Join(m.r.fs.Remove(m.r.movedPath(id, to)), m.r.fs.SyncDir(dir))
	} else if err != nil {
		return false, err
	}
	m.r.index.Add(to, objects)
	return true, nil
}

// gather copies what is needed from wherever it is whole.
func (m *mending) gather(ctx context.Context, need *needs, out *repack) error {
	var wants []want
	for id, kind := range need.objects {
		w, ok, err := m.healthy.locate(id, kind, int64(len(wants)))
		if err != nil {
			return err
		}
		if ok {
			wants = append(wants, w)
		}
	}
	var mu sync.Mutex
	return m.healthy.fetch(ctx, wants, func(run []byte, batch []want) error {
		mu.Lock()
		defer mu.Unlock()
		for _, w := range batch {
			if err := out.add(need.objects[w.id], w.id, run[w.loc.Offset:][:w.loc.Length]); err != nil {
				return err
			}
		}
		return nil
	})
}
