package app

import (
	"context"
	"errors"

	"fermata/protocol/fault"
)

// ExitInterrupted is the exit status after an interrupt: 128 and the number of
// SIGINT, as shells have it. Every other status is that of the error's class
// (fault.Class.ExitCode).
const ExitInterrupted = 130

// ExitCode returns the exit status of a program that ends with err.
func ExitCode(err error) int {
	if errors.Is(err, ErrInterrupted) {
		return ExitInterrupted
	}
	return fault.ClassOf(err).ExitCode()
}

// Usage marks err as a mistake in the command line. A class that err has
// already is kept: it says more.
func Usage(err error) error {
	var classified *fault.Error
	if err == nil || errors.As(err, &classified) {
		return err
	}
	return fault.Wrap(fault.Invalid, err, "")
}

// Usagef is Usage for a message in the manner of fmt.Errorf.
func Usagef(format string, args ...any) error {
	return fault.New(fault.Invalid, format, args...)
}

// Cause returns ErrInterrupted in place of an err that only says that ctx,
// which an interrupt ended, has ended.
func Cause(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil && errors.Is(context.Cause(ctx), ErrInterrupted) && errors.Is(err, context.Canceled) {
		return ErrInterrupted
	}
	return err
}
