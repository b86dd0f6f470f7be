package repository

import (
	"context"
	"errors"
	"fmt"
	"time"

	"fermata/imageio/manifest"
	"fermata/imageio/object"
)

// Stats says what a repository holds and what it takes.
type Stats struct {
	Packs        int
	StoredBytes  uint64 // of all packs
	NeededBytes  uint64 // of packs that a checkpoint or a round in flight needs
	RawBytes     uint64 // of all images of all checkpoints
	NonZeroBytes uint64 // their pages that are not zeros
	UniqueBytes  uint64 // the distinct among those
	Checkpoints  []CheckpointStats
}

// CheckpointStats is what one checkpoint holds.
type CheckpointStats struct {
	Cluster      string
	Epoch        uint64
	Created      time.Time
	Label        string
	RawBytes     uint64
	NonZeroBytes uint64
	UniqueBytes  uint64 // distinct pages of it
	NewBytes     uint64 // distinct pages that no checkpoint before it in this list has
	StoredBytes  uint64 // what its round added to packs, compressed
	Err          error  // why it cannot be counted; other fields may then be zero
	Guests       []GuestStats
}

// GuestStats is what one guest of a checkpoint holds.
type GuestStats struct {
	Name         string
	RawBytes     uint64
	NonZeroBytes uint64
	UniqueBytes  uint64 // distinct pages of it
	NewBytes     uint64 // distinct pages that no guest before it in the list has
}

// Stats counts pages, cluster by cluster, oldest first. It reads the trees of all
// images, not their pages, and takes about 20 bytes of memory for each distinct
// page. progress is told how many checkpoints are done.
//
// On error: what the file system said. A checkpoint that cannot be read is an
// entry with an error.
func (r *Repository) Stats(ctx context.Context, progress func(done, total int)) (*Stats, error) {
	s := &Stats{}
	if err := r.stats(ctx, s, progress); err != nil {
		return nil, fmt.Errorf("stats: %w", err)
	}
	return s, nil
}

func (r *Repository) stats(ctx context.Context, s *Stats, progress func(done, total int)) error {
	view, lookErr := r.look(ctx, nil, nil)
	if lookErr != nil && !errors.Is(lookErr, ErrCorrupt) && !errors.Is(lookErr, ErrNewerFormat) {
		return lookErr
	}
	files, err := r.listPacks(ctx)
	if err != nil {
		return err
	}
	for _, f := range files {
		if f.state != packFinal && f.state != packCondemned {
			continue
		}
		path, err := r.findPack(f.id)
		if err != nil {
			continue // swept meanwhile
		}
		info, err := r.fs.Stat(path)
		if err != nil {
			continue
		}
		s.Packs++
		s.StoredBytes += uint64(info.Size)
		if view == nil || view.needs(f.id) { // without a view any may be needed
			s.NeededBytes += uint64(info.Size)
		}
	}
	clusters, err := r.Clusters(ctx)
	if err != nil {
		return err
	}
	var entries []Entry
	var owners []string
	for _, cluster := range clusters {
		of, err := r.Checkpoints(ctx, cluster)
		if err != nil {
			return err
		}
		for _, e := range of {
			entries, owners = append(entries, e), append(owners, cluster)
		}
	}
	var all idSet
	for i, e := range entries {
		progress(i, len(entries))
		c := CheckpointStats{Cluster: owners[i], Epoch: e.Epoch, Err: e.Err}
		if e.Err == nil {
			c.Created, c.Label, c.StoredBytes = time.Unix(0, e.Manifest.CreatedUnixNS).UTC(), e.Manifest.Label, e.Manifest.Stats.StoredBytes
			c.Err = r.countCheckpoint(ctx, e.Manifest, &c, &all)
			if err := ctx.Err(); err != nil {
				return err
			}
		}
		s.Checkpoints = append(s.Checkpoints, c)
		s.RawBytes += c.RawBytes
		s.NonZeroBytes += c.NonZeroBytes
		s.UniqueBytes += c.NewBytes
	}
	progress(len(entries), len(entries))
	return nil
}

// countCheckpoint adds the pages of m to c, and to all.
func (r *Repository) countCheckpoint(ctx context.Context, m *manifest.Manifest, c *CheckpointStats, all *idSet) error {
	ids, err := packIDsOf(m.Packs)
	if err != nil {
		return err
	}
	rd, err := r.loadPacks(ctx, ids, isNode)
	if err != nil {
		return err
	}
	if err := rd.firstFailed; err != nil {
		return err
	}
	var distinct idSet
	for _, g := range m.Guests {
		gs := GuestStats{Name: g.Name}
		var own idSet
		for _, o := range g.Objects {
			gs.RawBytes += o.SizeBytes
			err := rd.eachObject(ctx, RefOf(o), traversal{want: func(kind object.Kind, id object.ID) bool {
				if kind != object.KindPage {
					return false
				}
				gs.NonZeroBytes += object.PageBytes
				if own.add(id) {
					gs.UniqueBytes += object.PageBytes
				}
				if distinct.add(id) {
					c.UniqueBytes += object.PageBytes
				}
				if all.add(id) {
					gs.NewBytes += object.PageBytes
				}
				return false
			}})
			if err != nil {
				return fmt.Errorf("guest %s, %s %s: %w", g.Name, o.Kind, o.Name, err)
			}
		}
		c.RawBytes += gs.RawBytes
		c.NonZeroBytes += gs.NonZeroBytes
		c.NewBytes += gs.NewBytes
		c.Guests = append(c.Guests, gs)
	}
	return nil
}
