package repository

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"fermata/imageio/damage"
	"fermata/imageio/manifest"
	"fermata/imageio/pack"
	"fermata/imageio/vfs"
)

// Outcome is how a round ended.
type Outcome int

const (
	OutcomeNone      Outcome = iota // not decided
	OutcomeCommitted                // there is a checkpoint
	OutcomeAborted                  // there never was one
	OutcomeDeleted                  // there was one
)

func (o Outcome) String() string {
	switch o {
	case OutcomeNone:
		return "undecided"
	case OutcomeCommitted:
		return "committed"
	case OutcomeAborted:
		return "aborted"
	case OutcomeDeleted:
		return "deleted"
	default:
		return fmt.Sprintf("outcome %d", int(o))
	}
}

// outcomeRecord is what the file of an epoch says.
type outcomeRecord struct {
	outcome  Outcome
	manifest *manifest.Manifest // of OutcomeCommitted
	raw      []byte
}

// readOutcome reads the record of an epoch. Without one it is OutcomeNone.
//
// On error: damage, ErrNewerFormat, or what the file system said.
func (r *Repository) readOutcome(e epochKey) (outcomeRecord, error) {
	data, err := r.readRecord(r.outcomePath(e), outcomeContext(e), manifest.MaxRecordLen())
	if errors.Is(err, fs.ErrNotExist) {
		return outcomeRecord{}, nil
	}
	var rec outcomeRecord
	if err == nil {
		rec, err = decodeOutcome(e, data)
	}
	if errors.Is(err, ErrCorrupt) {
		return outcomeRecord{}, damage.New(outcomeContext(e), err)
	}
	if err != nil {
		return outcomeRecord{}, fmt.Errorf("%s: %w", outcomeContext(e), err)
	}
	return rec, nil
}

// outcomeContext is what an outcome is named and sealed for.
func outcomeContext(e epochKey) string { return "outcome of " + e.String() }

func decodeOutcome(e epochKey, data []byte) (outcomeRecord, error) {
	if manifest.IsTombstone(data) {
		t, err := manifest.DecodeTombstone(data)
		if err != nil {
			return outcomeRecord{}, err
		}
		if (epochKey{t.Cluster, t.Epoch}) != e {
			return outcomeRecord{}, damage.New("tombstone", fmt.Errorf("is of %s@%d", t.Cluster, t.Epoch))
		}
		if t.Verdict == manifest.Deleted {
			return outcomeRecord{outcome: OutcomeDeleted, raw: data}, nil
		}
		return outcomeRecord{outcome: OutcomeAborted, raw: data}, nil
	}
	m, err := manifest.Decode(data)
	if err != nil {
		return outcomeRecord{}, err
	}
	if (epochKey{m.Cluster, m.Epoch}) != e {
		return outcomeRecord{}, damage.New("manifest", fmt.Errorf("is of %s@%d", m.Cluster, m.Epoch))
	}
	return outcomeRecord{outcome: OutcomeCommitted, manifest: m, raw: data}, nil
}

// Commit makes the checkpoint of m. It is the commit point of a round: before
// it there is no checkpoint, after it there is, on any crash one of the two.
//
// Committing the same manifest again succeeds. Of different outcomes for one
// epoch the first stands, whoever asks, and Commit of another one fails with
// ErrOutcomeDecided. It fails with ErrPackMissing, changing nothing, if a pack
// that m names has not been finalised.
//
// With ErrMaybeRecorded the outcome is unknown: ask Outcome, or ask again. On
// any other error nothing was recorded, and nothing will be.
func (r *Repository) Commit(ctx context.Context, m *manifest.Manifest) error {
	data, err := manifest.Encode(m)
	if err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	e := epochKey{m.Cluster, m.Epoch}
	same := func(rec outcomeRecord) bool { return bytes.Equal(rec.raw, data) }
	check := func() error { return r.requirePacks(ctx, m.Packs) }
	if err := r.decide(ctx, e, data, same, check); err != nil {
		return fmt.Errorf("commit %s: %w", e, err)
	}
	return nil
}

// Abort rules that an epoch has no checkpoint. Aborting again succeeds.
//
// On error: ErrOutcomeDecided if there is or was a checkpoint; ErrMaybeRecorded
// as for Commit.
func (r *Repository) Abort(ctx context.Context, cluster string, epoch uint64, reason string) error {
	e := epochKey{cluster, epoch}
	data, err := manifest.EncodeTombstone(manifest.Tombstone{Cluster: cluster, Epoch: epoch, Verdict: manifest.Aborted, Reason: reason})
	if err != nil {
		return fmt.Errorf("abort: %w", err)
	}
	same := func(rec outcomeRecord) bool { return rec.outcome == OutcomeAborted }
	if err := r.decide(ctx, e, data, same, func() error { return nil }); err != nil {
		return fmt.Errorf("abort %s: %w", e, err)
	}
	return nil
}

