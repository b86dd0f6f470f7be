// Package undo collects the steps that take back a half-finished operation and
// runs them in reverse order when it fails.
package undo

import (
	"context"
	"errors"
	"sync"
	"time"
)

// stepBudget bounds all steps of one run together. An undo that hangs would
// keep what it should free; the guests' own deadlines are far larger.
const stepBudget = 30 * time.Second

type stackState int

const (
	stackOpen stackState = iota
	stackRun
	stackReleased
)

// Stack undoes steps in reverse order. The zero value is ready for use.
//
// Concurrency: safe for use by several goroutines.
type Stack struct {
	mu    sync.Mutex
	state stackState                    // guarded by mu
	steps []func(context.Context) error // guarded by mu
}

// Add registers step. If the stack has already run, step runs at once, so that
// nothing registered late is lost; after Release it is dropped.
func (s *Stack) Add(ctx context.Context, step func(context.Context) error) error {
	s.mu.Lock()
	state := s.state
	if state == stackOpen {
		s.steps = append(s.steps, step)
	}
	s.mu.Unlock()
	if state == stackRun {
		return step(context.WithoutCancel(ctx))
	}
	return nil
}

// Release keeps what was done: the steps will not run.
func (s *Stack) Release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state == stackOpen {
		s.state, s.steps = stackReleased, nil
	}
}

// RunUnlessReleased runs the steps, last first, even when ctx is cancelled, and
// joins their errors. Later calls do nothing.
func (s *Stack) RunUnlessReleased(ctx context.Context) error {
	s.mu.Lock()
	if s.state != stackOpen {
		s.mu.Unlock()
		return nil
	}
	s.state = stackRun
	steps := s.steps
	s.steps = nil
	s.mu.Unlock()

	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stepBudget)
	defer cancel()
	var errs []error
	for i := len(steps) - 1; i >= 0; i-- {
		errs = append(errs, steps[i](ctx))
	}
	return errors.Join(errs...)
}
