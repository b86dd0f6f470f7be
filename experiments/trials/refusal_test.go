package trials

import (
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"fermata/experiments/labrun"
	"fermata/protocol/fault"
)

// TestOperator_IsToldWhatIsWrong makes one mistake after the other against one
// running cluster, which must go on through all of them.
func TestOperator_IsToldWhatIsWrong(t *testing.T) {
	r := newRig(t, 2)
	r.start()

	t.Run("misspelt key", func(t *testing.T) {
		path := r.spec(func(s string) string { return strings.Replace(s, "  memory:", "  memroy:", 1) })
		r.refused(fault.Invalid, []string{"cluster.yaml:8", "memroy"}, "cluster", "create", "-f", path)
	})
	t.Run("unknown cluster", func(t *testing.T) {
		r.refused(fault.NotFound, []string{"nosuch"}, "checkpoint", "nosuch")
		r.refused(fault.NotFound, []string{"nosuch"}, "cluster", "show", "nosuch")
		r.refused(fault.NotFound, []string{"nosuch"}, "restart", "nosuch")
	})

	r.bring()
	first := r.checkpoint()
	r.ticking(stepBudget)

	t.Run("restart of a running cluster", func(t *testing.T) {
		r.refused(fault.Busy, []string{"rollback"}, "restart", r.cluster)
	})
	t.Run("certificate of another authority", func(t *testing.T) {
		other := t.TempDir()
		for _, args := range [][]string{
			{"certs", "init", "--dir", other},
			{"certs", "issue", "--dir", other, "--role", "operator", "--name", "stranger", "--out", filepath.Join(other, "stranger")},
		} {
			r.must(nil, args...)
		}
		stranger := []string{"cluster", "list", "--cert", filepath.Join(other, "stranger.crt"), "--key", filepath.Join(other, "stranger.key"), "--ca"}
		r.refused(fault.Denied, []string{"unknown authority"}, append(stranger, filepath.Join(r.Dir, "certs", "ca.crt"))...)
		r.refused(fault.Denied, []string{"certificate"}, append(stranger, filepath.Join(other, "ca.crt"))...)
	})
	t.Run("certificate of another role", func(t *testing.T) {
		certs := filepath.Join(r.Dir, "certs")
		r.refused(fault.Denied, []string{"agent"}, "cluster", "list",
			"--cert", filepath.Join(certs, "n1.crt"), "--key", filepath.Join(certs, "n1.key"))
	})
	t.Run("interrupted checkpoint", func(t *testing.T) {
		before := r.checkpointIDs()
		cmd := exec.Command(r.Fermata, "--lab", r.Dir, "checkpoint", r.cluster, "--progress", "plain")
		stderr, err := cmd.StderrPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// The first words of progress say that the round has begun.
		if _, err := stderr.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Process.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		r.ticking(stepBudget)
		// It was cancelled, or had committed already; either way it is whole.
		after := r.checkpointIDs()
		if status := cmd.ProcessState.ExitCode(); status == 0 || !slices.Equal(before, after[:len(before)]) {
			t.Errorf("exit status %d; checkpoints %v, before %v", status, after, before)
		}
	})
	t.Run("agent that hangs", func(t *testing.T) {
		pid := r.agentPID("n2")
		if err := run(t.Context(), "kill", "-STOP", pid); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := run(t.Context(), "kill", "-CONT", pid); err != nil {
				t.Error(err)
			}
		}()
		err := labrun.Poll(t.Context(), stepBudget, "the node to count as gone", func() (bool, error) {
			var node struct {
				Alive bool `json:"alive"`
			}
			r.must(&node, "node", "show", "n2", "-o", "json")
			return !node.Alive, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		r.refused(fault.Unavailable, []string{"n2"}, "checkpoint", r.cluster)
	})
	r.ticking(stepBudget)
	t.Run("agent that was killed", func(t *testing.T) {
		if err := run(t.Context(), "kill", "-KILL", r.agentPID("n2")); err != nil {
			t.Fatal(err)
		}
		// The lab starts another in its place; the guest never noticed.
		err := labrun.Poll(t.Context(), stepBudget, "a checkpoint to succeed again", func() (bool, error) {
			return r.Command(t.Context(), t.Output(), nil, "checkpoint", r.cluster) == nil, nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})
	r.ticking(stepBudget)
	if ids := r.checkpointIDs(); ids[0] != first.ID {
		t.Errorf("checkpoints %v, want %s first", ids, first.ID)
	}

	r.must(nil, "cluster", "stop", r.cluster)
	t.Run("machine differs from the checkpoint", func(t *testing.T) {
		r.must(nil, "cluster", "delete", r.cluster)
		r.must(nil, "cluster", "create", "-f", r.spec(func(s string) string { return strings.Replace(s, "cpu: qemu64", "cpu: Nehalem", 1) }))
		r.refused(fault.Mismatch, []string{"cpu", "qemu64", "Nehalem"}, "restart", r.cluster, "--from", first.ID)
		r.must(nil, "cluster", "delete", r.cluster)
	})
	r.must(nil, "restart", r.cluster, "--from", first.ID)
	r.ticking(stepBudget)
}

// TestOperator_RestartThatDoesNotFit starts a lab with nodes too small for the
// checkpoint of an earlier one.
func TestOperator_RestartThatDoesNotFit(t *testing.T) {
	r := newRig(t, 2)
	r.start()
	r.bring()
	cp := r.checkpoint()
	if err := r.End(); err != nil {
		t.Fatal(err)
	}
	r.Args = []string{"--node-memory", "100"}
	r.start()
	r.refused(fault.NoSpace, []string{"g1", "g2", "128.0 MiB", "100.0 MiB"}, "restart", r.cluster)
	r.refused(fault.NoSpace, []string{"g1"}, "restart", r.cluster, "--dry-run")
	if ids := r.checkpointIDs(); !slices.Equal(ids, []string{cp.ID}) {
		t.Errorf("checkpoints %v, want %s", ids, cp.ID)
	}
	if err := r.End(); err != nil {
		t.Fatal(err)
	}
	r.Args = nil
	r.start()
	var plan struct {
		DryRun bool `json:"dry_run"`
		Plan   []struct {
			Guest, Node string
		} `json:"plan"`
	}
	r.must(&plan, "restart", r.cluster, "--dry-run", "--on", "n2", "-o", "json")
	if !plan.DryRun || len(plan.Plan) != 2 || plan.Plan[0].Node != "n2" || plan.Plan[1].Node != "n2" {
		t.Errorf("plan %+v, want both guests on n2", plan)
	}
	r.must(nil, "restart", r.cluster)
	r.ticking(stepBudget)
}

// TestOperator_DamagedRepository flips one byte, then pretends a newer format.
func TestOperator_DamagedRepository(t *testing.T) {
	r := newRig(t, 1)
	r.start()
	r.bring()
	older := r.checkpoint()
	before := packs(t, r)
	r.ticking(stepBudget)
	newer := r.checkpoint()
	var fresh []string
	for _, p := range packs(t, r) {
		if !slices.Contains(before, p) {
			fresh = append(fresh, p)
		}
	}
	if len(fresh) == 0 {
		t.Fatal("the second checkpoint wrote no pack")
	}
	flip(t, fresh[0])

	r.refused(fault.Corrupt, []string{strings.TrimSuffix(filepath.Base(fresh[0]), ".pack")}, "checkpoints", "verify", newer.ID)
	r.must(nil, "checkpoints", "verify", older.ID)
	r.must(nil, "cluster", "stop", r.cluster)
	r.refused(fault.Corrupt, []string{newer.ID}, "restart", r.cluster, "--from", newer.ID)
	var report struct {
		CheckpointID string   `json:"checkpoint_id"`
		Skipped      []string `json:"skipped"`
	}
	r.must(&report, "restart", r.cluster, "-o", "json")
	if report.CheckpointID != older.ID || len(report.Skipped) != 1 || !strings.Contains(report.Skipped[0], newer.ID) {
		t.Errorf("restart from latest: %+v, want from %s, skipping %s", report, older.ID, newer.ID)
	}
	r.ticking(stepBudget)
	if err := r.End(); err != nil {
		t.Fatal(err)
	}

	// The version is the 32-bit number behind the magic; a digest over all before
	// it ends the record (imageio/FORMAT.md).
	path := filepath.Join(r.Dir, "repository", "fermata-repository")
	record, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	future := slices.Clone(record)
	future[8]++
	digest := sha256.Sum256(future[:len(future)-sha256.Size])
	copy(future[len(future)-sha256.Size:], digest[:])
	if err := os.WriteFile(path, future, 0o600); err != nil {
		t.Fatal(err)
	}
	err = r.Start(t.Context())
	if err == nil || !strings.Contains(err.Error(), "newer") {
		t.Errorf("lab on a repository of a newer format: %v", err)
	}
	if err := os.WriteFile(path, record, 0o600); err != nil {
		t.Fatal(err)
	}
	r.start()
	r.must(nil, "restart", r.cluster)
	r.ticking(stepBudget)
}

func packs(t *testing.T, r *rig) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(r.Dir, "repository", "packs", "*", "*.pack"))
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// flip changes one byte in the middle of a file.
func flip(t *testing.T, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/3] ^= 0x40
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestOperator_DiskFull fills the repository's file system in mid-checkpoint.
func TestOperator_DiskFull(t *testing.T) {
	r := newRig(t, 2)
	repo := filepath.Join(r.Dir, "small")
	if err := os.Mkdir(repo, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", repo, "tmpfs", 0, "size=1g"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.End(); err != nil {
			t.Error(err)
		}
		if err := syscall.Unmount(repo, 0); err != nil {
			t.Error(err)
		}
	})
	r.Args = []string{"--repository", filepath.Join(repo, "repository")}
	r.start()
	r.bring()
	good := r.checkpoint()

	var free syscall.Statfs_t
	if err := syscall.Statfs(repo, &free); err != nil {
		t.Fatal(err)
	}
	filler := filepath.Join(repo, "filler")
	// Room for the manifest's small files, none for the guests' changed memory.
	const room = 256 << 10
	if err := run(t.Context(), "fallocate", "-l", fmt.Sprint(int64(free.Bavail)*free.Bsize-room), filler); err != nil {
		t.Fatal(err)
	}
	r.refused(fault.NoSpace, []string{"no space"}, "checkpoint", r.cluster)
	r.ticking(stepBudget)
	if ids := r.checkpointIDs(); !slices.Equal(ids, []string{good.ID}) {
		t.Errorf("checkpoints %v, want %s", ids, good.ID)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	r.checkpoint() // the next one works
	r.must(nil, "rollback", r.cluster, "--from", good.ID)
	r.ticking(stepBudget)
}
