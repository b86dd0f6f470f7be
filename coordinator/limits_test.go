package coordinator_test

import (
	"strings"
	"testing"
	"time"

	"fermata/coordinator"
	"fermata/imageio/manifest"
	"fermata/protocol/fault/faultgrpc"
	"fermata/protocol/round"
)

// TestLimits_AMessageHoldsAManifest: what the repository can hold can be sent to nodes.
func TestLimits_AMessageHoldsAManifest(t *testing.T) {
	if room := int64(faultgrpc.MaxMessageBytes) - manifest.MaxRecordLen(); room < 16<<20 {
		t.Errorf("a message has %d bytes beside those of the largest manifest", room)
	}
}

// TestConfig_BudgetsFitTheNodes: a coordinator that lets nodes wait for longer than they do
// would abort its own rounds.
func TestConfig_BudgetsFitTheNodes(t *testing.T) {
	for _, timeouts := range []coordinator.Timeouts{{Prepare: round.SilenceBudget}, {Cut: time.Hour}} {
		cfg := coordinator.Config{Timeouts: timeouts}
		if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), "gives the round up") {
			t.Errorf("%+v: %v", timeouts, err)
		}
	}
}
