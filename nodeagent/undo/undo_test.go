package undo

import (
	"context"
	"errors"
	"slices"
	"testing"
)

func TestStack_RunsInReverseAndJoinsErrors(t *testing.T) {
	var s Stack
	var got []int
	boom := errors.New("boom")
	for i := range 3 {
		_ = s.Add(t.Context(), func(context.Context) error {
			got = append(got, i)
			if i == 1 {
				return boom
			}
			return nil
		})
	}
	if err := s.RunUnlessReleased(t.Context()); !errors.Is(err, boom) {
		t.Errorf("error = %v, want boom", err)
	}
	if want := []int{2, 1, 0}; !slices.Equal(got, want) {
		t.Errorf("order = %v, want %v", got, want)
	}
}

func TestStack_RunsUnderCancelledContext(t *testing.T) {
	var s Stack
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var stepErr error
	_ = s.Add(ctx, func(ctx context.Context) error { stepErr = ctx.Err(); return nil })
	_ = s.RunUnlessReleased(ctx)
	if stepErr != nil {
		t.Errorf("step saw %v, want a live context", stepErr)
	}
}

func TestStack_AddDuringRun(t *testing.T) {
	var s Stack
	late := false
	_ = s.Add(t.Context(), func(ctx context.Context) error {
		return s.Add(ctx, func(context.Context) error { late = true; return nil })
	})
	_ = s.RunUnlessReleased(t.Context())
	if !late {
		t.Error("a step added during the run was lost")
	}
}

func TestStack_ReleaseKeeps(t *testing.T) {
	var s Stack
	_ = s.Add(t.Context(), func(context.Context) error { t.Error("released step ran"); return nil })
	s.Release()
	if err := s.RunUnlessReleased(t.Context()); err != nil {
		t.Error(err)
	}
}
