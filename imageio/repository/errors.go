package repository

import (
	"errors"
	"fmt"

	"fermata/imageio/damage"
	"fermata/imageio/frame"
)

var (
	// ErrCorrupt is matched by every *CorruptError.
	ErrCorrupt = damage.ErrCorrupt
	// ErrNewerFormat says that something was written by a newer version.
	ErrNewerFormat = frame.ErrNewerFormat
	// ErrNotFound says that there is no such checkpoint.
	ErrNotFound = errors.New("not found")
	// ErrNotRepository says that the directory is none.
	ErrNotRepository = errors.New("not a repository")
	// ErrExists says that the directory is a repository already.
	ErrExists = errors.New("repository exists")
	// ErrNoHardLinks says that a file system cannot hold a repository.
	ErrNoHardLinks = errors.New("the file system has no hard links that exclude each other, which a repository needs")
	// ErrOutcomeDecided is matched by *DecidedError.
	ErrOutcomeDecided = errors.New("outcome is decided")
	// ErrMaybeRecorded says that an outcome was handed to the file system, which
	// did not say that it has it: it may be recorded, or may still be.
	ErrMaybeRecorded = errors.New("may have been recorded")
	// ErrPackMissing says that a pack which a round relies on is not there:
	// it was swept before the round claimed it. The round must be aborted; the
	// next one stores the pages again.
	ErrPackMissing = errors.New("pack is missing")
	// ErrBaseGone says that an image cannot be the Base of another: its Writer
	// did not finish, it was put through another Repository value, or a pack
	// that holds it is not relied on any more, because it was swept or is
	// damaged. The image is to be put without a Base.
	ErrBaseGone = errors.New("base image is gone")
	// ErrDiverged says that an image differs from its Base where it was said
	// not to.
	ErrDiverged = errors.New("differs from base where nothing changed")
	// ErrKeyMissing says that a repository or an export is encrypted and no key was
	// given.
	ErrKeyMissing = errors.New("is encrypted, and no key was given")
	// ErrWrongKey says that a key is none of those that open it.
	ErrWrongKey = errors.New("wrong key")
	// ErrNotEncrypted says that a key was given for what is not encrypted.
	ErrNotEncrypted = errors.New("is not encrypted")
	// ErrKeyInUse says that a repository was opened with the key that is to be
	// removed.
	ErrKeyInUse = errors.New("key is in use")
	// ErrClosed says that a Writer was finished or given up.
	ErrClosed = errors.New("writer is closed")
)

// CorruptError names a damaged object.
type CorruptError = damage.Error

// DecidedError says that an epoch already has another outcome than the one
// asked for.
type DecidedError struct {
	Cluster string
	Epoch   uint64
	Outcome Outcome // the one that stands
}

func (e *DecidedError) Error() string {
	return fmt.Sprintf("epoch %s@%d is %s: %s", e.Cluster, e.Epoch, e.Outcome, ErrOutcomeDecided)
}

// Is makes every DecidedError match ErrOutcomeDecided.
func (e *DecidedError) Is(target error) bool { return target == ErrOutcomeDecided }
