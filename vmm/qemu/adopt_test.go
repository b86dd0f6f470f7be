package qemu_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
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

// foreign is a QEMU that nobody of us started.
type foreign struct {
	*exec.Cmd
	socket, console string
}

// startForeign starts QEMU as a job script would: with its default devices.
func startForeign(t *testing.T, accel string, extra ...string) *foreign {
	t.Helper()
	dir := t.TempDir()
	f := &foreign{socket: filepath.Join(dir, "qmp"), console: filepath.Join(dir, "console")}
	args := []string{
		"-display", "none", "-accel", accel, "-cpu", "qemu64", "-m", fmt.Sprint(vmmtest.ProgramMemory >> 20),
		"-kernel", programFile(t), "-serial", "file:" + f.console, "-qmp", "unix:" + f.socket + ",server=on,wait=off",
	}
	f.Cmd = exec.Command("qemu-system-x86_64", append(args, extra...)...)
	f.Stderr = os.Stderr
	must(t, f.Start())
	t.Cleanup(func() {
		_ = f.Process.Kill()
		_ = f.Wait()
	})
	for deadline := time.Now().Add(budget); ; time.Sleep(10 * time.Millisecond) { // polls, with a deadline
		listens, err := vmmtest.Listens(f.socket)
		must(t, err)
		if listens {
			return f
		}
		if time.Now().After(deadline) {
			t.Fatal("QEMU does not listen")
		}
	}
}

func adopt(t *testing.T, f *foreign, name string) *qemu.Machine {
	t.Helper()
	m, err := qemu.Adopt(t.Context(), name, f.socket, t.TempDir())
	must(t, err)
	t.Cleanup(func() {
		if err := m.Detach(); err != nil {
			t.Error(err)
		}
	})
	return m
}

func mainMemory(t *testing.T, m *qemu.Machine) vmm.Memory {
	t.Helper()
	for _, mem := range m.Memory() {
		if mem.Size == vmmtest.ProgramMemory && strings.Contains(mem.Name, "ram") && !strings.Contains(mem.Name, "vram") {
			return mem
		}
	}
	t.Fatalf("no main memory among %+v", m.Memory())
	return vmm.Memory{}
}

func awaitCount(t *testing.T, m *qemu.Machine, atLeast uint32) uint32 {
	t.Helper()
	for deadline := time.Now().Add(budget); ; time.Sleep(5 * time.Millisecond) { // polls, with a deadline
		c, err := vmmtest.ReadCounter(mainMemory(t, m))
		must(t, err)
		if c.Started && c.Count >= atLeast {
			return c.Count
		}
		if time.Now().After(deadline) {
			t.Fatalf("guest is at step %d, want %d", c.Count, atLeast)
		}
	}
}

// copyMemory reads or writes all memory of a machine.
func readMemory(t *testing.T, m *qemu.Machine) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	for _, mem := range m.Memory() {
		f, err := os.Open(mem.Path)
		must(t, err)
		b := make([]byte, mem.Size)
		_, err = io.ReadFull(io.NewSectionReader(f, mem.Offset, int64(mem.Size)), b)
		must(t, errors.Join(err, f.Close()))
		all[mem.Name] = b
	}
	return all
}

func writeMemory(t *testing.T, m *qemu.Machine, all map[string][]byte) {
	t.Helper()
	for _, mem := range m.Memory() {
		f, err := os.OpenFile(mem.Path, os.O_WRONLY, 0)
		must(t, err)
		_, err = f.WriteAt(all[mem.Name], mem.Offset)
		must(t, errors.Join(err, f.Close()))
	}
}

