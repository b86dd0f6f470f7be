package qemu

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"fermata/protocol/mustrun"
	"fermata/vmm"
)

// TestMachine_DialsAgain: a broken connection costs the call that saw it, at
// most; the machine is not lost with it.
func TestMachine_DialsAgain(t *testing.T) {
	mustrun.Need(t, mustrun.QEMU)
	memoryDir, err := os.MkdirTemp("/dev/shm", "qemu-test-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(memoryDir)
	m, err := Launch(t.Context(), Config{
		Name: "redialled", Accel: TCG, Machine: "pc-q35-7.2", CPU: "qemu64", MemoryBytes: minMemory, VCPUs: 1,
		Dir: filepath.Join(t.TempDir(), "m"), MemoryDir: memoryDir,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(m.Kill(context.WithoutCancel(t.Context())), m.Detach()); err != nil {
			t.Error(err)
		}
	}()
	mon, err := m.connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	mon.Close()
	if s, err := m.Status(t.Context()); err != nil || s != vmm.StatusPaused {
		t.Errorf("guest is %s, %v after the connection broke", s, err)
	}
}

func TestMachine_CheckSize(t *testing.T) {
	m := &Machine{state: State{Config: Config{MemoryBytes: 64 * mib}}}
	for size, want := range map[int64]error{0: vmm.ErrStateSize, 1: nil, 8 * mib: nil, 8*mib + 1: vmm.ErrStateSize, 64 * mib: vmm.ErrStateSize} {
		if err := m.checkSize(size); !errors.Is(err, want) {
			t.Errorf("%d bytes of state: %v, want %v", size, err, want)
		}
	}
}

func TestLastWords(t *testing.T) {
	const log = "one\nq: warning: two\nthree\n\nfour\nq: warning: five\nsix\n"
	if got := lastWords([]byte(log)); got != "three; four; six" {
		t.Errorf("last words %q", got)
	}
	if got := lastWords(nil); got != "" {
		t.Errorf("last words %q of an empty log", got)
	}
}
