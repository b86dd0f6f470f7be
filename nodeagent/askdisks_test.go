package nodeagent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"fermata/imageio/vfs/faultfs"
	"fermata/protocol/fault"
	"fermata/protocol/mustrun"
	"fermata/vmm"
	"fermata/vmm/qemu"
	"fermata/vmm/qmp"
	"fermata/vmm/vmmtest"
)

// TestRounds_DiskThatDoesNotAnswerRefusesTheCut: no guest is stopped that would wait for
// its disk, neither when the round is prepared nor at the cut.
func TestRounds_DiskThatDoesNotAnswerRefusesTheCut(t *testing.T) {
	b := newBench(t, 2)
	var asked, stopped atomic.Int32
	b.machines[0].onStop = func(context.Context) error {
		stopped.Add(1)
		return nil
	}
	b.machines[0].onFlush = func(ctx context.Context) error {
		if asked.Add(1) == 1 {
			return nil // in prepare
		}
		<-ctx.Done()
		return errors.Join(vmm.ErrDisk, context.Cause(ctx))
	}
	begun := time.Now()
	if err := b.cut(2, 300*time.Millisecond); fault.ClassOf(err) != fault.Aborted || !strings.Contains(err.Error(), "guest g1") {
		t.Errorf("cut: %v (%s), want class aborted, and the guest's name", err, fault.ClassOf(err))
	}
	if took := time.Since(begun); took > stepBudget/2 {
		t.Errorf("the refusal took %s", took)
	}
	if stopped.Load() > 0 {
		t.Error("the guest was stopped")
	}
	b.allRun()
	b.finish(2, false)
	b.machines[0].onFlush = nil
	b.checkpoint(3)
}

// diskMachine is a QEMU with a disk on a file system that fails on demand. It has not run
// yet: firmware would switch off the disk's cache, and leave nothing to flush.
func diskMachine(t *testing.T, change func(*qemu.Config)) (*qemu.Machine, *faultfs.FS) {
	t.Helper()
	mustrun.Need(t, mustrun.QEMU, mustrun.FUSE)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	fs, dir := faultfs.Temp(t)
	disk, kernel := filepath.Join(dir, "disk"), filepath.Join(t.TempDir(), "program")
	must(os.WriteFile(disk, nil, 0o600))
	must(os.Truncate(disk, 1<<20)) // written, it could be read from the page cache
	must(os.WriteFile(kernel, vmmtest.Program(), 0o600))
	memory, err := os.MkdirTemp("/dev/shm", "disks-test-")
	must(err)
	t.Cleanup(func() { os.RemoveAll(memory) })
	c := qemu.Config{
		Name: "g", Accel: qemu.TCG, Machine: "pc-q35-7.2", CPU: "qemu64",
		MemoryBytes: vmmtest.ProgramMemory, VCPUs: 1, Kernel: kernel,
		Dir: filepath.Join(t.TempDir(), "g"), MemoryDir: memory,
		Disks: []qemu.Disk{{Name: "data", Path: disk, Format: qemu.Raw}},
	}
	if change != nil {
		change(&c)
	}
	m, err := qemu.Launch(t.Context(), c)
	must(err)
	t.Cleanup(func() {
		fs.Rule(nil)
		if err := m.Kill(context.Background()); err != nil && !errors.Is(err, vmm.ErrDetached) {
			t.Error(err)
		}
		if err := m.Detach(); err != nil {
			t.Error(err)
		}
	})
	return m, fs
}

// writeDisk has the machine's disk written to as the guest would.
func writeDisk(t *testing.T, m *qemu.Machine, fs *faultfs.FS) {
	t.Helper()
	mon, err := qmp.Dial(t.Context(), m.State().GuardPath)
	if err != nil {
		t.Fatal(err)
	}
	defer mon.Close()
	was := fs.Ops(faultfs.Write)
	err = mon.Execute(t.Context(), "human-monitor-command", map[string]string{
		"command-line": `qemu-io -d /machine/peripheral/disk-data/virtio-backend "write 0 64k"`,
	}, nil)
	if err != nil || fs.Ops(faultfs.Write) == was {
		t.Fatalf("the disk was not written to: %v", err)
	}
}

