package repository

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"fermata/imageio/pack"
)

// CheckOptions say how much Check reads.
type CheckOptions struct {
	// ReadData reads every byte of the packs. Without it headers, trailers and the
	// trees of the images are read, which finds what is missing.
	ReadData bool
	// Part and Parts, 1 <= Part <= Parts, make ReadData read a part of the packs
	// only. All parts together read all packs, as long as none is added or
	// compacted in between. Zero: all.
	Part, Parts int
	// Progress is told how many checkpoints are done. Its calls are never
	// concurrent.
	Progress func(done, total int)
}

// maxParts is how many parts the end of a pack's ID can tell apart.
const maxParts = 1 << 16

func (o CheckOptions) validate() error {
	switch {
	case o.Parts == 0 && o.Part == 0:
		return nil
	case o.Parts < 1 || o.Parts > maxParts || o.Part < 1 || o.Part > o.Parts:
		return fmt.Errorf("part %d of %d: want 1/1 to %d/%d", o.Part, o.Parts, maxParts, maxParts)
	default:
		return nil
	}
}

// reads says whether the data of a pack is read.
func (o CheckOptions) reads(id pack.ID) bool {
	if !o.ReadData {
		return false
	}
	return o.Parts == 0 || int(binary.LittleEndian.Uint16(id[14:]))%o.Parts == o.Part-1
}

// CheckReport is what Check has found.
type CheckReport struct {
	Checkpoints int
	Packs       int    // that checkpoints need
	ReadPacks   int    // of which every byte was read
	Bytes       uint64 // read and verified, uncompressed
	Damage      []CheckDamage
	Unrecorded  string // see VerifyReport
}

// CheckDamage is one thing that is not as it was written, and what it costs.
type CheckDamage struct {
	Object string
	Reason string
	Hits   []Hit // none if nothing that a checkpoint needs lies there
}

// Hit names a checkpoint and those of its guests that cannot be restored.
type Hit struct {
	Cluster string
	Epoch   uint64
	Guests  []string // none: the whole checkpoint
}

// Check verifies all checkpoints. Packs that it finds damaged are marked, and what
// that costs is recorded, as by Verify. What earlier verifications have found is in the
// report as long as no Check has read everything since. It may run beside everything else.
//
// On error: the report is not complete. Damage is not an error.
func (r *Repository) Check(ctx context.Context, opt CheckOptions) (CheckReport, error) {
	c, err := r.check(ctx, opt)
	if err != nil {
		return c.report, fmt.Errorf("check: %w", err)
	}
	return c.report, nil
}

// checked is what a Check knows at its end.
type checked struct {
	opt    CheckOptions
	known  scans
	byName map[string]int // of the object, position in report.Damage
	report CheckReport
}

func (r *Repository) check(ctx context.Context, opt CheckOptions) (*checked, error) {
	c := &checked{opt: opt, known: scans{}, byName: map[string]int{}}
	if err := opt.validate(); err != nil {
		return c, err
	}
	var all []epochKey
	clusters, err := r.Clusters(ctx)
	if err != nil {
		return c, err
	}
	for _, cluster := range clusters {
		epochs, err := r.epochs(cluster)
		if err != nil {
			return c, err
		}
		for _, epoch := range epochs {
			all = append(all, epochKey{cluster, epoch})
		}
	}
	for i, e := range all {
		if opt.Progress != nil {
			opt.Progress(i, len(all))
		}
		if err := r.checkOne(ctx, e, c); err != nil {
			return c, fmt.Errorf("%s: %w", e, err)
		}
	}
	if opt.Progress != nil {
		opt.Progress(len(all), len(all))
	}
	for id, s := range c.known {
		c.report.Packs++
		if opt.reads(id) && s.err == nil {
			c.report.ReadPacks++
		}
		c.report.Bytes += s.bytes
	}
	return c, nil
}

func (r *Repository) checkOne(ctx context.Context, e epochKey, c *checked) error {
	rec, err := r.readOutcome(e)
	switch {
	case errors.Is(err, ErrCorrupt), errors.Is(err, ErrNewerFormat):
		c.add(Damage{Object: "outcome of " + e.String(), Reason: reasonOf(err)}, e, true)
		return nil
	case err != nil:
		return err
	case rec.outcome != OutcomeCommitted:
		return nil
	}
	c.report.Checkpoints++
	report, err := r.verify(ctx, rec.manifest, VerifyOptions{}, c.known, c.opt.reads)
	if errors.Is(err, ErrCorrupt) || errors.Is(err, ErrNewerFormat) {
		c.add(Damage{Object: "checkpoint " + e.String(), Reason: err.Error()}, e, true)
		return nil
	}
	if err != nil {
		return err
	}
	for _, d := range report.Damage {
		c.add(d, e, false)
	}
	all := c.opt.ReadData && c.opt.Parts <= 1
	report.noteUnrecorded(r.record(ctx, e, costly(report.Damage), all))
	if c.report.Unrecorded == "" {
		c.report.Unrecorded = report.Unrecorded
	}
	if all {
		return nil
	}
	before, err := r.KnownDamage(ctx, e.cluster, e.epoch)
	if err != nil || before == nil {
		return err
	}
	for _, d := range before.Damage {
		if !slices.ContainsFunc(report.Damage, func(f Damage) bool { return f.Object == d.Object }) {
			d.Reason += " (found " + before.Found.UTC().Format(time.DateTime) + " UTC, not read again)"
			c.add(d, e, len(d.Guests) == 0)
		}
	}
	return nil
}

// add notes damage that was found in a checkpoint; whole says that it costs all of
// it.
func (c *checked) add(d Damage, e epochKey, whole bool) {
	at, known := c.byName[d.Object]
	if !known {
		at = len(c.report.Damage)
		c.byName[d.Object] = at
		c.report.Damage = append(c.report.Damage, CheckDamage{Object: d.Object, Reason: d.Reason})
	}
	if whole || len(d.Guests) > 0 {
		c.report.Damage[at].Hits = append(c.report.Damage[at].Hits, Hit{e.cluster, e.epoch, d.Guests})
	}
}
