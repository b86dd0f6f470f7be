package trials

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"fermata/experiments/guests"
	"fermata/experiments/labrun"
	"fermata/protocol/mustrun"
)

// TestCluster_OfUnlikeGuests checkpoints and restarts, on swapped nodes, a guest
// with one vCPU and 128 MiB beside one with two vCPUs and 1 GiB, each with a
// disk and two cards on two networks. The canary runs over the second card.
func TestCluster_OfUnlikeGuests(t *testing.T) {
	r := newRig(t, 2)
	r.app.Work = guests.RunCanary
	r.app.Canary = guests.Canary{Rate: 200, SizeBytes: 300, SecondNIC: true, Length: 20 * time.Second}
	image, err := mustrun.GuestDir()
	if err != nil {
		t.Fatal(err)
	}
	base := filepath.Join(r.Dir, "base.raw")
	if err := os.WriteFile(base, bytes.Repeat([]byte("base"), 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "name: %s\nnetworks:\n  - name: lan\n  - name: data\ndefaults:\n  accel: tcg\n  machine: pc-q35-7.2\n  cpu: qemu64\n", r.cluster)
	fmt.Fprintf(&b, "  kernel: %s/vmlinuz\n  initrd: %s/initrd.img\n  disks:\n    - name: data\n      path: %s\n      format: raw\n", image, image, base)
	b.WriteString("  nics:\n    - network: lan\n    - network: data\nguests:\n")
	for i, shape := range []struct {
		memory string
		vcpus  int
		node   string
	}{{"128MiB", 1, "n1"}, {"1GiB", 2, "n2"}} {
		fmt.Fprintf(&b, "  - name: %s\n    memory: %s\n    vcpus: %d\n    node: %s\n    cmdline: %q\n", guests.Name(i+1), shape.memory, shape.vcpus, shape.node, r.app.Cmdline(i+1))
	}
	spec := filepath.Join(r.Dir, "unlike.yaml")
	if err := os.WriteFile(spec, []byte(b.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	r.start()
	r.must(nil, "cluster", "create", "-f", spec)
	r.must(nil, "cluster", "start", r.cluster)
	begun := func(all map[string][]byte) (bool, error) {
		for _, console := range all {
			sending := false
			labrun.Each(console, func(l guests.Line) {
				if s, ok := l.Body.(guests.CanaryStatus); ok && s.Received > 200 {
					sending = true
				}
			})
			if !sending {
				return false, nil
			}
		}
		return true, nil
	}
	if err := r.consoles().Await(t.Context(), bootBudget, "the canary over the second network", begun); err != nil {
		t.Fatal(err)
	}
	cp := r.checkpoint()
	t.Logf("%d frames recorded", cp.FramesRecorded)
	r.must(nil, "rollback", r.cluster, "--on", "g1=n2,g2=n1")
	complete := func(all map[string][]byte) (bool, error) {
		s, err := labrun.Summarise(all)
		return s.CanaryComplete, err
	}
	if err := r.consoles().Await(t.Context(), bootBudget, "the canary's account", complete); err != nil {
		t.Fatal(err)
	}
	all, err := r.consoles().Read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s, err := labrun.Summarise(all)
	if err != nil {
		t.Fatal(err)
	}
	if !s.Totals.Clean() || s.Totals.Sent < 5000 {
		t.Errorf("canary: %+v", s.Totals)
	}
}

// unreadable looks for words in every file of the repository.
func (r *rig) unreadable(words ...string) {
	r.Helper()
	files := 0
	err := filepath.WalkDir(filepath.Join(r.Dir, "repository"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		files++
		data, err := os.ReadFile(path)
		for _, w := range words {
			if bytes.Contains(data, []byte(w)) {
				r.Errorf("%s has %q in it", path, w)
			}
		}
		return err
	})
	if err != nil || files < 4 {
		r.Errorf("%d files, %v", files, err)
	}
}

// TestCoordinator_OnRealEtcd runs the lab against Debian's etcd server in place
// of the embedded one, which is a matter of configuration alone, and with a
// repository that is encrypted, which is another. The etcd is
// then killed and its data deleted: the cluster restarts all the same.
func TestCoordinator_OnRealEtcd(t *testing.T) {
	mustrun.Need(t, mustrun.Etcd)
	r := newRig(t, 2, "--etcd", "http://127.0.0.1:2379", "--encrypt")
	data, pidFile := filepath.Join(r.Dir, "real-etcd"), filepath.Join(r.Dir, "real-etcd.pid")
	// The lab normally makes its namespace itself; here etcd must be in it first.
	r.Prefix = []string{"unshare", "--net", "sh", "-c", `ip link set lo up
etcd --data-dir "$0" --log-level error --listen-peer-urls http://127.0.0.1:2380 --unsafe-no-fsync >"$0.log" 2>&1 &
echo $! >"$1"
shift
FERMATA_LAB_NAMESPACE=1 exec "$@"`, data, pidFile}
	endEtcd := func(signal syscall.Signal) {
		b, err := os.ReadFile(pidFile)
		if err != nil {
			return // not started
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
		if err != nil {
			t.Fatal(err)
		}
		// It is the child of a process that may have gone: asked until it has, too.
		err = labrun.Poll(context.WithoutCancel(t.Context()), stepBudget, "the end of etcd", func() (bool, error) {
			err := syscall.Kill(pid, signal)
			if errors.Is(err, syscall.ESRCH) {
				return true, nil
			}
			return false, err
		})
		if err != nil {
			t.Error(err)
		}
		_ = os.Remove(pidFile)
	}
	t.Cleanup(func() { endEtcd(syscall.SIGKILL) })
	r.start()
	r.bring()
	r.checkpoint()
	r.unreadable("Linux version", "qemu64") // what the kernel says of itself, and the specification
	if _, err := r.KillAll(t.Context(), r.cluster); err != nil {
		t.Fatal(err)
	}
	endEtcd(syscall.SIGKILL)
	if err := os.RemoveAll(data); err != nil {
		t.Fatal(err)
	}
	r.start()
	r.must(nil, "restart", r.cluster)
	r.ticking(stepBudget)
	if err := r.End(); err != nil {
		t.Fatal(err)
	}
}
