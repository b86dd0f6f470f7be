package repository

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"fermata/imageio/manifest"
	"fermata/imageio/vfs"
)

// Delete takes a checkpoint back: a tombstone replaces its manifest, so that
// the epoch stays used, and a Sweep frees what nothing else needs. Deleting
// again sweeps again. A manifest that is damaged can be deleted; one of a newer
// format cannot.
//
// Delete does not decide an outcome: it acts only where there is a manifest,
// and the name is never free in between, so no late Commit can slip in. A restart that
// holds the checkpoint reads on; see Hold.
//
// On error: ErrNotFound where there never was a checkpoint. After any other
// error the checkpoint may be gone already and its space not yet free.
func (r *Repository) Delete(ctx context.Context, cluster string, epoch uint64) (freedBytes uint64, err error) {
	e := epochKey{cluster, epoch}
	if err := manifest.ValidCluster(cluster); err != nil {
		return 0, fmt.Errorf("delete: %w", err)
	}
	freed := func(report SweepReport) { freedBytes += report.FreedBytes }
	rec, err := r.settledOutcome(e)
	switch {
	case errors.Is(err, ErrCorrupt):
		err = r.buryFull(ctx, e, freed)
	case err != nil:
	case rec.outcome == OutcomeCommitted:
		err = r.buryFull(ctx, e, freed)
	case rec.outcome == OutcomeDeleted:
	default:
		err = fmt.Errorf("checkpoint is %s: %w", rec.outcome, ErrNotFound)
	}
	if err != nil {
		return 0, fmt.Errorf("delete %s: %w", e, err)
	}
	report, err := r.Sweep(ctx)
	freed(report)
	if err != nil {
		return freedBytes, fmt.Errorf("delete %s: %w", e, err)
	}
	return freedBytes, nil
}

// bury replaces the manifest of e by a tombstone.
func (r *Repository) bury(ctx context.Context, e epochKey) error {
	data, err := manifest.EncodeTombstone(manifest.Tombstone{Cluster: e.cluster, Epoch: e.epoch, Verdict: manifest.Deleted})
	if err == nil {
		data, err = sealRecord(r.domain, outcomeContext(e), data)
	}
	if err != nil {
		return err
	}
	token, err := r.randomHex(tokenBytes)
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	dir := r.clusterDir(e.cluster)
	temp := filepath.Join(dir, fmt.Sprintf("%s%0*d.%s%s", buryTempPrefix, epochDigits, e.epoch, token, tempSuffix))
	if err := vfs.WriteFile(r.fs, temp, data); err != nil {
		return err
	}
	if err := r.fs.Rename(temp, r.outcomePath(e)); err != nil {
		if rec, rerr := r.readOutcome(e); rerr != nil || rec.outcome != OutcomeDeleted {
			return errors.Join(err, r.fs.Remove(temp))
		}
		// Another Delete was faster, and its Sweep has removed our file.
	}
	return r.fs.SyncDir(dir)
}
