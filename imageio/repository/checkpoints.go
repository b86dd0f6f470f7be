package repository

import (
	"context"
	"fmt"
	"path/filepath"

	"fermata/imageio/manifest"
)

// Entry is one line of the list of checkpoints.
type Entry struct {
	Epoch    uint64
	Manifest *manifest.Manifest // nil if Err is set
	Err      error              // why the manifest cannot be read
	Damage   *KnownDamage       // what verifications have found; nil for nothing
}

// Intact reports whether nothing is known to be wrong with a checkpoint.
func (e Entry) Intact() bool { return e.Err == nil && e.Damage == nil }

// Clusters lists the clusters that have outcomes, in order of name.
func (r *Repository) Clusters(_ context.Context) ([]string, error) {
	names, err := r.listDir(filepath.Join(r.cfg.Dir, clusterName))
	if err != nil {
		return nil, fmt.Errorf("clusters: %w", err)
	}
	clusters := names[:0]
	for _, name := range names {
		if manifest.ValidCluster(name) == nil {
			clusters = append(clusters, name)
		}
	}
	return clusters, nil
}

// Checkpoints lists the checkpoints of a cluster, oldest first. A manifest that
// cannot be read is an entry with an error: it is not hidden, as restart must
// step over it knowingly. What verifications have found is with each.
func (r *Repository) Checkpoints(ctx context.Context, cluster string) ([]Entry, error) {
	epochs, damaged, err := r.listCluster(cluster)
	if err != nil {
		return nil, err
	}
	var entries []Entry
	for _, epoch := range epochs {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		rec, err := r.readOutcome(epochKey{cluster, epoch})
		if err == nil && rec.outcome != OutcomeCommitted {
			continue
		}
		entry := Entry{Epoch: epoch, Manifest: rec.manifest, Err: err}
		if err == nil && damaged[epoch] {
			if entry.Damage, err = r.KnownDamage(ctx, cluster, epoch); err != nil {
				return nil, err
			}
		}
		entries = append(entries, entry)
	}
	return entries, nil
}

// Manifest reads the commit record of a checkpoint.
//
// On error: ErrNotFound if there is none, or none any more.
func (r *Repository) Manifest(_ context.Context, cluster string, epoch uint64) (*manifest.Manifest, error) {
	if err := manifest.ValidCluster(cluster); err != nil {
		return nil, err
	}
	e := epochKey{cluster, epoch}
	rec, err := r.readOutcome(e)
	if err != nil {
		return nil, err
	}
	if rec.outcome != OutcomeCommitted {
		return nil, fmt.Errorf("checkpoint %s is %s: %w", e, rec.outcome, ErrNotFound)
	}
	return rec.manifest, nil
}

// LastEpoch is the largest epoch that was ever decided, 0 if none was. Epochs
// of deleted and aborted checkpoints count: an epoch is never used again.
func (r *Repository) LastEpoch(_ context.Context, cluster string) (uint64, error) {
	epochs, err := r.epochs(cluster)
	if err != nil || len(epochs) == 0 {
		return 0, err
	}
	return epochs[len(epochs)-1], nil
}

// epochs lists the decided epochs, ascending: the names sort that way.
func (r *Repository) epochs(cluster string) ([]uint64, error) {
	epochs, _, err := r.listCluster(cluster)
	return epochs, err
}

// listCluster is epochs, and those of them that have a damage record.
func (r *Repository) listCluster(cluster string) (epochs []uint64, damaged map[uint64]bool, err error) {
	if err := manifest.ValidCluster(cluster); err != nil {
		return nil, nil, err
	}
	names, err := r.listDir(r.clusterDir(cluster))
	if err != nil {
		return nil, nil, fmt.Errorf("epochs of %s: %w", cluster, err)
	}
	damaged = map[uint64]bool{}
	for _, name := range names {
		if epoch, ok := parseOutcomeName(name); ok {
			epochs = append(epochs, epoch)
		}
		if epoch, ok := parseDamageName(name); ok {
			damaged[epoch] = true
		}
	}
	return epochs, damaged, nil
}
