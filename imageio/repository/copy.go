package repository

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"fermata/imageio/manifest"
	"fermata/imageio/object"
)

// copierName stands for the node in the headers of packs that were not written
// where a guest ran.
const copierName = "copy"

// CopyReport is what a copy of one checkpoint did.
type CopyReport struct {
	Present     bool   // the destination had it already
	NewBytes    uint64 // pages that the destination did not have
	StoredBytes uint64 // of new packs
}

// Copy brings a checkpoint to another repository, as the same epoch of the same
// cluster, with the objects that are not there yet. Copying again succeeds. It may
// be killed: nothing is there then but packs, which the next try uses.
//
// progress is told how many bytes of the images are done.
//
// On error: ErrOutcomeDecided if the destination has another outcome for the
// epoch.
func (r *Repository) Copy(ctx context.Context, to *Repository, cluster string, epoch uint64, progress func(done, total int64)) (CopyReport, error) {
	e := epochKey{cluster, epoch}
	report, err := r.copyOne(ctx, to, e, progress)
	if err != nil {
		return report, fmt.Errorf("copy %s: %w", e, err)
	}
	return report, nil
}

func (r *Repository) copyOne(ctx context.Context, to *Repository, e epochKey, progress func(done, total int64)) (CopyReport, error) {
	m, err := r.Manifest(ctx, e.cluster, e.epoch)
	if err != nil {
		return CopyReport{}, err
	}
	rd, err := r.NewReader(ctx, m.Packs)
	if err != nil {
		return CopyReport{}, err
	}
	return to.receive(ctx, m, func(w *Writer) error {
		var hasErr error
		err := rd.eachObjectOf(ctx, m, traversal{want: func(_ object.Kind, id object.ID) bool {
			has, err := w.has(ctx, id)
			hasErr = errors.Join(hasErr, err)
			return !has
		}, take: func(kind object.Kind, id object.ID, data []byte) error {
			return w.putObject(ctx, kind, id, data)
		}}, progress)
		return errors.Join(err, hasErr)
	})
}

// receive makes a checkpoint of what fill puts into a Writer. It commits only what
// is complete.
func (r *Repository) receive(ctx context.Context, m *manifest.Manifest, fill func(*Writer) error) (report CopyReport, err error) {
	e := epochKey{m.Cluster, m.Epoch}
	rec, err := r.settledOutcome(e)
	if err != nil {
		return report, err
	}
	if rec.outcome != OutcomeNone {
		same, err := sameCheckpoint(rec, m)
		if err == nil && !same {
			err = &DecidedError{Cluster: e.cluster, Epoch: e.epoch, Outcome: rec.outcome}
		}
		return CopyReport{Present: true}, err
	}
	if err := r.Refresh(ctx); err != nil {
		return report, err
	}
	w, err := r.NewWriter(WriterConfig{Cluster: e.cluster, Epoch: e.epoch, Node: copierName})
	if err != nil {
		return report, err
	}
	// Before the first pack is there, so that nobody takes the round for one whose
	// coordinator has died.
	err = r.writeClaim(e, copierName, []string{})
	if err == nil {
		err = fill(w)
	}
	if err != nil {
		_ = w.Abort() // the first error tells the story
		return report, err
	}
	res, err := w.Finish(ctx)
	if err != nil {
		return report, err
	}
	if err := r.complete(ctx, m, res.Packs); err != nil {
		return report, err
	}
	here := *m
	here.Packs = res.Packs
	if err := r.Commit(ctx, &here); err != nil {
		return report, err
	}
	return CopyReport{NewBytes: res.NewUniqueBytes, StoredBytes: res.StoredBytes}, nil
}

// sameCheckpoint says that a record is that of m, wherever the objects lie.
func sameCheckpoint(rec outcomeRecord, m *manifest.Manifest) (bool, error) {
	if rec.outcome != OutcomeCommitted {
		return false, nil
	}
	there := *rec.manifest
	there.Packs = m.Packs
	a, err := manifest.Encode(&there)
	if err != nil {
		return false, err
	}
	b, err := manifest.Encode(m)
	return bytes.Equal(a, b), err
}
