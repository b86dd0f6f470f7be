package repository

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"fermata/imageio/manifest"
	"fermata/imageio/pack"
)

// PruneOptions say what PlanPrune may give up.
type PruneOptions struct {
	Retention Retention
	// Clusters are those that Retention is for. Nil: all.
	Clusters []string
	// CompactBelow, 0 to 1: packs of which a smaller part is needed are compacted.
	// 0: none are.
	CompactBelow float64
	// MemoryBytes bounds the table of needed objects. What it does not hold at once
	// is looked at in several passes. Default 256 MiB.
	MemoryBytes int64
	// Progress is told what is done now, and how far it is; total is 0 where that
	// is not known. Its calls are never concurrent.
	Progress func(step string, done, total int64)
}

const (
	defaultPruneMemory = 256 << 20

	stepRead    = "read"
	stepMark    = "mark"
	stepDelete  = "delete"
	stepSweep   = "sweep"
	stepCompact = "compact"
)

func (o *PruneOptions) applyDefaults() {
	if o.MemoryBytes == 0 {
		o.MemoryBytes = defaultPruneMemory
	}
	if o.Progress == nil {
		o.Progress = func(string, int64, int64) {}
	}
}

// Validate reports every problem at once.
func (o PruneOptions) Validate() error {
	errs := []error{o.Retention.Validate()}
	for _, c := range o.Clusters {
		errs = append(errs, manifest.ValidCluster(c))
	}
	if !(o.CompactBelow >= 0 && o.CompactBelow <= 1) { // not a number is neither
		errs = append(errs, fmt.Errorf("compact below %v: want 0 to 1", o.CompactBelow))
	}
	if o.MemoryBytes < 0 {
		errs = append(errs, fmt.Errorf("memory: negative (%d bytes)", o.MemoryBytes))
	}
	return errors.Join(errs...)
}

// PrunePlan says what Prune would do, and is what it does.
type PrunePlan struct {
	Checkpoints  []Decision // of the clusters that were asked for, by cluster, oldest first
	GarbagePacks int        // that no checkpoint needs then
	GarbageBytes uint64
	CompactPacks int    // of which too little is needed
	CompactBytes uint64 // in them now
	KeepBytes    uint64 // about what is left of those
	InFlight     []Round
	Unknown      []string // packs that nothing tells the round of
	// NoCompaction is why packs are not compacted, although that was asked for.
	NoCompaction string

	opt     PruneOptions
	view    *view
	sources []source
}

// PruneReport is what Prune did.
type PruneReport struct {
	Deleted      int      // checkpoints
	Swept        int      // packs removed whole
	Compacted    int      // packs replaced by what is needed of them
	Busy         int      // packs left as they are, for somebody began to need them
	FreedBytes   uint64   // by all of it
	WrittenBytes uint64   // of new packs, by compaction
	Damaged      []string // what could not be compacted because it is damaged
	NoRoom       string   // why compaction ended early: it needs room for a new pack
}

// PlanPrune decides what Prune is to do, and changes nothing. It takes memory for
// the names of packs, a bit an object and what MemoryBytes allows.
//
// On error: as for Sweep.
func (r *Repository) PlanPrune(ctx context.Context, opt PruneOptions) (*PrunePlan, error) {
	if err := opt.Validate(); err != nil {
		return nil, fmt.Errorf("plan prune: %w", err)
	}
	opt.applyDefaults()
	p := &PrunePlan{opt: opt}
	if err := r.plan(ctx, p); err != nil {
		return nil, fmt.Errorf("plan prune: %w", err)
	}
	return p, nil
}

func (r *Repository) plan(ctx context.Context, p *PrunePlan) error {
	p.opt.Progress(stepRead, 0, 0)
	clusters := p.opt.Clusters
	if clusters == nil {
		var err error
		if clusters, err = r.Clusters(ctx); err != nil {
			return err
		}
	}
	without := map[epochKey]bool{}
	for _, cluster := range clusters {
		entries, err := r.Checkpoints(ctx, cluster)
		if err != nil {
			return err
		}
		for _, d := range p.opt.Retention.decide(cluster, entries) {
			p.Checkpoints = append(p.Checkpoints, d)
			if !d.Keep {
				without[epochKey{cluster, d.Epoch}] = true
			}
		}
	}
	files, err := r.listPacks(ctx)
	if err != nil {
		return err
	}
	if p.view, err = r.look(ctx, nil, without); err != nil {
		return err
	}
	var live []pack.ID // that are final
	s := &sweep{r: r, view: p.view, inFlight: map[epochKey]bool{}}
	for _, f := range files {
		if f.state != packFinal {
			continue
		}
		if p.view.needs(f.id) {
			live = append(live, f.id)
			continue
		}
		path := r.packPath(f.id)
		garbage, err := s.isGarbage(f.id, path)
		if err != nil {
			return err
		}
		if garbage {
			info, err := r.fs.Stat(path)
			if err != nil {
				return err
			}
			p.GarbagePacks++
			p.GarbageBytes += uint64(info.Size)
		}
	}
	p.InFlight, p.Unknown = s.report.InFlight, s.report.Unknown
	if p.opt.CompactBelow > 0 {
		return r.planCompaction(ctx, p, live, without)
	}
	return nil
}

