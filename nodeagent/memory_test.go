package nodeagent

import (
	"strings"
	"testing"
)

// TestConfig_OneNumberForMemory: all shares together are what was configured.
func TestConfig_OneNumberForMemory(t *testing.T) {
	const mib = 1 << 20
	for _, tc := range []struct {
		name                   string
		agent, capture         int64 // configured; MiB
		left                   int64 // beside the guests
		wantCapture, wantAgent int64
		refused                string
	}{
		{"nothing configured", 0, 0, 12 << 10, 6 << 10, 9 << 10, ""},
		{"nothing configured, little left", 0, 0, 10, 32, 96, ""},
		{"one number", 3000, 0, 1 << 20, 2000, 3000, ""},
		{"as before there was one", 0, 1024, 1 << 20, 1024, 1536, ""},
		{"both", 4096, 1024, 1 << 20, 1024, 4096, ""},
		{"captures leave nothing", 1024, 1000, 1 << 20, 1000, 1024, "capture_mib takes 1000: at least 64 MiB more"},
		{"too little for anything", 60, 0, 1 << 20, -4, 60, "negative"},
		{"negative", -1, 0, 1 << 20, 0, -1, "negative"},
	} {
		c := Config{AgentBytes: tc.agent * mib, CaptureBytes: tc.capture * mib}
		c.shareMemory(tc.left * mib)
		err := c.checkMemory()
		if (err == nil) != (tc.refused == "") || err != nil && !strings.Contains(err.Error(), tc.refused) {
			t.Errorf("%s: %v, want %q", tc.name, err, tc.refused)
		}
		if tc.refused != "" {
			continue
		}
		if c.CaptureBytes != tc.wantCapture*mib || c.AgentBytes != tc.wantAgent*mib {
			t.Errorf("%s: captures get %d MiB of %d, want %d of %d", tc.name, c.CaptureBytes/mib, c.AgentBytes/mib, tc.wantCapture, tc.wantAgent)
		}
		if sum := c.CaptureBytes + c.frameBytes() + c.indexBytes(); sum != c.AgentBytes || c.frameBytes() < minShare || c.indexBytes() < minShare {
			t.Errorf("%s: shares of %d, %d and %d bytes of %d", tc.name, c.CaptureBytes, c.frameBytes(), c.indexBytes(), c.AgentBytes)
		}
	}
}