// decide gives an epoch its outcome, unless it has one.
func (r *Repository) decide(ctx context.Context, e epochKey, data []byte, same func(outcomeRecord) bool, check func() error) error {
	rec, err := r.settledOutcome(e)
	if err != nil {
		return err
	}
	if rec.outcome == OutcomeNone {
		if err := check(); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		rec, err = r.tryDecide(e, data)
		if err != nil {
			return err
		}
	}
	if !same(rec) {
		return &DecidedError{Cluster: e.cluster, Epoch: e.epoch, Outcome: rec.outcome}
	}
	return nil
}

// tryDecide tries to be the first with an outcome and returns the one that
// stands.
func (r *Repository) tryDecide(e epochKey, data []byte) (outcomeRecord, error) {
	dir := r.clusterDir(e.cluster)
	data, err := sealRecord(r.domain, outcomeContext(e), data)
	if err != nil {
		return outcomeRecord{}, err
	}
	if err := r.ensureDir(dir); err != nil {
		return outcomeRecord{}, err
	}
	token, err := r.randomHex(tokenBytes)
	if err != nil {
		return outcomeRecord{}, err
	}
	temp := fmt.Sprintf(".%0*d.%s%s", epochDigits, e.epoch, token, tempSuffix)
	err = createExclusive(r.fs, dir, temp, outcomeFile(e.epoch), data)
	if err != nil && !errors.Is(err, errTaken) {
		// Without our temporary file a sweep has seen the epoch decided.
		if rec, rerr := r.settledOutcome(e); errors.Is(err, fs.ErrNotExist) && rerr == nil && rec.outcome != OutcomeNone {
			return rec, nil
		}
		return outcomeRecord{}, err
	}
	rec, err := r.readOutcome(e)
	if err != nil {
		return outcomeRecord{}, fmt.Errorf("%w: %w", ErrMaybeRecorded, err)
	}
	return rec, nil
}

// errTaken says that createExclusive found its name in use.
var errTaken = errors.New("name is taken")

// createExclusive is the commit point of everything that is decided once: it
// makes a file with these contents, durably, or fails with errTaken if there is
// one of that name, whoever made it and when.
//
// The contents are durable before the name appears, link(2) gives the name to
// exactly one of all callers on all nodes, and the name is durable before
// anybody is told, also when it is somebody else's.
//
// On error: with ErrMaybeRecorded the name may exist, or come to; otherwise, but
// for errTaken, it does not, of this caller.
func createExclusive(fsys vfs.FS, dir, temp, name string, data []byte) error {
	tempPath := filepath.Join(dir, temp)
	if err := vfs.WriteFile(fsys, tempPath, data); err != nil {
		return err
	}
	linkErr := fsys.Link(tempPath, filepath.Join(dir, name))
	switch {
	case errors.Is(linkErr, fs.ErrExist):
		linkErr = errTaken
	case linkErr != nil:
		linkErr = fmt.Errorf("link: %w: %w", ErrMaybeRecorded, linkErr)
	}
	// A second name that stays behind does no harm; Sweep removes it.
	_ = fsys.Remove(tempPath)
	if linkErr != nil && !errors.Is(linkErr, errTaken) {
		return linkErr
	}
	if err := fsys.SyncDir(dir); err != nil {
		return fmt.Errorf("sync directory: %w: %w", ErrMaybeRecorded, err)
	}
	return linkErr
}

// Outcome tells how an epoch was decided. What it tells survives a crash.
//
// On error: ErrCorrupt when there is an outcome that cannot be read.
func (r *Repository) Outcome(_ context.Context, cluster string, epoch uint64) (Outcome, error) {
	if err := manifest.ValidCluster(cluster); err != nil {
		return OutcomeNone, err
	}
	rec, err := r.settledOutcome(epochKey{cluster, epoch})
	return rec.outcome, err
}

// settledOutcome is readOutcome for answers that others act upon: one that was
// linked but is not durable yet must not be told and then lost.
func (r *Repository) settledOutcome(e epochKey) (outcomeRecord, error) {
	rec, err := r.readOutcome(e)
	if err != nil || rec.outcome == OutcomeNone {
		return rec, err
	}
	if err := r.fs.SyncDir(r.clusterDir(e.cluster)); err != nil {
		return outcomeRecord{}, fmt.Errorf("outcome of %s: sync directory: %w", e, err)
	}
	return rec, nil
}

// requirePacks checks that packs have their final names.
func (r *Repository) requirePacks(ctx context.Context, ids []string) error {
	for _, s := range ids {
		if err := ctx.Err(); err != nil {
			return err
		}
		id, err := pack.ParseID(s)
		if err != nil {
			return err
		}
		_, err = r.fs.Stat(r.packPath(id))
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s: %w", pack.Name(id), ErrPackMissing)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", pack.Name(id), err)
		}
	}
	return nil
}
