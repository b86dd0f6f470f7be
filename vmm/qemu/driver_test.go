package qemu_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fermata/protocol/mustrun"
	"fermata/vmm"
	"fermata/vmm/qemu"
	"fermata/vmm/qmp"
	"fermata/vmm/vmmtest"
)

// budget bounds every wait of these tests.
const budget = time.Minute

// smallConfig is a guest with the test program, under TCG, with no card.
func smallConfig(t *testing.T, name string) qemu.Config {
	t.Helper()
	mustrun.Need(t, mustrun.QEMU)
	memoryDir, err := os.MkdirTemp("/dev/shm", "qemu-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(memoryDir) })
	return qemu.Config{
		Name: name, Accel: qemu.TCG, Machine: machineType, CPU: "qemu64",
		MemoryBytes: vmmtest.ProgramMemory, VCPUs: 1, Kernel: programFile(t),
		Dir: filepath.Join(t.TempDir(), name), MemoryDir: memoryDir,
	}
}

func launch(t *testing.T, c qemu.Config) *qemu.Machine {
	t.Helper()
	start := time.Now()
	m, err := qemu.Launch(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("launched %s in %v", c.Name, time.Since(start))
	t.Cleanup(func() { end(t, m) })
	return m
}

func end(t *testing.T, m *qemu.Machine) {
	ctx, cancel := context.WithTimeout(context.Background(), budget)
	defer cancel()
	err := m.Kill(ctx)
	if errors.Is(err, vmm.ErrDetached) {
		err = nil
	}
	if err := errors.Join(err, m.Detach()); err != nil {
		t.Error(err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// load puts a state into a machine, and fails if it lacks anything.
func load(t *testing.T, m *qemu.Machine, state []byte) {
	t.Helper()
	loaded, err := m.LoadDevices(t.Context(), state)
	must(t, err)
	if len(loaded.Replaced)+len(loaded.Missing) > 0 {
		t.Errorf("the state lacks memory blocks: %+v", loaded)
	}
}

func wantStatus(t *testing.T, m *qemu.Machine, want vmm.Status) {
	t.Helper()
	got, err := m.Status(t.Context())
	if err != nil || got != want {
		t.Fatalf("guest is %s, %v, want %s", got, err, want)
	}
}

// awaitSteps waits until the program has gone past step n.
func awaitSteps(t *testing.T, m *qemu.Machine, n uint32) {
	t.Helper()
	deadline := time.After(budget)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		c, err := vmmtest.ReadCounter(m.Memory()[0])
		if err != nil {
			t.Fatal(err)
		}
		if c.Started && c.Count > n {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("the guest is at %+v, not past step %d", c, n)
		}
	}
}

func awaitExit(t *testing.T, m *qemu.Machine) {
	t.Helper()
	select {
	case <-m.Exited():
	case <-time.After(budget):
		t.Fatal("the end of the process was not noticed")
	}
}

// TestMachine_ManyDevices puts a guest with two vCPUs, 1 GiB, two cards and
// disks of every kind back. Under KVM it is cut while its firmware runs, which
// takes many seconds where KVM is nested; the contract suite goes further.
func TestMachine_ManyDevices(t *testing.T) {
	for _, accel := range []qemu.Accel{qemu.TCG, qemu.KVM} {
		t.Run(string(accel), func(t *testing.T) {
			if accel == qemu.KVM {
				mustrun.Need(t, mustrun.KVM)
			}
			c := bigConfig(t, "source", accel)
			m := launch(t, c)
			must(t, m.Continue(t.Context()))
			if accel == qemu.TCG {
				awaitSteps(t, m, 50)
			}
			must(t, m.Stop(t.Context()))
			start := time.Now()
			state, err := m.SaveDevices(t.Context())
			must(t, err)
			t.Logf("saved %d bytes in %v", len(state), time.Since(start))
			saved, err := m.Describe(t.Context())
			must(t, err)
			before, err := os.ReadFile(m.ConsolePath())
			must(t, err)

			d := bigConfig(t, "target", accel)
			d.Disks, d.Incoming = c.Disks, true
			back := launch(t, d)
			host, err := back.Describe(t.Context())
			must(t, err)
			must(t, saved.Compatible(host))
			copyRAM(t, back, m)
			must(t, m.Kill(t.Context()))
			start = time.Now()
			load(t, back, state)
			t.Logf("loaded in %v", time.Since(start))
			wantStatus(t, back, vmm.StatusPaused)
			must(t, back.Continue(t.Context()))
			wantStatus(t, back, vmm.StatusRunning)
			if accel == qemu.TCG {
				cut, err := vmmtest.CheckConsole(string(before), 1)
				must(t, err)
				awaitSteps(t, back, cut+50)
				after, err := os.ReadFile(back.ConsolePath())
				must(t, err)
				if last, err := vmmtest.CheckConsole(string(before)+string(after), 1); err != nil || last <= cut {
					t.Errorf("cut after step %d, went on to %d: %v", cut, last, err)
				}
			}
		})
	}
}

// copyRAM gives a machine the memory of another.
func copyRAM(t *testing.T, to, from *qemu.Machine) {
	t.Helper()
	must(t, exec.Command("cp", "--sparse=always", from.Memory()[0].Path, to.Memory()[0].Path).Run())
}

func bigConfig(t *testing.T, name string, accel qemu.Accel) qemu.Config {
	t.Helper()
	c := smallConfig(t, name)
	c.Accel, c.VCPUs, c.MemoryBytes = accel, 2, 1<<30
	for _, nic := range []qemu.NIC{{Name: "eth0", MAC: "02:00:00:00:00:01"}, {Name: "eth1", MAC: "02:00:00:00:00:02"}} {
		file, keep, err := vmmtest.SocketPair()
		must(t, err)
		t.Cleanup(func() { file.Close(); keep.Close() })
		nic.File, nic.Keep = file, keep
		c.NICs = append(c.NICs, nic)
	}
	c.Disks = []qemu.Disk{
		{Name: "data", Path: rawDisk(t, "data,1.img"), Format: qemu.Raw},
		{Name: "fixed", Path: rawDisk(t, "fixed.img"), Format: qemu.Raw, ReadOnly: true},
	}
	if _, err := exec.LookPath("qemu-img"); err == nil {
		path := filepath.Join(t.TempDir(), "root.qcow2")
		must(t, exec.Command("qemu-img", "create", "-q", "-f", "qcow2", path, "8M").Run())
		c.Disks = append(c.Disks, qemu.Disk{Name: "root", Path: path, Format: qemu.QCOW2})
	}
	return c
}

func rawDisk(t *testing.T, name string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	must(t, os.WriteFile(path, make([]byte, 1<<20), 0o600))
	return path
}

func TestLaunch_Refuses(t *testing.T) {
	for _, c := range []struct {
		name  string
		spoil func(*testing.T, *qemu.Config)
		want  error
		says  string
	}{
		{"unknown machine type", func(_ *testing.T, c *qemu.Config) { c.Machine = "pc-q35-99.0" }, vmm.ErrUnsupported, "pc-q35-99.0"},
		{"unknown cpu model", func(_ *testing.T, c *qemu.Config) { c.CPU = "i4004" }, vmm.ErrUnsupported, "i4004"},
		{"ordinary file system", func(t *testing.T, c *qemu.Config) { c.MemoryDir = ordinaryDir(t) }, vmm.ErrUnfitMemory, "tmpfs"},
		{"too much memory", func(_ *testing.T, c *qemu.Config) { c.MemoryBytes = 1 << 50 }, vmm.ErrNoSpace, "wanted"},
		{"no kernel", func(_ *testing.T, c *qemu.Config) { c.Kernel += ".absent" }, os.ErrNotExist, "absent"},
		{"no binary", func(_ *testing.T, c *qemu.Config) { c.Binary = "/absent/qemu" }, os.ErrNotExist, "/absent/qemu"},
		{"no socket", func(_ *testing.T, c *qemu.Config) {
			c.NICs = []qemu.NIC{{Name: "eth0", MAC: "02:00:00:00:00:01"}}
		}, nil, "keep: missing"},
		{"bad cpu feature", func(_ *testing.T, c *qemu.Config) { c.CPU += ",nonsense=on" }, vmm.ErrGone, "nonsense"},
	} {
		t.Run(c.name, func(t *testing.T) {
			config := smallConfig(t, "refused")
			c.spoil(t, &config)
			m, err := qemu.Launch(t.Context(), config)
			if err == nil {
				end(t, m)
				t.Fatal("launched")
			}
			if (c.want != nil && !errors.Is(err, c.want)) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("error %v, want %v and %q", err, c.want, c.says)
			}
			if _, err := os.Stat(config.Dir); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("directory after a refused launch: %v", err)
			}
			left, err := os.ReadDir(config.MemoryDir)
			must(t, err)
			if len(left) > 0 {
				t.Errorf("left in the memory directory: %v", left)
			}
		})
	}
}

// ordinaryDir is a directory that is not on tmpfs.
func ordinaryDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	var fs unix.Statfs_t
	must(t, unix.Statfs(dir, &fs))
	if fs.Type == unix.TMPFS_MAGIC {
		t.Skip("the temporary directory is on tmpfs")
	}
	return dir
}

// TestLaunch_CancelLeavesNothing gives a launch up while QEMU starts.
func TestLaunch_CancelLeavesNothing(t *testing.T) {
	c := smallConfig(t, "cancelled")
	info, err := qemu.Probe(t.Context(), "")
	must(t, err)
	c.Info = &info
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Millisecond)
	defer cancel()
	m, err := qemu.Launch(ctx, c)
	if err == nil {
		end(t, m)
		t.Skip("QEMU was faster")
	}
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v, want the deadline", err)
	}
	if _, err := os.Stat(c.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("directory after a cancelled launch: %v", err)
	}
}

