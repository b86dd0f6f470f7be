package main

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"fermata/cmd/internal/app"
	"fermata/cmd/internal/operatortest"
	"fermata/cmd/internal/render"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// result is what a command left behind.
type result struct {
	status         int
	stdout, stderr string
}

// fermata runs a command line against the server, if there is one.
func fermata(t *testing.T, server *operatortest.Server, args ...string) result {
	t.Helper()
	if server != nil {
		args = append([]string{"--coordinator", server.Address, "--plaintext"}, args...)
	}
	var stdout, stderr bytes.Buffer
	status := app.Main(run, args, &stdout, &stderr)
	return result{status, stdout.String(), stderr.String()}
}

// startNotice is what "cluster start demo" says of the checkpoints of operatortest.
const startNotice = "fermata: the guests boot afresh; cluster demo has checkpoints, the newest is demo@10: \"fermata restart demo\" goes on from there\n"

// succeeds runs a command line that must succeed, and returns its result.
func succeeds(t *testing.T, server *operatortest.Server, args ...string) string {
	t.Helper()
	r := fermata(t, server, args...)
	if r.status != 0 || strings.ReplaceAll(r.stderr, startNotice, "") != "" {
		t.Fatalf("fermata %s: status %d, stderr %q", strings.Join(args, " "), r.status, r.stderr)
	}
	return r.stdout
}

// TestOutput_Golden fixes what people and programs read, in every format.
func TestOutput_Golden(t *testing.T) {
	server := operatortest.New(t)
	for name, args := range map[string][]string{
		"cluster-list":         {"cluster", "list"},
		"cluster-show":         {"cluster", "show", "demo"},
		"cluster-show-broken":  {"cluster", "show", "other"},
		"cluster-start":        {"cluster", "start", "demo", "--on", "a=node1"},
		"cluster-stop":         {"cluster", "stop", "demo"},
		"cluster-delete":       {"cluster", "delete", "demo"},
		"checkpoint":           {"checkpoint", "demo", "--label", "x"},
		"checkpoints-list":     {"checkpoints", "list"},
		"checkpoints-list-one": {"checkpoints", "list", "other"},
		"checkpoints-show":     {"checkpoints", "show", "demo@1"},
		"checkpoints-discard":  {"checkpoints", "show", "demo@10"},
		"checkpoints-damaged":  {"checkpoints", "show", "other@9"},
		"checkpoints-verify":   {"checkpoints", "verify", "demo@1"},
		"checkpoints-delete":   {"checkpoints", "delete", "demo@1"},
		"restart":              {"restart", "demo"},
		"restart-dry-run":      {"restart", "demo", "--dry-run", "--from", "2"},
		"rollback":             {"rollback", "demo", "--from", "demo@1"},
		"node-list":            {"node", "list"},
		"node-show":            {"node", "show", "node1"},
	} {
		for _, format := range render.FormatNames() {
			t.Run(name+"/"+format, func(t *testing.T) {
				golden(t, name+"."+format, succeeds(t, server, append(args, "-o", format)...))
			})
		}
	}
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("differs from %s (-want +got); if every change is wanted, run with -update:\n%s", path, diff)
	}
}
