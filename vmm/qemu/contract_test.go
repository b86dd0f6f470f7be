package qemu_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"fermata/protocol/mustrun"
	"fermata/vmm"
	"fermata/vmm/qemu"
	"fermata/vmm/vmmtest"
)

// machineType is the newest versioned type that every supported QEMU knows.
const machineType = "pc-q35-7.2"

func TestContract_TCG(t *testing.T) {
	mustrun.Need(t, mustrun.QEMU)
	vmmtest.Run(t, rig(t, qemu.TCG, qemu.SaveXen))
}

func TestContract_KVM(t *testing.T) {
	mustrun.Need(t, mustrun.QEMU, mustrun.KVM)
	vmmtest.Run(t, rig(t, qemu.KVM, qemu.SaveXen))
}

func TestContract_TCGMigrate(t *testing.T) {
	mustrun.Need(t, mustrun.QEMU)
	vmmtest.Run(t, rig(t, qemu.TCG, qemu.SaveMigrate))
}

func TestContract_KVMMigrate(t *testing.T) {
	mustrun.Need(t, mustrun.QEMU, mustrun.KVM)
	vmmtest.Run(t, rig(t, qemu.KVM, qemu.SaveMigrate))
}

func rig(t *testing.T, accel qemu.Accel, save qemu.SaveMethod) vmmtest.Rig {
	t.Helper()
	info, err := qemu.Probe(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	kernel := programFile(t)
	var confine qemu.Confinement
	if os.Geteuid() == 0 && accel == qemu.TCG { // KVM's device is the host's business
		confine = confined(t)
	}
	config := func(s vmmtest.Spec) qemu.Config {
		return qemu.Config{
			Name: s.Name, Accel: accel, Machine: machineType, CPU: "qemu64",
			MemoryBytes: vmmtest.ProgramMemory, VCPUs: 1, Kernel: kernel,
			NICs: []qemu.NIC{{Name: s.NIC, MAC: s.MAC, File: s.File, Keep: s.Keep}},
			Dir:  s.Dir, MemoryDir: s.MemoryDir, Incoming: s.Incoming, Save: save, Info: &info, Confine: confine,
		}
	}
	return vmmtest.Rig{
		MemoryDir: "/dev/shm",
		Launch: func(ctx context.Context, s vmmtest.Spec) (vmmtest.Guest, error) {
			m, err := qemu.Launch(ctx, config(s))
			if err != nil {
				return vmmtest.Guest{}, err
			}
			return guest(m), nil
		},
		LaunchBroken: func(ctx context.Context, s vmmtest.Spec) error {
			c := config(s)
			// QEMU itself finds this out, when RAM, sockets and process exist.
			c.CPU += ",fermata-absent=on"
			m, err := qemu.Launch(ctx, c)
			if err == nil {
				return errors.Join(errors.New("launched"), m.Kill(ctx))
			}
			return err
		},
		Crash: func(g vmmtest.Guest) error {
			return syscall.Kill(g.Machine.(vmm.Process).PID(), syscall.SIGKILL)
		},
	}
}

func guest(m *qemu.Machine) vmmtest.Guest {
	return vmmtest.Guest{
		Machine: m,
		Console: m.ConsolePath(),
		Reattach: func(ctx context.Context) (vmmtest.Guest, error) {
			again, err := qemu.Attach(ctx, m.State())
			if err != nil {
				return vmmtest.Guest{}, err
			}
			return guest(again), nil
		},
	}
}

func programFile(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(path, vmmtest.Program(), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}