// TestMachine_Guard: a second process may drive the guest while the first is
// connected, and the first notices that QEMU ended by itself.
func TestMachine_Guard(t *testing.T) {
	m := launch(t, smallConfig(t, "guarded"))
	must(t, m.Continue(t.Context()))
	guard, err := qmp.Dial(t.Context(), m.State().GuardPath)
	must(t, err)
	defer guard.Close()
	s, err := guard.QueryStatus(t.Context())
	if err != nil || !s.Running {
		t.Fatalf("guard sees %+v, %v", s, err)
	}
	must(t, guard.Stop(t.Context()))
	wantStatus(t, m, vmm.StatusPaused)
	must(t, m.Continue(t.Context()))
	if m.ExitReason() != "" {
		t.Errorf("exit reason %q of a running guest", m.ExitReason())
	}
	guard.Execute(t.Context(), "quit", nil, nil) // it may end before it answers
	awaitExit(t, m)
	if got, want := m.ExitReason(), "its QEMU was told to quit through the monitor"; got != want {
		t.Errorf("exit reason %q, want %q", got, want)
	}
	if _, err := m.SaveDevices(t.Context()); !errors.Is(err, vmm.ErrGone) {
		t.Errorf("save a guest that ended: %v, want ErrGone", err)
	}
}

