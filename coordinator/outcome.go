package coordinator

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"fermata/coordinator/record"
	"fermata/coordinator/rounds"
	"fermata/imageio/manifest"
	"fermata/imageio/repository"
	"fermata/imageio/vfs"
	"fermata/protocol/fault"
	"fermata/protocol/round"
)

// RepositoryFault gives an error of package repository its class.
func RepositoryFault(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, repository.ErrKeyMissing), errors.Is(err, repository.ErrWrongKey):
		return fault.Wrap(fault.Denied, err, "")
	case errors.Is(err, repository.ErrNotEncrypted), errors.Is(err, repository.ErrKeyInUse):
		return fault.Wrap(fault.Invalid, err, "")
	case errors.Is(err, repository.ErrCorrupt):
		return fault.Wrap(fault.Corrupt, err, "")
	case errors.Is(err, repository.ErrNotFound), errors.Is(err, repository.ErrNotRepository):
		return fault.Wrap(fault.NotFound, err, "")
	case errors.Is(err, repository.ErrExists), errors.Is(err, repository.ErrOutcomeDecided):
		return fault.Wrap(fault.Exists, err, "")
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fault.Wrap(fault.NoSpace, err, "")
	case errors.Is(err, vfs.ErrNoAnswer), errors.Is(err, repository.ErrAway), errors.Is(err, unix.EROFS):
		return fault.Wrap(fault.Unavailable, err, "")
	case errors.Is(err, repository.ErrNewerFormat), errors.Is(err, repository.ErrNoHardLinks):
		return fault.Wrap(fault.Mismatch, err, "")
	case errors.Is(err, repository.ErrPackMissing):
		return fault.Wrap(fault.Aborted, err, "")
	}
	return err
}

// judge has the outcome of one round recorded in the repository. What it gives
// the repository to commit is made once, so that a repeated commit is the same.
//
// Concurrency: one goroutine at a time.
type judge struct {
	repo  *repository.Repository // immutable
	id    round.ID               // immutable
	taken record.Taken           // immutable; without what the round brings
	skew  time.Duration          // immutable; most that the points of the cut may be apart; 0: as the pause budget allows

	manifest *manifest.Manifest // nil until Commit has made it
}

var _ rounds.Judge = (*judge)(nil)

// Commit implements rounds.Judge.
func (j *judge) Commit(ctx context.Context, e rounds.Evidence) (round.Outcome, error) {
	if j.manifest == nil {
		m, err := j.compose(ctx, e)
		if err != nil {
			return round.OutcomeNone, fmt.Errorf("make the manifest: %w", RepositoryFault(err))
		}
		j.manifest = m
	}
	return outcomeOf(round.Committed, j.repo.Within(ctx, storagePatience).Commit(ctx, j.manifest))
}

// compose makes the commit record. It reads the trees of all new images, and so
// finds an image that a node believes to have stored and that is not there.
func (j *judge) compose(ctx context.Context, e rounds.Evidence) (*manifest.Manifest, error) {
	t := j.taken
	t.Images, t.Resumed = e.Images, e.Resumed
	m, err := record.Manifest(t)
	if err != nil {
		return nil, err
	}
	if skew := record.Skew(m); j.skew > 0 && skew > j.skew {
		return nil, fault.New(fault.Deadline,
			"guests were cut %s apart by their nodes' clocks, at most %s (skew_budget): a node was slow, or the clocks differ", skew, j.skew)
	}
	record.SetDurable(m, time.Since(t.Begun))
	return m, nil
}

// Abort implements rounds.Judge.
func (j *judge) Abort(ctx context.Context, reason string) (round.Outcome, error) {
	return outcomeOf(round.Aborted, j.repo.Within(ctx, storagePatience).Abort(ctx, j.id.Cluster, uint64(j.id.Epoch), reason))
}

// outcomeOf tells which outcome stands after the repository was asked for want.
func outcomeOf(want round.Outcome, err error) (round.Outcome, error) {
	var decided *repository.DecidedError
	switch {
	case err == nil:
		return want, nil
	case errors.Is(err, repository.ErrMaybeRecorded):
		return round.OutcomeNone, fmt.Errorf("%w: %w", rounds.ErrUnheard, RepositoryFault(err))
	case !errors.As(err, &decided):
		return round.OutcomeNone, RepositoryFault(err)
	case decided.Outcome == repository.OutcomeAborted:
		return round.Aborted, nil
	case decided.Outcome == repository.OutcomeCommitted, decided.Outcome == repository.OutcomeDeleted:
		return round.Committed, nil // what was deleted had been committed
	}
	return round.OutcomeNone, RepositoryFault(err)
}
