package qemu_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fermata/protocol/mustrun"
	"fermata/vmm"
	"fermata/vmm/qemu"
	"fermata/vmm/qmp"
	"fermata/vmm/vmmtest"
)

// linuxMemory is enough for the guest image, and for OVMF.
const linuxMemory = 160 << 20

const linuxCmdline = "console=ttyS0 fermata.role=idle fermata.tick=200"

func linuxImage(t *testing.T) (kernel, initrd string) {
	t.Helper()
	mustrun.Need(t, mustrun.QEMU, mustrun.GuestImage)
	dir, err := mustrun.GuestDir()
	must(t, err)
	return filepath.Join(dir, "vmlinuz"), filepath.Join(dir, "initrd.img")
}

// linuxGuest is a guest of ours with a card, and our end of its wire.
type linuxGuest struct {
	*qemu.Machine
	wire *os.File
}

func launchLinux(t *testing.T, name, machine string, incoming bool) linuxGuest {
	t.Helper()
	c := smallConfig(t, name)
	c.Machine, c.MemoryBytes, c.Incoming = machine, linuxMemory, incoming
	c.Kernel, c.Initrd = linuxImage(t)
	c.Cmdline = linuxCmdline
	file, keep, err := vmmtest.SocketPair()
	must(t, err)
	t.Cleanup(func() { keep.Close() })
	c.NICs = []qemu.NIC{{Name: "eth0", MAC: "02:00:00:00:00:01", File: file, Keep: keep}}
	m := launch(t, c)
	must(t, file.Close())
	return linuxGuest{m, keep}
}

// awaitLines waits until a console has so many lines with a word.
func awaitLines(t *testing.T, m *qemu.Machine, console, word string, n int) {
	t.Helper()
	for deadline := time.Now().Add(budget); ; time.Sleep(20 * time.Millisecond) { // polls, with a deadline
		b, err := os.ReadFile(console)
		must(t, err)
		if bytes.Count(b, []byte(word)) >= n {
			return
		}
		select {
		case <-m.Exited():
			t.Fatalf("QEMU has ended: %s", m.ExitReason())
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("the console has %d of %d lines with %q; its end: %q", bytes.Count(b, []byte(word)), n, word, b[max(0, len(b)-500):])
		}
	}
}