// TestMachine_ExitReason says why a guest has ended, by whatever is known.
func TestMachine_ExitReason(t *testing.T) {
	for _, tc := range []struct {
		signal syscall.Signal
		want   string
	}{
		{syscall.SIGTERM, "its QEMU was ended by a signal"},
		{syscall.SIGKILL, "its QEMU ended: killed by SIGKILL"},
	} {
		m := launch(t, smallConfig(t, "signalled"))
		must(t, m.Continue(t.Context()))
		must(t, syscall.Kill(m.PID(), tc.signal))
		awaitExit(t, m)
		if got := m.ExitReason(); got != tc.want {
			t.Errorf("after %s: exit reason %q, want %q", unix.SignalName(tc.signal), got, tc.want)
		}
	}
}

// TestMachine_HungMonitor: a QEMU that does not answer costs its caller no
// more than the deadline, works again when it comes back, and can be killed.
func TestMachine_HungMonitor(t *testing.T) {
	m := launch(t, smallConfig(t, "hung"))
	must(t, m.Continue(t.Context()))
	must(t, syscall.Kill(m.PID(), syscall.SIGSTOP))
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if err := m.Stop(ctx); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, qmp.ErrUnanswered) {
		t.Fatalf("error %v, want the deadline and that there was no answer", err)
	}
	must(t, syscall.Kill(m.PID(), syscall.SIGCONT))
	must(t, m.Stop(t.Context()))
	wantStatus(t, m, vmm.StatusPaused)
	must(t, syscall.Kill(m.PID(), syscall.SIGSTOP))
	must(t, m.Kill(t.Context()))
	wantStatus(t, m, vmm.StatusDead)
}

// TestMachine_LoadRefused: a state that does not fit the machine is an error
// with QEMU's own words, and leaves a machine that can be killed.
func TestMachine_LoadRefused(t *testing.T) {
	with := smallConfig(t, "source")
	with.Disks = []qemu.Disk{{Name: "d", Path: rawDisk(t, "d.img"), Format: qemu.Raw}}
	source := launch(t, with)
	state, err := source.SaveDevices(t.Context())
	must(t, err)

	without := smallConfig(t, "target")
	without.Incoming = true
	target := launch(t, without)
	copyRAM(t, target, source)
	if _, err := target.LoadDevices(t.Context(), state); err == nil || !strings.Contains(err.Error(), "virtio-blk") {
		t.Errorf("error %v, want QEMU's words on the disk", err)
	}
	must(t, target.Kill(t.Context()))
	wantStatus(t, target, vmm.StatusDead)
}

