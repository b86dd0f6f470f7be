package app

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"fermata/protocol/fault"
)

func supervised(run Func, signals <-chan os.Signal) (status int, stderr string) {
	var b bytes.Buffer
	status = supervise(run, &Env{Stderr: &b}, signals)
	return status, b.String()
}

func TestSupervise_ErrorIsOneLineAndClassIsStatus(t *testing.T) {
	for _, c := range []struct {
		err    error
		status int
		stderr string
	}{
		{nil, 0, ""},
		{errors.New("boom"), 1, "fermata: boom\n"},
		{Usage(errors.New("flag x")), 2, "fermata: flag x\n"},
		{Usage(fault.New(fault.NotFound, "no file")), 3, "fermata: no file\n"},
		{fmt.Errorf("list: %w", fault.New(fault.Busy, "in progress")), 6, "fermata: list: in progress\n"},
		{errors.Join(errors.New("one"), errors.New("two\n three")), 1, "fermata: one; two; three\n"},
	} {
		status, stderr := supervised(func(context.Context, *Env) error { return c.err }, nil)
		if status != c.status || stderr != c.stderr {
			t.Errorf("%v: status %d, stderr %q; want %d, %q", c.err, status, stderr, c.status, c.stderr)
		}
	}
}

func TestSupervise_FirstInterruptCancels(t *testing.T) {
	signals := make(chan os.Signal, 1)
	status, stderr := supervised(func(ctx context.Context, env *Env) error {
		env.OnInterrupt("guests keep running")
		signals <- os.Interrupt
		<-ctx.Done()
		return fmt.Errorf("checkpoint demo: %w", Cause(ctx, ctx.Err()))
	}, signals)
	want := "fermata: interrupted: guests keep running; interrupt again to leave at once\n" +
		"fermata: checkpoint demo: interrupted\n"
	if status != ExitInterrupted || stderr != want {
		t.Errorf("status %d, stderr:\n%swant %d:\n%s", status, stderr, ExitInterrupted, want)
	}
}

func TestSupervise_SecondInterruptLeaves(t *testing.T) {
	signals := make(chan os.Signal, 2)
	release := make(chan struct{})
	defer close(release)
	status, stderr := supervised(func(context.Context, *Env) error {
		signals <- os.Interrupt
		signals <- os.Interrupt
		<-release // deaf to ctx
		return nil
	}, signals)
	if status != ExitInterrupted || !strings.Contains(stderr, "interrupted twice") {
		t.Errorf("status %d, stderr %q", status, stderr)
	}
}

func TestCause_KeepsOtherErrors(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(ErrInterrupted)
	other := errors.New("disk full")
	if got := Cause(ctx, other); got != other {
		t.Errorf("Cause = %v, want %v", got, other)
	}
	if got := Cause(t.Context(), context.Canceled); got != context.Canceled {
		t.Errorf("Cause without an interrupt = %v", got)
	}
}

func TestEnv_RedirectNotices(t *testing.T) {
	var direct, redirected bytes.Buffer
	env := &Env{Stderr: &direct}
	restore := env.RedirectNotices(&redirected)
	env.Notice("a %d", 1)
	restore()
	env.Notice("b")
	if direct.String() != "fermata: b\n" || redirected.String() != "fermata: a 1\n" {
		t.Errorf("direct %q, redirected %q", direct.String(), redirected.String())
	}
}
