package fault_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"testing"

	"fermata/protocol/fault"
)

func TestClass_TextAndExitCodeAreUnique(t *testing.T) {
	exits := map[int]fault.Class{0: fault.None}
	for _, c := range fault.Classes() {
		got, err := fault.ParseClass(c.String())
		if err != nil || got != c {
			t.Errorf("ParseClass(%q) = %v, %v", c.String(), got, err)
		}
		if other, taken := exits[c.ExitCode()]; taken {
			t.Errorf("%v and %v share exit code %d", c, other, c.ExitCode())
		}
		exits[c.ExitCode()] = c
	}
	if len(exits) != 15 {
		t.Errorf("%d classes with None, want 15", len(exits))
	}
	if _, err := fault.ParseClass("bogus"); err == nil {
		t.Error("ParseClass of an unknown text must fail")
	}
	if got := fault.Class(200).ExitCode(); got != 1 {
		t.Errorf("exit code of an unknown class = %d, want 1", got)
	}
}

func TestClassOf(t *testing.T) {
	stale := fault.New(fault.Stale, "cut round %s: %w", "c@7", io.ErrClosedPipe)
	for _, tc := range []struct {
		name string
		err  error
		want fault.Class
	}{
		{"nil", nil, fault.None},
		{"new", stale, fault.Stale},
		{"wrapped on", fmt.Errorf("serve: %w", stale), fault.Stale},
		{"outermost wins", fault.Wrap(fault.Aborted, stale, ""), fault.Aborted},
		{"first of join", errors.Join(io.EOF, stale, fault.New(fault.Busy, "x")), fault.Stale},
		{"unclassified", io.EOF, fault.Internal},
		{"cancelled", fmt.Errorf("wait: %w", context.Canceled), fault.Aborted},
		{"expired", context.DeadlineExceeded, fault.Deadline},
		{"disk full", &os.PathError{Op: "write", Path: "p", Err: syscall.ENOSPC}, fault.NoSpace},
	} {
		if got := fault.ClassOf(tc.err); got != tc.want {
			t.Errorf("%s: class %v, want %v", tc.name, got, tc.want)
		}
	}
	if stale.Error() != "cut round c@7: io: read/write on closed pipe" || !errors.Is(stale, io.ErrClosedPipe) {
		t.Errorf("New: message %q, or the cause is lost", stale)
	}
}

func TestWrap(t *testing.T) {
	if err := fault.Wrap(fault.Busy, nil, "op"); err != nil {
		t.Errorf("Wrap(nil) = %v", err)
	}
	err := fault.Wrap(fault.Busy, io.EOF, "open guest %s", "a")
	if err.Error() != "open guest a: EOF" || !errors.Is(err, io.EOF) {
		t.Errorf("Wrap = %q", err)
	}
}

func TestWithHint(t *testing.T) {
	if err := fault.WithHint(nil, "x"); err != nil {
		t.Errorf("of no error: %v", err)
	}
	err := fmt.Errorf("start c: %w", fault.WithHint(fault.New(fault.NotFound, "no cluster c"), "did you mean d?"))
	if err.Error() != "start c: no cluster c; did you mean d?" || fault.ClassOf(err) != fault.NotFound || fault.HintOf(err) != "did you mean d?" {
		t.Errorf("%v of class %v, hint %q", err, fault.ClassOf(err), fault.HintOf(err))
	}
	if got := fault.HintOf(fault.New(fault.Busy, "x")); got != fault.Busy.Hint() || got == "" {
		t.Errorf("hint of a busy error without one: %q", got)
	}
}
