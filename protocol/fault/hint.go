package fault

import "errors"

// hinted is an error that says what to do next.
type hinted struct {
	text string
	hint string
	err  error
}

func (h *hinted) Error() string { return h.text }
func (h *hinted) Unwrap() error { return h.err }

// WithHint adds what to do next to err, behind its own words. The class stays. A nil
// error stays nil.
func WithHint(err error, hint string) error {
	if err == nil || hint == "" {
		return err
	}
	return &hinted{text: err.Error() + "; " + hint, hint: hint, err: err}
}

// Hinted is WithHint for an err whose text ends with the hint already, as one that came
// over the wire.
func Hinted(err error, hint string) error {
	if err == nil || hint == "" {
		return err
	}
	return &hinted{text: err.Error(), hint: hint, err: err}
}

// HintOf returns what err, or an error that it wraps, says to do next; else what its
// class suggests, which may be nothing.
func HintOf(err error) string {
	var h *hinted
	if errors.As(err, &h) {
		return h.hint
	}
	return ClassOf(err).Hint()
}

// Hint is what to do next about an error of the class of which nothing else is known.
func (c Class) Hint() string {
	switch c {
	case Stale, Busy:
		return "try again when what is in progress has ended"
	case Unavailable:
		return "nothing was done; try again when the party that is named can be reached"
	case NoSpace:
		return "make room, then try again"
	case Aborted, Deadline:
		return "it was undone; try again"
	case Unknown:
		return "look what became of it before you repeat it"
	case Corrupt:
		return "find out what is damaged with fermata checkpoints verify"
	}
	return ""
}
