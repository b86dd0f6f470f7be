package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"fermata/vmm"
	"fermata/vmm/qmp"
	"fermata/vmm/uffd"
)

// Foreign is what is known of a machine that somebody else started.
type Foreign struct {
	Memory []vmm.Memory `json:"memory"`

	// Configuration tells whether the machine wants a configuration section at
	// the head of a stream: it was started without send-configuration=off.
	Configuration bool `json:"configuration"`
}

// Adopt returns a handle on a QEMU that somebody else started, by a QMP socket on
// which it listens and which nobody else uses. Nothing of the machine is changed.
// The handle has every ability but two: Kill is refused, as the process is not
// ours, and there is no console. dir is a directory that exists, for our record.
//
// A machine that waits with -incoming defer can take a device state; one that
// was started otherwise cannot be set back.
//
// Errors wrap vmm.ErrForeign when what listens there cannot be adopted, with the
// reason and the way out.
func Adopt(ctx context.Context, name, socket, dir string) (*Machine, error) {
	m, err := adopt(ctx, name, socket, dir)
	if err != nil {
		return nil, fmt.Errorf("adopt guest %s at %s: %w", name, socket, err)
	}
	return m, nil
}

func adopt(ctx context.Context, name, socket, dir string) (_ *Machine, err error) {
	mon, err := qmp.Dial(ctx, socket)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) {
		return nil, fmt.Errorf("%w: no QEMU listens there: %w", vmm.ErrForeign, err)
	}
	if err != nil {
		return nil, err
	}
	proc, err := ownerOf(mon)
	if err != nil {
		return nil, errors.Join(err, mon.Close())
	}
	state := State{
		Version: stateVersion, PID: proc.pid, QMPPath: socket, GuardPath: socket,
		Config:  Config{Name: name, Dir: dir, Save: SaveXen},
		Foreign: &Foreign{Configuration: wantsConfiguration(proc.pid)},
	}
	m := newMachine(state, proc)
	m.monitor = mon
	m.heed(mon)
	defer func() {
		if err != nil {
			err = errors.Join(err, m.Detach())
		}
	}()
	stat, err := readStat(proc.pid)
	if err != nil {
		return nil, err
	}
	m.state.Started = stat.started
	if m.state.BootID, err = bootID(); err != nil {
		return nil, err
	}
	if m.state.Description, err = m.foreignDescription(ctx); err != nil {
		return nil, err
	}
	m.state.Config.VCPUs = m.state.Description.VCPUs
	m.state.Config.MemoryBytes = m.state.Description.MemoryBytes
	if m.state.Foreign.Memory, err = m.foreignMemory(ctx); err != nil {
		return nil, err
	}
	if err := m.refuseUnsavable(ctx); err != nil {
		return nil, err
	}
	return m, m.state.write()
}

// ownerOf finds the QEMU that listens on a monitor's socket.
func ownerOf(mon *qmp.Client) (*process, error) {
	peer, err := mon.Peer()
	if err != nil {
		return nil, err
	}
	pid := int(peer.Pid)
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return nil, fmt.Errorf("%w: process %d, which made the socket, cannot be looked at: %w", vmm.ErrForeign, pid, err)
	}
	if base := filepath.Base(exe); !strings.HasPrefix(base, "qemu-system-") && !strings.HasPrefix(base, "qemu-kvm") {
		return nil, fmt.Errorf("%w: the socket was made by process %d (%s), not by QEMU itself; give QEMU one more: -qmp unix:PATH,server=on,wait=off",
			vmm.ErrForeign, pid, base)
	}
	stat, err := readStat(pid)
	if err != nil {
		return nil, err
	}
	return openProcess(pid, stat.started)
}

// foreignDescription asks the machine what it is, as far as it tells.
func (m *Machine) foreignDescription(ctx context.Context) (d Description, err error) {
	mon, err := m.connect(ctx)
	if err != nil {
		return d, err
	}
	d.QEMU = mon.Greeting().Version.String()
	typeOf := func(path string) (t string, err error) {
		err = m.execute(ctx, "qom-get", map[string]string{"path": path, "property": "type"}, &t)
		return t, err
	}
	machine, err := typeOf("/machine")
	if err != nil {
		return d, err
	}
	d.Machine = strings.TrimSuffix(machine, "-machine")
	var cpus []struct {
		Path string `json:"qom-path"`
	}
	if err := m.execute(ctx, "query-cpus-fast", nil, &cpus); err != nil {
		return d, err
	}
	if len(cpus) == 0 {
		return d, fmt.Errorf("%w: it has no processor", vmm.ErrForeign)
	}
	d.VCPUs = len(cpus)
	cpu, err := typeOf(cpus[0].Path)
	if err != nil {
		return d, err
	}
	d.CPU = strings.TrimSuffix(cpu, "-x86_64-cpu")
	var kvm struct{ Enabled bool }
	if err := m.execute(ctx, "query-kvm", nil, &kvm); err != nil {
		return d, err
	}
	if d.Accel = TCG; kvm.Enabled {
		d.Accel = KVM
	}
	var size struct {
		Base    uint64 `json:"base-memory"`
		Plugged uint64 `json:"plugged-memory"`
	}
	if err := m.execute(ctx, "query-memory-size-summary", nil, &size); err != nil {
		return d, err
	}
	d.MemoryBytes = size.Base + size.Plugged
	d.Devices, err = m.foreignDevices(ctx)
	return d, err
}

