package fabric

import (
	"context"
	"errors"
	"testing"
	"time"
)

// TestDrainUntil_BeginsAnewForAProcessThatStoodStill: one that was stopped (SIGSTOP)
// in a drain finds its time over before the guest had any of it.
func TestDrainUntil_BeginsAnewForAProcessThatStoodStill(t *testing.T) {
	const budget = 20 * time.Millisecond
	for _, tc := range []struct {
		name   string
		stands time.Duration // beyond its time, in the first drain
		calls  int
		want   error
	}{
		{"the process stood still", stoodStill + 50*time.Millisecond, 2, nil},
		{"the guest takes nothing", 0, 1, ErrUndrained},
	} {
		t.Run(tc.name, func(t *testing.T) {
			begun, calls := time.Now(), 0
			until, err := drainUntil(t.Context(), begun.Add(budget), budget, func(ctx context.Context) error {
				if calls++; calls == 2 {
					return ctx.Err() // the guest has taken everything; there was time for it
				}
				<-ctx.Done()
				time.Sleep(tc.stands)
				return ErrUndrained
			})
			if !errors.Is(err, tc.want) || calls != tc.calls {
				t.Errorf("error = %v after %d drains, want %v after %d", err, calls, tc.want, tc.calls)
			}
			if later := until.After(begun.Add(budget)); later != (tc.calls == 2) {
				t.Errorf("the next card may be drained until %s after the begin", until.Sub(begun))
			}
		})
	}
}
