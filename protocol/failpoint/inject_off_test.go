//go:build !failpoints

package failpoint

import (
	"context"
	"errors"
	"testing"
)

func TestDisabled(t *testing.T) {
	if _, err := Arm(AgentAfterStop, "error"); !errors.Is(err, ErrDisabled) {
		t.Errorf("Arm = %v, want ErrDisabled", err)
	}
	if err := ArmAll("nodeagent/after-stop=kill"); !errors.Is(err, ErrDisabled) {
		t.Errorf("ArmAll = %v, want ErrDisabled", err)
	}
	if err := ArmAll(""); err != nil {
		t.Errorf("ArmAll of nothing = %v", err)
	}
	ctx := context.Background()
	if n := testing.AllocsPerRun(100, func() {
		if err := Inject(ctx, AgentAfterStop); err != nil {
			t.Error(err)
		}
	}); n != 0 {
		t.Errorf("Inject allocates %v times", n)
	}
}