// foreignDevices lists what does not depend on what the guest has done so far:
// the devices on the first PCI bus by their places (numbers of further buses are
// the guest's), and those that the command line asked for, by type.
func (m *Machine) foreignDevices(ctx context.Context) (out []string, err error) {
	var buses []struct {
		Devices []struct {
			Slot, Function int
			ID             struct{ Vendor, Device int }
		}
	}
	if err := m.execute(ctx, "query-pci", nil, &buses); err != nil {
		return nil, err
	}
	for _, b := range buses[:min(len(buses), 1)] {
		for _, d := range b.Devices {
			out = append(out, fmt.Sprintf("pci %02x.%x %04x:%04x", d.Slot, d.Function, d.ID.Vendor, d.ID.Device))
		}
	}
	err = m.eachPeripheral(ctx, func(path, kind string) error {
		name := path
		if strings.HasPrefix(path, peripheralAnon) {
			name = peripheralAnon // numbered in order of the command line
		}
		out = append(out, name+" "+kind)
		return nil
	})
	slices.Sort(out)
	return out, err
}

// foreignMemory lists the RAM blocks that the guest may write to. The others are a
// part of the device state; see firmwareBlocks.
func (m *Machine) foreignMemory(ctx context.Context) ([]vmm.Memory, error) {
	blocks, err := m.findBlocks(ctx)
	if err != nil {
		return nil, err
	}
	maps, err := uffd.All(m.PID())
	if err != nil {
		return nil, err
	}
	var all []vmm.Memory
	for _, b := range blocks {
		if !b.rom() {
			all = append(all, vmm.Memory{Name: b.name, Size: b.used, Addr: b.host})
		}
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%w: no RAM found", vmm.ErrForeign)
	}
	for i := range all {
		if err := m.throughFile(&all[i], maps); err != nil {
			return nil, fmt.Errorf("memory %s: %w", all[i].Name, err)
		}
	}
	return all, nil
}

// throughFile finds the file through which a block is read: the one that the
// process maps there, if it is shared, else the memory of the process.
func (m *Machine) throughFile(mem *vmm.Memory, maps []uffd.Mapping) error {
	i := slices.IndexFunc(maps, func(at uffd.Mapping) bool { return at.Addr <= mem.Addr && mem.Addr < at.End() })
	if i < 0 || mem.Addr+mem.Size > maps[i].End() {
		return fmt.Errorf("%w: it is not mapped as a whole", vmm.ErrForeign)
	}
	at := maps[i]
	if at.Inode == 0 {
		mem.Path, mem.Offset = fmt.Sprintf("/proc/%d/mem", m.PID()), int64(mem.Addr)
		return nil
	}
	if !at.Shared {
		return fmt.Errorf("%w: a file is mapped privately; start QEMU with share=on, or without a memory file", vmm.ErrForeign)
	}
	dir := fmt.Sprintf("/proc/%d/fd", m.PID())
	files, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, f := range files {
		var st unix.Stat_t
		path := filepath.Join(dir, f.Name())
		if unix.Stat(path, &st) == nil && at.Maps(st.Dev, st.Ino) {
			mem.Path, mem.Offset = path, int64(at.Offset+mem.Addr-at.Addr)
			return nil
		}
	}
	return fmt.Errorf("%w: QEMU maps a file there and has closed it", vmm.ErrForeign)
}

// Lend implements vmm.Process.
func (m *Machine) Lend(ctx context.Context, file *os.File) (number int, done func() error, err error) {
	set, done, err := m.lend(ctx, file)
	return set.FD, done, err
}

func (m *Machine) lend(ctx context.Context, file *os.File) (set qmp.FDSet, done func() error, err error) {
	mon, err := m.connect(ctx)
	if err != nil {
		return set, nil, err
	}
	if set, err = mon.AddFD(ctx, file); err != nil {
		return set, nil, m.explain(ctx, err)
	}
	return set, func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTime)
		defer cancel()
		return m.explain(ctx, mon.RemoveFD(ctx, set))
	}, nil
}

// GuardConnection returns a descriptor of our connection to the monitor for a
// guard process, or nil when the machine has a second monitor for it: a monitor
// serves one connection at a time, and an agent that hangs keeps it. The caller
// closes it.
func (m *Machine) GuardConnection(ctx context.Context) (*os.File, error) {
	if m.state.Foreign == nil {
		return nil, nil
	}
	mon, err := m.connect(ctx)
	if err != nil {
		return nil, err
	}
	return mon.Dup()
}

// wantsConfiguration looks for the one setting that nobody tells by QMP: whether
// the machine expects a configuration section at the head of a stream.
func wantsConfiguration(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err != nil || !strings.Contains(string(b), "migration.send-configuration=off")
}