// planCompaction chooses the packs that are to be compacted.
func (r *Repository) planCompaction(ctx context.Context, p *PrunePlan, live []pack.ID, without map[epochKey]bool) error {
	uses, err := r.mark(ctx, live, p.opt.MemoryBytes,
		func(visit func(*manifest.Manifest) error) error { return r.eachManifest(ctx, without, visit) },
		func(done, total int) { p.opt.Progress(stepMark, int64(done), int64(total)) })
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		// Nothing is lost by not compacting, and a damaged repository has to be
		// swept, too.
		p.NoCompaction = err.Error()
		return nil
	}
	for id, use := range uses {
		_, claimed := p.view.claimed[id]
		undecided := p.view.outcomes[use.round] == OutcomeNone
		if claimed || undecided || use.share() >= p.opt.CompactBelow {
			continue
		}
		p.sources = append(p.sources, source{id, use})
		p.CompactPacks++
		p.CompactBytes += uint64(use.size)
		p.KeepBytes += uint64(use.share() * float64(use.size))
	}
	slices.SortFunc(p.sources, func(a, b source) int {
		switch gain := (1-b.use.share())*float64(b.use.size) - (1-a.use.share())*float64(a.use.size); {
		case gain > 0:
			return 1
		case gain < 0:
			return -1
		default:
			return slices.Compare(a.id[:], b.id[:])
		}
	})
	return nil
}

// eachManifest visits all checkpoints but those of without.
func (r *Repository) eachManifest(ctx context.Context, without map[epochKey]bool, visit func(*manifest.Manifest) error) error {
	clusters, err := r.Clusters(ctx)
	if err != nil {
		return err
	}
	for _, cluster := range clusters {
		epochs, err := r.epochs(cluster)
		if err != nil {
			return err
		}
		for _, epoch := range epochs {
			e := epochKey{cluster, epoch}
			if err := ctx.Err(); err != nil {
				return err
			}
			if without[e] {
				continue
			}
			rec, err := r.readOutcome(e)
			if err != nil {
				return err
			}
			if rec.outcome != OutcomeCommitted {
				continue
			}
			if err := visit(rec.manifest); err != nil {
				return err
			}
		}
	}
	return nil
}

// Prune does what a plan says: it deletes checkpoints, sweeps, and replaces packs
// of which little is needed by what is. It may be killed at any step, and it may
// run on any node beside writers, commits, restarts and other prunes: a round that
// relies on a pack in the moment when that is taken fails with ErrPackMissing, as
// beside a sweep, and the next one is right. A restart that holds a checkpoint which the
// plan deletes reads on; its packs go with a later sweep.
//
// It works on a full file system: what needs no room comes first, and tombstones may take
// the reserve's.
//
// On error: the report says what was done. Asking again does the rest.
func (r *Repository) Prune(ctx context.Context, p *PrunePlan) (PruneReport, error) {
	c, err := r.newCompaction(p.view)
	if err != nil {
		return PruneReport{}, fmt.Errorf("prune: %w", err)
	}
	if err := r.prune(ctx, p, c); err != nil {
		return c.report, fmt.Errorf("prune: %w", err)
	}
	return c.report, nil
}

func (r *Repository) prune(ctx context.Context, p *PrunePlan, c *compaction) error {
	var doomed []Decision
	for _, d := range p.Checkpoints {
		if !d.Keep {
			doomed = append(doomed, d)
		}
	}
	for i, d := range doomed {
		p.opt.Progress(stepDelete, int64(i), int64(len(doomed)))
		e := epochKey{d.Cluster, d.Epoch}
		rec, err := r.settledOutcome(e)
		if err != nil {
			return err
		}
		if rec.outcome != OutcomeCommitted {
			continue // somebody else has deleted it
		}
		if err := r.buryFull(ctx, e, c.swept); err != nil {
			return fmt.Errorf("delete %s: %w", e, err)
		}
		c.report.Deleted++
	}
	p.opt.Progress(stepSweep, 0, 0)
	swept, err := r.Sweep(ctx)
	c.swept(swept)
	if err != nil {
		return err
	}
	groups := r.groups(p.sources)
	for i, g := range groups {
		p.opt.Progress(stepCompact, int64(i), int64(len(groups)))
		if err := ctx.Err(); err != nil {
			return err
		}
		err := c.group(ctx, g, c.copyLive)
		if errors.Is(err, ErrCorrupt) { // the packs are as they were; the others can go on
			c.report.Damaged = append(c.report.Damaged, err.Error())
			continue
		}
		if isFull(err) { // what is deleted has made no room for a pack, and all is as it was
			c.report.NoRoom = err.Error()
			break
		}
		if err != nil {
			return fmt.Errorf("compact: %w", err)
		}
	}
	if len(groups) > 0 {
		p.opt.Progress(stepCompact, int64(len(groups)), int64(len(groups)))
	}
	return nil
}

// swept adds a sweep to the report.
func (c *compaction) swept(s SweepReport) {
	c.report.Swept += s.Packs
	c.report.FreedBytes += s.FreedBytes
}
