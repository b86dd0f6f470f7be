package qemu_test

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"fermata/protocol/mustrun"
	"fermata/vmm"
	"fermata/vmm/qemu"
	"fermata/vmm/uffd"
)

// nobody is a user who owns nothing.
const nobody = 65534

// confined is what an agent asks for, as far as this host can do it.
func confined(t *testing.T) qemu.Confinement {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can start a process as another user")
	}
	return qemu.Confinement{UID: nobody, GID: nobody, Sandbox: true}
}

// cgroup returns a directory for a cgroup below this test's own, or skips.
func cgroup(t *testing.T) string {
	t.Helper()
	mounts, err := os.Open("/proc/self/mountinfo")
	must(t, err)
	defer mounts.Close()
	for lines := bufio.NewScanner(mounts); lines.Scan(); {
		if before, after, ok := strings.Cut(lines.Text(), " - "); ok && strings.HasPrefix(after, "cgroup2 ") {
			dir := filepath.Join(strings.Fields(before)[4], fmt.Sprintf("fermata-test-%d", os.Getpid()))
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Skipf("no cgroup can be made: %v", err)
			}
			t.Cleanup(func() { must(t, os.Remove(dir)) })
			return filepath.Join(dir, "guest")
		}
	}
	t.Skip("no cgroup2 file system")
	return ""
}

// TestLaunch_Confined: a QEMU that has given up everything still does all that we ask
// of it: it reads its files, is stopped and saved, and its memory is tracked.
func TestLaunch_Confined(t *testing.T) {
	mustrun.Need(t, mustrun.UFFD)
	c := smallConfig(t, "confined")
	c.Confine = confined(t)
	c.Confine.Cgroup = cgroup(t)
	c.Disks = []qemu.Disk{
		{Name: "own", Path: overlayOf(t, rawDisk(t, "base.img")), Format: qemu.QCOW2, Backing: &qemu.Image{Path: rawDisk(t, "base.img"), Format: qemu.Raw}},
		{Name: "fixed", Path: rawDisk(t, "fixed.img"), Format: qemu.Raw, ReadOnly: true},
	}
	c.GuestAgent = true
	m := launch(t, c)
	status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(m.PID()), "status"))
	must(t, err)
	for _, want := range []string{"Uid:\t65534\t65534\t65534\t65534\n", "Gid:\t65534\t65534\t65534\t65534\n", "Seccomp:\t2\n", "NoNewPrivs:\t1\n", "CapBnd:", "CapEff:\t0000000000000000\n"} {
		if !strings.Contains(string(status), want) {
			t.Errorf("status of QEMU lacks %q:\n%s", want, status)
		}
	}
	in, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(m.PID()), "cgroup"))
	must(t, err)
	if want := strings.TrimPrefix(c.Confine.Cgroup, filepath.Dir(filepath.Dir(c.Confine.Cgroup))); !strings.Contains(string(in), want+"\n") {
		t.Errorf("QEMU is in the cgroups\n%swant %s", in, want)
	}
	must(t, m.Continue(t.Context()))
	fd, err := uffd.Take(t.Context(), uffd.Process{PID: m.PID(), Lend: m.Lend})
	must(t, err)
	must(t, fd.Close())
	must(t, m.Stop(t.Context()))
	if _, err := m.SaveDevices(t.Context()); err != nil {
		t.Error(err)
	}
	must(t, m.Continue(t.Context()))
	wantStatus(t, m, vmm.StatusRunning)
	must(t, m.Detach())
	again, err := qemu.Attach(t.Context(), m.State())
	must(t, err)
	must(t, again.Kill(t.Context()))
	if _, err := os.Stat(c.Confine.Cgroup); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the cgroup outlives its QEMU: %v", err)
	}
}

// TestLaunch_ConfinedFails: nothing is left of a launch that fails.
func TestLaunch_ConfinedFails(t *testing.T) {
	c := smallConfig(t, "fails")
	c.Confine = confined(t)
	c.Confine.Cgroup = cgroup(t)
	c.CPU += ",fermata-absent=on"
	m, err := qemu.Launch(t.Context(), c)
	if err == nil {
		t.Fatal("launched", m.Kill(t.Context()))
	}
	if _, err := os.Stat(c.Confine.Cgroup); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("the cgroup is left: %v", err)
	}
}

// TestLaunch_OutlivesTheCgroupOfItsCaller has the cgroup of the process that launched a
// QEMU killed whole, as a service manager does that ends a service.
func TestLaunch_OutlivesTheCgroupOfItsCaller(t *testing.T) {
	c := smallConfig(t, "outlives")
	c.Confine = confined(t)
	service := cgroup(t)
	c.Confine.Cgroup = filepath.Join(filepath.Dir(service), "guest")
	service = filepath.Join(filepath.Dir(service), "service")
	must(t, os.Mkdir(service, 0o755))
	t.Cleanup(func() { must(t, os.Remove(service)) })
	config, err := json.Marshal(c)
	must(t, err)
	dir, err := os.Open(service)
	must(t, err)
	defer dir.Close()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "FERMATA_QEMU_LAUNCH="+string(config))
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd()), Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	var state qemu.State
	decodeErr := json.NewDecoder(out).Decode(&state)
	killErr := os.WriteFile(filepath.Join(service, "cgroup.kill"), []byte("1"), 0) // Linux 5.14
	waitErr := cmd.Wait()
	must(t, errors.Join(decodeErr, killErr))
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGKILL {
		t.Errorf("the launching process ended otherwise: %v", waitErr)
	}
	m, err := qemu.Attach(t.Context(), state)
	must(t, err)
	wantStatus(t, m, vmm.StatusPaused)
	must(t, m.Kill(t.Context()))
}
