package fault

import (
	"context"
	"errors"
	"fmt"
	"syscall"
)

// Error is an error with a class. Make one with New or Wrap.
type Error struct {
	class Class
	err   error
}

// Error returns the message alone; the class is not part of it.
func (e *Error) Error() string { return e.err.Error() }

// Unwrap returns the error that was classified.
func (e *Error) Unwrap() error { return e.err }

// Class returns the class.
func (e *Error) Class() Class { return e.class }

// New returns an error of the class with a message in the manner of
// fmt.Errorf, %w included: operation, object, reason.
//
//	fault.New(fault.Stale, "cut round %s: fence %d, have seen %d", id, got, seen)
func New(class Class, op string, args ...any) error {
	return &Error{class: class, err: fmt.Errorf(op, args...)}
}

// Wrap gives err a class, and puts the operation before its message when op is
// not empty. It returns nil for a nil err. A class that err has already gives
// way: who wraps knows more.
func Wrap(class Class, err error, op string, args ...any) error {
	if err == nil {
		return nil
	}
	if op == "" {
		return &Error{class: class, err: err}
	}
	return &Error{class: class, err: fmt.Errorf("%s: %w", fmt.Sprintf(op, args...), err)}
}

// ClassOf returns the class of err: that of the outermost Error in its tree
// (the first of an errors.Join), None for nil. Of errors without a class it
// knows those of a cancelled or expired context and of a full disk; any other
// is Internal.
func ClassOf(err error) Class {
	var e *Error
	switch {
	case err == nil:
		return None
	case errors.As(err, &e):
		return e.class
	case errors.Is(err, context.Canceled):
		return Aborted
	case errors.Is(err, context.DeadlineExceeded):
		return Deadline
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return NoSpace
	default:
		return Internal
	}
}
