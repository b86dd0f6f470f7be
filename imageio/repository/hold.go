package repository

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"fermata/imageio/manifest"
)

// holderName stands for the node in the claim of a restart.
const holderName = "restart"

// Hold keeps the packs of a checkpoint for a restart that reads them: until Release, no
// sweep removes one of them, although the checkpoint may be deleted. epoch is that of the
// life which the restart begins; it must have no outcome. A holder that dies leaves its
// claim, until somebody aborts the epoch; Sweep reports it as a round in flight.
//
// On error: ErrNotFound if the checkpoint has just been deleted. After any other error
// the packs may be held or not.
func (r *Repository) Hold(_ context.Context, m *manifest.Manifest, epoch uint64) error {
	e, checkpoint := epochKey{m.Cluster, epoch}, epochKey{m.Cluster, m.Epoch}
	if err := r.writeClaim(e, holderName, m.Packs); err != nil {
		return fmt.Errorf("hold checkpoint %s: %w", checkpoint, err)
	}
	// First the claim, then the look. A sweep that does not see the claim has begun its
	// second look before, and has seen the manifest that stands now.
	rec, err := r.readOutcome(checkpoint)
	if err == nil && rec.outcome != OutcomeCommitted {
		err = fmt.Errorf("it is %s: %w", rec.outcome, ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("hold checkpoint %s: %w", checkpoint, errors.Join(err, r.release(e)))
	}
	return nil
}

// Release lets go what Hold has kept for an epoch. Releasing again does nothing.
func (r *Repository) Release(_ context.Context, cluster string, epoch uint64) error {
	if err := manifest.ValidCluster(cluster); err != nil {
		return err
	}
	e := epochKey{cluster, epoch}
	if err := r.release(e); err != nil {
		return fmt.Errorf("release the packs that %s has held: %w", e, err)
	}
	return nil
}

func (r *Repository) release(e epochKey) error {
	dir := r.claimDir(e.cluster)
	names, err := r.listDir(dir)
	if err != nil {
		return err
	}
	removed := false
	for _, name := range names {
		if epoch, _, ok := parseClaimName(name); !ok || epoch != e.epoch {
			continue
		}
		path := filepath.Join(dir, name)
		data, err := r.readRecord(path, claimContext(e), claimKind().MaxLen())
		if errors.Is(err, fs.ErrNotExist) {
			continue // a sweep was first
		}
		var node string
		if err == nil {
			node, _, err = decodeClaim(e, data)
		}
		if err != nil {
			return err
		}
		if node != holderName {
			continue
		}
		if err := r.fs.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		removed = true
	}
	if !removed {
		return nil
	}
	return r.fs.SyncDir(dir)
}

// hold counts a claim of a round without an outcome.
func (v *view) hold(c claimFile) {
	v.claimers[c.epoch] = true
	if c.node == copierName {
		v.copied[c.epoch] = true
	}
	for _, id := range c.packs {
		v.claimed[id] = struct{}{}
	}
}