// TestAdopt_SavesAndRestoresWhatSomebodyElseStarted does what an agent does to an
// adopted guest, with every kind of memory that QEMU has.
func TestAdopt_SavesAndRestoresWhatSomebodyElseStarted(t *testing.T) {
	mustrun.Need(t, mustrun.QEMU)
	shm, err := os.MkdirTemp("/dev/shm", "adopt-test-")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(shm) })
	shared := func(object string) []string {
		return []string{"-object", object + ",id=ram,share=on,size=16M", "-machine", machineType + ",memory-backend=ram"}
	}
	for name, memory := range map[string]func(string) []string{
		"anonymous": func(string) []string { return []string{"-machine", machineType} },
		"i440fx":    func(string) []string { return []string{"-machine", "pc-i440fx-7.2"} },
		"memfd":     func(string) []string { return shared("memory-backend-memfd") },
		// A file of its own each: in the RAM of an earlier guest a boot takes the
		// earlier counter for its own.
		"tmpfs": func(of string) []string { return shared("memory-backend-file,mem-path=" + filepath.Join(shm, of)) },
	} {
		for _, accel := range []string{"tcg", "kvm"} {
			t.Run(name+"_"+accel, func(t *testing.T) {
				if accel == "kvm" {
					mustrun.Need(t, mustrun.KVM)
				}
				first := startForeign(t, accel, memory(accel+"-first")...)
				m := adopt(t, first, "first")
				wantStatus(t, m, vmm.StatusRunning)
				reached := awaitCount(t, m, 50)
				must(t, m.Stop(t.Context()))
				state, err := m.SaveDevices(t.Context())
				must(t, err)
				ram := readMemory(t, m)
				cut, err := vmmtest.ReadCounter(mainMemory(t, m))
				must(t, err)
				was, err := m.Describe(t.Context())
				must(t, err)
				must(t, m.Continue(t.Context()))
				awaitCount(t, m, cut.Count+50)
				if cut.Count < reached {
					t.Errorf("cut at step %d after step %d", cut.Count, reached)
				}

				second := startForeign(t, accel, append(memory(accel+"-second"), "-S", "-incoming", "defer")...)
				r := adopt(t, second, "second")
				wantStatus(t, r, vmm.StatusIncoming)
				is, err := r.Describe(t.Context())
				must(t, err)
				must(t, was.Compatible(is))
				writeMemory(t, r, ram)
				load(t, r, state)
				must(t, r.Continue(t.Context()))
				awaitCount(t, r, cut.Count+50)
				wantStatus(t, r, vmm.StatusRunning)

				// What the first had printed until the cut and the second since are one
				// text, which the program itself checks for registers that disagree.
				before, err := os.ReadFile(first.console)
				must(t, err)
				after, err := os.ReadFile(second.console)
				must(t, err)
				line := fmt.Appendf(nil, "C %08x\n", cut.Count+2)
				i := bytes.Index(before, line)
				if i < 0 || !bytes.Contains(after, line) {
					t.Fatalf("step %d is missing on a console", cut.Count+2)
				}
				if _, err := vmmtest.CheckConsole(string(before[:i])+string(after[bytes.Index(after, line):]), 1); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

func TestAdopt_LeavesTheMachineToItsOwner(t *testing.T) {
	mustrun.Need(t, mustrun.QEMU)
	f := startForeign(t, "tcg", "-machine", machineType)
	m := adopt(t, f, "guest")
	if err := m.Kill(t.Context()); !errors.Is(err, vmm.ErrForeign) {
		t.Errorf("kill: %v, want ErrForeign", err)
	}
	if _, err := m.LoadDevices(t.Context(), nil); !errors.Is(err, vmm.ErrCorrupt) {
		t.Errorf("load: %v, want ErrCorrupt", err)
	}
	// A later agent finds it by the record.
	must(t, m.Detach())
	again, err := qemu.Attach(t.Context(), m.State())
	must(t, err)
	wantStatus(t, again, vmm.StatusRunning)
	must(t, again.Detach())
	if err := f.Process.Signal(unix.Signal(0)); err != nil {
		t.Errorf("QEMU after we let go: %v", err)
	}
	if _, err := os.Stat(f.socket); err != nil {
		t.Errorf("its socket after we let go: %v", err)
	}
}

func TestAdopt_RefusesWhatItCannotCapture(t *testing.T) {
	mustrun.Need(t, mustrun.QEMU)
	disk := filepath.Join(t.TempDir(), "disk")
	must(t, os.WriteFile(disk, make([]byte, 1<<20), 0o600))
	ordinary := filepath.Join(t.TempDir(), "memory")
	for _, tc := range []struct {
		name, says string
		args       []string
	}{
		{"writes_to_a_disk", disk, []string{"-drive", "format=raw,file=" + disk}},
		{"private_file", "share=on", []string{"-object", "memory-backend-file,id=ram,size=16M,mem-path=" + ordinary, "-machine", "memory-backend=ram"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := startForeign(t, "tcg", tc.args...)
			_, err := qemu.Adopt(t.Context(), "guest", f.socket, t.TempDir())
			if !errors.Is(err, vmm.ErrForeign) || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("adopt: %v, want ErrForeign and a word of %s", err, tc.says)
			}
		})
	}
	t.Run("read_only_disk", func(t *testing.T) {
		f := startForeign(t, "tcg", "-drive", "if=virtio,read-only=on,format=raw,file="+disk)
		adopt(t, f, "guest")
	})
	t.Run("ordinary_file", func(t *testing.T) {
		f := startForeign(t, "tcg", "-object", "memory-backend-file,share=on,id=ram,size=16M,mem-path="+ordinary, "-machine", "memory-backend=ram")
		m := adopt(t, f, "guest")
		if err := m.Trackable(t.Context()); !errors.Is(err, vmm.ErrUntrackable) {
			t.Errorf("trackable: %v, want ErrUntrackable", err)
		}
	})
	t.Run("not_qemu", func(t *testing.T) {
		socket := filepath.Join(t.TempDir(), "s")
		l, err := net.Listen("unix", socket)
		must(t, err)
		defer l.Close()
		go func() {
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			_, _ = io.WriteString(c, `{"QMP":{"version":{"qemu":{"major":7,"minor":2,"micro":0},"package":""},"capabilities":[]}}`+"\n")
			b := make([]byte, 256)
			_, _ = c.Read(b)
			_, _ = io.WriteString(c, `{"return":{},"id":1}`+"\n")
			_, _ = c.Read(b)
		}()
		if _, err := qemu.Adopt(t.Context(), "guest", socket, t.TempDir()); !errors.Is(err, vmm.ErrForeign) {
			t.Errorf("adopt: %v, want ErrForeign", err)
		}
	})
}

// TestAdopt_RefusesWhatQEMUCannotSave: xen-save-devices-state would end the guest, or
// lose a device.
func TestAdopt_RefusesWhatQEMUCannotSave(t *testing.T) {
	mustrun.Need(t, mustrun.QEMU)
	disk := filepath.Join(t.TempDir(), "disk")
	must(t, os.WriteFile(disk, make([]byte, 1<<20), 0o600))
	for device, args := range map[string][]string{
		"nvme":    {"-drive", "if=none,id=d,read-only=on,format=raw,file=" + disk, "-device", "nvme,drive=d,serial=1"},
		"usb-mtp": {"-device", "usb-ehci", "-device", "usb-mtp,rootdir=" + t.TempDir()},
		"usb-uas": {"-device", "usb-ehci", "-device", "usb-uas"},
	} {
		t.Run(device, func(t *testing.T) {
			f := startForeign(t, "tcg", append(args, "-machine", machineType)...)
			if _, err := qemu.Adopt(t.Context(), "guest", f.socket, t.TempDir()); !errors.Is(err, vmm.ErrUnsavable) || !strings.Contains(err.Error(), device) {
				t.Errorf("adopt: %v, want ErrUnsavable and a word of %s", err, device)
			}
		})
	}
}

// TestAdopt_NoticesWhatIsPluggedInLater plugs into an adopted guest what would be
// refused at adoption.
func TestAdopt_NoticesWhatIsPluggedInLater(t *testing.T) {
	mustrun.Need(t, mustrun.QEMU)
	disk := filepath.Join(t.TempDir(), "disk")
	must(t, os.WriteFile(disk, make([]byte, 1<<20), 0o600))
	type command struct {
		name string
		args map[string]any
	}
	node := command{"blockdev-add", map[string]any{"driver": "raw", "node-name": "hot", "file": map[string]any{"driver": "file", "filename": disk}}}
	for _, tc := range []struct {
		name string
		plug []command
		want error
		says string
	}{
		{"writable_disk", []command{node, {"device_add", map[string]any{"driver": "virtio-blk-pci", "drive": "hot", "id": "hotdisk", "bus": "root1"}}}, vmm.ErrForeign, disk},
		{"memory", []command{
			{"object-add", map[string]any{"qom-type": "memory-backend-ram", "id": "hotram", "size": 128 << 20}},
			{"device_add", map[string]any{"driver": "pc-dimm", "id": "dimm", "memdev": "hotram"}},
		}, vmm.ErrForeign, "hotram"},
		{"nvme", []command{node, {"device_add", map[string]any{"driver": "nvme", "drive": "hot", "serial": "1", "bus": "root1"}}}, vmm.ErrUnsavable, "nvme"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			own := filepath.Join(t.TempDir(), "owner")
			f := startForeign(t, "tcg", "-machine", machineType, "-m", "16,slots=2,maxmem=1G", "-device", "pcie-root-port,id=root1,chassis=1",
				"-qmp", "unix:"+own+",server=on,wait=off")
			m := adopt(t, f, "guest")
			must(t, m.ReadySave(t.Context()))
			must(t, m.Stop(t.Context()))
			_, err := m.SaveDevices(t.Context())
			must(t, err)
			must(t, m.Continue(t.Context()))

			owner, err := qmp.Dial(t.Context(), own)
			must(t, err)
			defer owner.Close()
			for _, c := range tc.plug {
				must(t, owner.Execute(t.Context(), c.name, c.args, nil))
			}
			if err := m.ReadySave(t.Context()); !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.says) {
				t.Errorf("ready to save: %v, want %v and a word of %s", err, tc.want, tc.says)
			}
			// Nor in a pause, if it comes after the question: a disk is only asked for before.
			if tc.name != "writable_disk" {
				must(t, m.Stop(t.Context()))
				if _, err := m.SaveDevices(t.Context()); !errors.Is(err, tc.want) {
					t.Errorf("save: %v, want %v", err, tc.want)
				}
				must(t, m.Continue(t.Context()))
			}
			wantStatus(t, m, vmm.StatusRunning)
		})
	}
}
