package nodeagent

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"fermata/protocol/api"
)

// wantConfined checks that the QEMU of a guest runs as another user, with a filter of
// system calls, and in a cgroup of its own if there are any.
func (r *rig) wantConfined(g *api.GuestStatus) {
	r.t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", g.Pid))
	if err != nil {
		r.t.Fatal(err)
	}
	if strings.Contains(string(status), "Uid:\t0\t") || !strings.Contains(string(status), "Seccomp:\t2\n") {
		r.t.Errorf("QEMU of guest %s is not confined:\n%s", g.Name, status)
	}
	if _, _, err := ownCgroup(); err != nil {
		return
	}
	in, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", g.Pid))
	if err != nil {
		r.t.Fatal(err)
	}
	if want := fmt.Sprintf("/%s.%s\n", g.Cluster, g.Name); !strings.Contains(string(in), want) {
		r.t.Errorf("QEMU of guest %s is in\n%swant a cgroup %s", g.Name, in, want)
	}
}

func TestCgroupMount(t *testing.T) {
	for name, c := range map[string]struct{ mountinfo, mount, root string }{
		"unified": {"30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n", "/sys/fs/cgroup", ""},
		"hybrid": {"31 30 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n" +
			"32 30 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n", "/sys/fs/cgroup/unified", ""},
		"container": {"30 23 0:26 /system.slice/c1 /sys/fs/cgroup ro - cgroup2 cgroup rw\n", "/sys/fs/cgroup", "/system.slice/c1"},
		"none":      {"31 30 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n", "", ""},
	} {
		path := filepath.Join(t.TempDir(), "mountinfo")
		if err := os.WriteFile(path, []byte(c.mountinfo), 0o600); err != nil {
			t.Fatal(err)
		}
		mount, root, err := cgroupMount(path)
		if mount != c.mount || root != c.root || (err == nil) != (c.mount != "") {
			t.Errorf("%s: %q, %q, %v", name, mount, root, err)
		}
	}
}

func TestCgroupsFor(t *testing.T) {
	if dir, err := cgroupsFor(noCgroup); dir != "" || err != nil {
		t.Errorf("none: %q, %v", dir, err)
	}
	if _, err := cgroupsFor(filepath.Join(t.TempDir(), "x")); err == nil || !strings.Contains(err.Error(), "not on a cgroup2 file system") {
		t.Errorf("a directory elsewhere: %v", err)
	}
	_, own, err := ownCgroup()
	if err != nil || unix.Access(own, unix.W_OK) != nil {
		t.Skipf("no cgroup can be made here (%v)", err)
	}
	// A cgroup that a service manager has delegated.
	dir := filepath.Join(own, fmt.Sprintf("fermata-test-%d", os.Getpid()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Skipf("no cgroup can be made here: %v", err)
	}
	defer os.Remove(dir)
	if delegated(dir) {
		t.Error("a fresh cgroup counts as delegated")
	}
	if err := unix.Setxattr(dir, "trusted.delegate", []byte("1"), 0); err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		t.Fatal(err)
	} else if err == nil && !delegated(dir) {
		t.Error("a delegated cgroup does not count as one")
	}
	below := filepath.Join(dir, "guests")
	if got, err := cgroupsFor(below); got != below || err != nil {
		t.Errorf("configured: %q, %v", got, err)
	}
	os.Remove(below)
}

func TestQEMUUser(t *testing.T) {
	if _, err := user.Lookup("nobody"); err == nil {
		if uid, _, err := qemuUser(""); err != nil || uid == 0 {
			t.Errorf("default: %d, %v", uid, err)
		}
	}
	if uid, gid, err := qemuUser("root"); uid != 0 || gid != 0 || err != nil {
		t.Errorf("root: %d, %d, %v", uid, gid, err)
	}
	if _, _, err := qemuUser("fermata-absent"); err == nil || !strings.Contains(err.Error(), "useradd --system") {
		t.Errorf("absent: %v, want how to make it", err)
	}
}
