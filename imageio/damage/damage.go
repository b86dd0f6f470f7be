// Package damage is how imageio says that stored bytes are not what was
// written. Damage is a class of its own: it is never retried, and it names the
// object so that a caller can tell whom it hits.
package damage

import "errors"

// ErrCorrupt is matched by every damage error.
var ErrCorrupt = errors.New("corrupt")

// Error names one damaged object.
type Error struct {
	Object string // e.g. "pack 6f…", "page ab… in pack 6f…", "manifest web@7"
	Reason error
}

// New returns damage of object.
func New(object string, reason error) error { return &Error{Object: object, Reason: reason} }

func (e *Error) Error() string { return e.Object + ": corrupt: " + e.Reason.Error() }

// Unwrap gives the reason, e.g. fs.ErrNotExist for a pack that is gone.
func (e *Error) Unwrap() error { return e.Reason }

// Is makes every Error match ErrCorrupt.
func (e *Error) Is(target error) bool { return target == ErrCorrupt }