// TestFlushDisks_DiskThatHangs asks a disk whose flush hangs. The monitor goes on answering
// meanwhile.
func TestFlushDisks_DiskThatHangs(t *testing.T) {
	m, fs := diskMachine(t, func(c *qemu.Config) { c.Confine = qemu.Confinement{Sandbox: true} })
	if err := m.FlushDisks(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := m.ReadySave(t.Context()); err != nil {
		t.Fatal(err)
	}
	writeDisk(t, m, fs)
	back := make(chan struct{})
	fs.Rule(func(op faultfs.Op, _ string) faultfs.Fault {
		if op == faultfs.Fsync {
			return faultfs.Fault{Wait: back}
		}
		return faultfs.Fault{}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	err := m.FlushDisks(ctx)
	if !errors.Is(err, vmm.ErrDisk) || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "disk data") {
		t.Errorf("flush: %v, want ErrDisk, the deadline, and the disk's name", err)
	}
	soon, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if s, err := m.Status(soon); s != vmm.StatusPaused || err != nil {
		t.Errorf("guest is %s, %v", s, err)
	}
	close(back)
	if err := m.FlushDisks(t.Context()); err != nil {
		t.Errorf("flush of a disk that has come back: %v", err)
	}
	if err := m.Stop(t.Context()); err != nil {
		t.Errorf("stop: %v", err)
	}
	// A later agent finds what QEMU serves.
	if err := m.Detach(); err != nil {
		t.Fatal(err)
	}
	again, err := qemu.Attach(t.Context(), m.State())
	if err != nil {
		t.Fatal(err)
	}
	if err := again.FlushDisks(t.Context()); err != nil {
		t.Errorf("flush by another handle: %v", err)
	}
	if err := errors.Join(again.Kill(t.Context()), again.Detach()); err != nil {
		t.Error(err)
	}
}

// TestStop_FlushThatFails: QEMU obeys a stop whose flush has failed as if nothing were.
func TestStop_FlushThatFails(t *testing.T) {
	m, fs := diskMachine(t, nil)
	if err := m.FlushDisks(t.Context()); err != nil {
		t.Fatal(err)
	}
	writeDisk(t, m, fs)
	fs.Rule(func(op faultfs.Op, _ string) faultfs.Fault {
		if op == faultfs.Fsync {
			return faultfs.Fault{Errno: syscall.EIO}
		}
		return faultfs.Fault{}
	})
	if err := m.Stop(t.Context()); !errors.Is(err, vmm.ErrDisk) || !errors.Is(err, syscall.EIO) {
		t.Errorf("stop: %v, want ErrDisk and EIO", err)
	}
}

// TestFlushDisks_BesideAMigration: what is asked stays out of the way of a save that
// switches the disks off.
func TestFlushDisks_BesideAMigration(t *testing.T) {
	m, _ := diskMachine(t, func(c *qemu.Config) { c.Save = qemu.SaveMigrate })
	for range 2 {
		if err := m.Continue(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := m.FlushDisks(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := m.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := m.SaveDevices(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := m.Stop(t.Context()); err != nil {
			t.Fatalf("stop again: %v", err)
		}
	}
}

// TestFlushDisks_RequestThatHangs: a disk that is only read has nothing to flush, and a
// stop waits for its requests all the same.
func TestFlushDisks_RequestThatHangs(t *testing.T) {
	mustrun.Need(t, mustrun.GuestImage)
	image, err := mustrun.GuestDir()
	if err != nil {
		t.Fatal(err)
	}
	m, fs := diskMachine(t, func(c *qemu.Config) {
		c.Kernel, c.Initrd = filepath.Join(image, "vmlinuz"), filepath.Join(image, "initrd.img")
		c.Cmdline, c.MemoryBytes = "console=ttyS0 fermata.role=idle", 128<<20
		c.Disks[0].ReadOnly = true
	})
	back := make(chan struct{})
	var hangs atomic.Bool
	fs.Rule(func(op faultfs.Op, _ string) faultfs.Fault { // Linux looks for partitions
		if op == faultfs.Read {
			hangs.Store(true)
			return faultfs.Fault{Wait: back}
		}
		return faultfs.Fault{}
	})
	if err := m.Continue(t.Context()); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); !hangs.Load(); time.Sleep(10 * time.Millisecond) { // polls, with a deadline
		if time.Now().After(deadline) {
			t.Fatal("the guest reads nothing")
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := m.FlushDisks(ctx); !errors.Is(err, vmm.ErrDisk) || !strings.Contains(err.Error(), "disk data") {
		t.Errorf("flush: %v, want ErrDisk and the disk's name", err)
	}
	close(back)
	if err := m.FlushDisks(t.Context()); err != nil {
		t.Errorf("flush of a disk that has come back: %v", err)
	}
}