// sameBlocks compares all memory of two machines that stand still.
func sameBlocks(t *testing.T, saved, restored *qemu.Machine) {
	t.Helper()
	want, err := saved.ReadBlocks(t.Context())
	must(t, err)
	got, err := restored.ReadBlocks(t.Context())
	must(t, err)
	t.Logf("memory blocks: %v", slices.Sorted(maps.Keys(want)))
	for name, data := range want {
		if !bytes.Equal(got[name], data) {
			t.Errorf("memory block %s of %d bytes differs after the restore (%d bytes there)", name, len(data), len(got[name]))
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d memory blocks, %d after the restore", len(want), len(got))
	}
}

// reset presses the reset button.
func reset(t *testing.T, socket string) {
	t.Helper()
	mon, err := qmp.Dial(t.Context(), socket)
	must(t, err)
	must(t, errors.Join(mon.Execute(t.Context(), "system_reset", nil, nil), mon.Close()))
}

// announcements reads what has come from a card and returns the frames in which it, or
// QEMU for it, makes itself known: RARP, and ARP of a guest that asks for itself.
func announcements(t *testing.T, wire *os.File) (found []string) {
	t.Helper()
	buf := make([]byte, 64<<10)
	for {
		n, err := unix.Read(int(wire.Fd()), buf)
		if errors.Is(err, unix.EAGAIN) {
			return found
		}
		must(t, err)
		f := buf[:n]
		if n < 42 {
			continue
		}
		rarp := f[12] == 0x80 && f[13] == 0x35
		arp := f[12] == 0x08 && f[13] == 0x06
		if rarp || arp && net.IP(f[28:32]).Equal(net.IP(f[38:42])) {
			found = append(found, fmt.Sprintf("%x", f[:42]))
		}
	}
}

// TestRestoredGuest_Reboots: a guest that was restored has all the memory of the one
// that was saved, sends no frame of its own accord, and reboots.
func TestRestoredGuest_Reboots(t *testing.T) {
	for _, tc := range []struct {
		name, machine string
		version1      bool
	}{
		{"q35", machineType, false},
		{"i440fx", "pc-i440fx-7.2", false},
		{"state_without_firmware", machineType, true},
	} {
		t.Run(tc.name, func(t *testing.T) { rebootRestored(t, tc.machine, tc.version1) })
	}
}

func rebootRestored(t *testing.T, machine string, version1 bool) {
	m := launchLinux(t, "source", machine, false)
	must(t, m.Continue(t.Context()))
	awaitLines(t, m.Machine, m.ConsolePath(), " TICK ", 3)
	must(t, m.Stop(t.Context()))
	state, err := m.SaveDevices(t.Context())
	must(t, err)

	back := launchLinux(t, "target", machine, true)
	copyRAM(t, back.Machine, m.Machine)
	if version1 {
		state, err = qemu.Version1(state)
		must(t, err)
	}
	loaded, err := back.LoadDevices(t.Context(), state)
	must(t, err)
	if version1 {
		if len(loaded.Missing) > 0 || len(loaded.Replaced) != 1 || !strings.HasPrefix(loaded.Replaced[0], "pc.bios by /") {
			t.Errorf("loaded %+v, want the firmware replaced", loaded)
		}
	} else {
		sameBlocks(t, m.Machine, back.Machine)
	}
	must(t, m.Kill(t.Context()))
	must(t, back.Continue(t.Context()))
	awaitLines(t, back.Machine, back.ConsolePath(), " TICK ", 5)
	if found := announcements(t, back.wire); len(found) > 0 {
		t.Errorf("frames of an announcement after the restore: %v", found)
	}
	reset(t, back.State().GuardPath)
	awaitLines(t, back.Machine, back.ConsolePath(), " READY ", 1)
	awaitLines(t, back.Machine, back.ConsolePath(), " TICK ", 7)
}

// TestRestoredForeign_Reboots does the same with guests that somebody else started:
// with the default devices of a PC, a VGA card and ROMs of cards among them, and
// with UEFI firmware in flash.
func TestRestoredForeign_Reboots(t *testing.T) {
	kernel, initrd := linuxImage(t)
	linux := []string{"-m", fmt.Sprint(linuxMemory >> 20), "-kernel", kernel, "-initrd", initrd, "-append", linuxCmdline,
		"-netdev", "hubport,id=n,hubid=0", "-device", "virtio-net-pci,netdev=n"}
	ovmf := func(t *testing.T) []string {
		mustrun.Need(t, mustrun.OVMF)
		vars := filepath.Join(t.TempDir(), "vars.fd")
		b, err := os.ReadFile(mustrun.OVMFVars)
		must(t, err)
		must(t, os.WriteFile(vars, b, 0o600))
		return []string{"-drive", "if=pflash,unit=0,format=raw,read-only=on,file=" + mustrun.OVMFCode, "-drive", "if=pflash,unit=1,format=raw,file=" + vars}
	}
	for name, args := range map[string]func(*testing.T) []string{
		"q35_default_devices":    func(*testing.T) []string { return []string{"-machine", machineType, "-device", "e1000"} },
		"i440fx_default_devices": func(*testing.T) []string { return []string{"-machine", "pc-i440fx-7.2", "-device", "virtio-net-pci"} },
		"q35_uefi":               func(t *testing.T) []string { return append(ovmf(t), "-machine", machineType, "-vga", "none") },
		"i440fx_uefi_with_vga":   func(t *testing.T) []string { return append(ovmf(t), "-machine", "pc-i440fx-7.2") },
	} {
		t.Run(name, func(t *testing.T) {
			first := startForeign(t, "tcg", append(linux, args(t)...)...)
			m := adopt(t, first, "first")
			awaitLines(t, m, first.console, " TICK ", 3)
			must(t, m.Stop(t.Context()))
			state, err := m.SaveDevices(t.Context())
			must(t, err)

			button := filepath.Join(t.TempDir(), "owner")
			second := startForeign(t, "tcg", append(append(linux, args(t)...), "-S", "-incoming", "defer", "-qmp", "unix:"+button+",server=on,wait=off")...)
			r := adopt(t, second, "second")
			wantStatus(t, r, vmm.StatusIncoming)
			writeMemory(t, r, readMemory(t, m))
			load(t, r, state)
			sameBlocks(t, m, r)
			must(t, first.Process.Kill())
			must(t, r.Continue(t.Context()))
			awaitLines(t, r, second.console, " TICK ", 3)
			reset(t, button)
			awaitLines(t, r, second.console, " READY ", 1)
			awaitLines(t, r, second.console, " TICK ", 5)
		})
	}
}
