package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"fermata/protocol/fault"
)

// TestSamples_Decode reads the samples of the daemons as the daemons do.
func TestSamples_Decode(t *testing.T) {
	var agent agentFile
	if err := readConfig(filepath.Join("..", "..", "configs", "agent.yaml"), &agent); err != nil {
		t.Error(err)
	}
	if agent.Name == "" || len(agent.Coordinators) == 0 {
		t.Errorf("agent.yaml: %+v", agent)
	}
	var coordinator coordinatorFile
	if err := readConfig(filepath.Join("..", "..", "configs", "coordinator.yaml"), &coordinator); err != nil {
		t.Error(err)
	}
	if len(coordinator.Listen) == 0 || coordinator.Repository == "" {
		t.Errorf("coordinator.yaml: %+v", coordinator)
	}
}

// TestDaemons_RefuseAMisspeltKey checks the one line that an operator gets.
func TestDaemons_RefuseAMisspeltKey(t *testing.T) {
	file := filepath.Join(t.TempDir(), "daemon.yaml")
	if err := os.WriteFile(file, []byte("repository: /r\nrepositori: /r\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, daemon := range []string{"agent", "coordinator"} {
		r := fermata(t, nil, daemon, "--config", file)
		if r.status != fault.Invalid.ExitCode() || !strings.Contains(r.stderr, "line 2") || strings.Count(r.stderr, "\n") != 1 {
			t.Errorf("%s: status %d, stderr %q", daemon, r.status, r.stderr)
		}
	}
}
