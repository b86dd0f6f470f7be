package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// unit reads a sample's settings by section and key; a key that is given twice keeps its
// last value.
func unit(t *testing.T, path string) map[string]string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	settings, section := map[string]string{}, ""
	for n, line := range strings.Split(string(text), "\n") {
		line = strings.TrimSpace(line)
		key, value, assigns := strings.Cut(line, "=")
		switch {
		case line == "" || strings.HasPrefix(line, "#"):
		case strings.HasPrefix(line, "[") && strings.HasSuffix(line, "]"):
			section = strings.Trim(line, "[]")
		case assigns && section != "":
			settings[section+"."+key] = value
		default:
			t.Errorf("%s:%d: %q is neither a section nor a setting", path, n+1, line)
		}
	}
	return settings
}

// TestUnits_EndNoGuests: what keeps guests alive when systemd stops an agent.
func TestUnits_EndNoGuests(t *testing.T) {
	agent := unit(t, filepath.Join("..", "..", "configs", "fermata-agent.service"))
	for key, want := range map[string]string{
		"Service.KillMode": "process", "Service.Delegate": "yes", "Service.OOMPolicy": "continue",
		"Service.Restart": "always", "Service.TasksMax": "infinity",
	} {
		if agent[key] != want {
			t.Errorf("fermata-agent.service: %s=%q, want %q", key, agent[key], want)
		}
	}
	for key := range agent {
		if name := strings.TrimPrefix(key, "Service."); strings.HasPrefix(name, "Private") || strings.HasPrefix(name, "Protect") {
			t.Errorf("fermata-agent.service: %s gives guests mounts that the next agent does not have", name)
		}
	}
}

// TestUnits_AreUnderstood checks the samples by systemd's own parser, and that their
// commands are ours.
func TestUnits_AreUnderstood(t *testing.T) {
	for _, name := range []string{"agent", "coordinator"} {
		path := filepath.Join("..", "..", "configs", "fermata-"+name+".service")
		start := unit(t, path)["Service.ExecStart"]
		args, ours := strings.CutPrefix(start, "/usr/bin/fermata ")
		if !ours {
			t.Fatalf("%s: ExecStart=%s", path, start)
		}
		// A configuration that is not there is what the command complains about.
		absent := filepath.Join(t.TempDir(), "absent")
		args = strings.Replace(args, "/etc/fermata/", absent+"/", 1)
		if r := fermata(t, nil, strings.Fields(args)...); !strings.Contains(r.stderr, absent+"/"+name+".yaml") {
			t.Errorf("%s: ExecStart=%s: %s", path, start, r.stderr)
		}
		analyze, err := exec.LookPath("systemd-analyze")
		if err != nil {
			t.Skip("systemd-analyze is not installed")
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		copied := filepath.Join(t.TempDir(), filepath.Base(path))
		if err := os.WriteFile(copied, []byte(strings.Replace(string(text), "/usr/bin/fermata", os.Args[0], 1)), 0o600); err != nil {
			t.Fatal(err)
		}
		// It warns of what it does not know, and succeeds.
		if out, err := exec.Command(analyze, "verify", "--man=no", copied).CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%s: %v: %s", path, err, out)
		}
	}
}
