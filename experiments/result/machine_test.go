package result

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"fermata/protocol/mustrun"
)

func TestKernelNumbers(t *testing.T) {
	for release, want := range map[string]string{
		"6.18.44-site-v5": "6.18.44", "6.1.0": "6.1.0", "6.18.-rc1": "6.18", "": "",
	} {
		if got := kernelNumbers(release); got != want {
			t.Errorf("%q: %q, want %q", release, got, want)
		}
	}
}

func TestQEMUVersion(t *testing.T) {
	got, err := qemuVersion("QEMU emulator version 7.2.22 (Debian 1:7.2)\nCopyright\n")
	if err != nil || got != "7.2.22" {
		t.Errorf("%q, %v", got, err)
	}
	for _, text := range []string{"", "nothing of the kind", "version "} {
		if _, err := qemuVersion(text); err == nil {
			t.Errorf("found a version in %q", text)
		}
	}
}

func TestHere(t *testing.T) {
	mustrun.Need(t, mustrun.QEMU)
	m, err := Here(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if m.CPUs < 1 || m.MemoryBytes < 1<<28 || m.Kernel == "" || m.QEMU == "" || m.LoadAverage < 0 || m.LoadAverage > 1e5 {
		t.Errorf("%+v", m)
	}
}

func TestCommit(t *testing.T) {
	if _, err := exec.LookPath("git"); err != nil {
		t.Skip("git is not installed")
	}
	dir := t.TempDir()
	if got, err := Commit(t.Context(), dir); err != nil || got != UnknownCommit {
		t.Fatalf("outside a repository: %q, %v", got, err)
	}
	run := func(args ...string) {
		t.Helper()
		cmd := exec.Command("git", append([]string{"-c", "user.name=a", "-c", "user.email=a@example.org"}, args...)...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
	}
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	const result = "experiments/results/a.json"
	write("program", "1")
	write(result, "1")
	run("init", "-q")
	run("add", ".")
	run("commit", "-q", "-m", "first")

	clean, err := Commit(t.Context(), dir)
	if err != nil || len(clean) != 12 {
		t.Fatalf("clean tree: %q, %v", clean, err)
	}
	write(result, "2")
	if got, err := Commit(t.Context(), filepath.Join(dir, "experiments")); err != nil || got != clean {
		t.Errorf("with a new result: %q, %v, want %q", got, err, clean)
	}
	write("program", "2")
	if got, err := Commit(t.Context(), dir); err != nil || got != clean+"-modified" {
		t.Errorf("with a changed program: %q, %v, want %q", got, err, clean+"-modified")
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Commit(ended, dir); err == nil {
		t.Error("an ended context is not told")
	}
}