func TestAttach_Refuses(t *testing.T) {
	m := launch(t, smallConfig(t, "attached"))
	var s qemu.State
	b, err := json.Marshal(m.State())
	must(t, err)
	must(t, json.Unmarshal(b, &s))
	if !reflect.DeepEqual(s, m.State()) {
		t.Errorf("read back %+v, want %+v", s, m.State())
	}
	onDisk, err := qemu.ReadState(s.Config.Dir)
	if err != nil || !reflect.DeepEqual(onDisk, s) {
		t.Errorf("state in the directory: %+v, %v", onDisk, err)
	}
	if sid, err := unix.Getsid(s.PID); err != nil || sid != s.PID {
		t.Errorf("session %d, %v: it would end with its parent's", sid, err)
	}
	for _, c := range []struct {
		name  string
		spoil func(*qemu.State)
		want  error
	}{
		{"number of another process", func(s *qemu.State) { s.PID = os.Getpid() }, vmm.ErrGone},
		{"earlier process of that number", func(s *qemu.State) { s.Started-- }, vmm.ErrGone},
		{"no such process", func(s *qemu.State) { s.PID = 1 << 22 }, vmm.ErrGone},
		{"earlier boot", func(s *qemu.State) { s.BootID = "x" }, vmm.ErrGone},
		{"later version", func(s *qemu.State) { s.Version++ }, vmm.ErrUnsupported},
	} {
		wrong := s
		c.spoil(&wrong)
		if _, err := qemu.Attach(t.Context(), wrong); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	if err := s.Clean(); err == nil {
		t.Error("cleaned up after a process that lives")
	}
	wantStatus(t, m, vmm.StatusPaused)
}

// TestLaunch_SameDir: a directory is not given to a second machine while its
// first one lives, and is taken over, with nothing left, when that has died.
func TestLaunch_SameDir(t *testing.T) {
	c := smallConfig(t, "again")
	first := launch(t, c)
	if m, err := qemu.Launch(t.Context(), c); err == nil {
		end(t, m)
		t.Fatal("launched into the directory of a machine that lives")
	}
	wantStatus(t, first, vmm.StatusPaused)
	must(t, syscall.Kill(first.PID(), syscall.SIGKILL))
	awaitExit(t, first)
	second := launch(t, c)
	must(t, first.Kill(t.Context())) // must not touch the second's files
	must(t, first.State().Clean())
	must(t, second.Continue(t.Context()))
	awaitSteps(t, second, 0)
}

// TestMachine_KillWithoutDir: guest memory is given back even when somebody has
// removed the machine's directory under it.
func TestMachine_KillWithoutDir(t *testing.T) {
	m := launch(t, smallConfig(t, "bare"))
	must(t, os.RemoveAll(m.State().Config.Dir))
	must(t, m.Kill(t.Context()))
	if _, err := os.Stat(m.Memory()[0].Path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("memory file: %v, want it gone", err)
	}
}

// TestEndStrays finds a machine of which only the process is known.
func TestEndStrays(t *testing.T) {
	c := smallConfig(t, "stray")
	other := launch(t, smallConfig(t, "other"))
	m := launch(t, c)
	if n, err := qemu.EndStrays(t.Context(), c.MemoryDir); n != 1 || err != nil {
		t.Fatalf("ended %d, %v; want 1", n, err)
	}
	wantStatus(t, m, vmm.StatusDead)
	wantStatus(t, other, vmm.StatusPaused)
	if n, err := qemu.EndStrays(t.Context(), c.MemoryDir); n != 0 || err != nil {
		t.Errorf("again: ended %d, %v; want 0", n, err)
	}
}

// The sockets of a guest with the longest names have paths longer than a socket
// address, and its directory may hold any character.
func TestLaunch_LongPathsAndOddCharacters(t *testing.T) {
	c := smallConfig(t, strings.Repeat("g", 63))
	c.GuestAgent, c.ToolPort = true, "fermata.tool"
	c.Dir = filepath.Join(t.TempDir(), "a,b%20c#d?e "+strings.Repeat("d", 100), c.Name)
	must(t, os.Mkdir(filepath.Dir(c.Dir), 0o700))
	m := launch(t, c)
	must(t, m.Continue(t.Context()))
	conn, err := m.DialTool(t.Context())
	must(t, err)
	must(t, conn.Close())
	// Nobody in this guest answers, but its port is there.
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := m.StepClock(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("step the clock of a guest without an agent: %v, want no answer in time", err)
	}
	must(t, m.Kill(t.Context()))
	must(t, m.State().Clean())
	left, err := filepath.Glob(filepath.Join(filepath.Dir(c.Dir), "*", "*.sock"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
