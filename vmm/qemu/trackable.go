package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"fermata/vmm"
	"fermata/vmm/qmp"
	"fermata/vmm/uffd"
)

// oldestTracked is the oldest QEMU whose memory has been protected from outside
// in tests.
var oldestTracked = qmp.Version{Major: 7, Minor: 2}

// Trackable says why writes to the guest's memory cannot be tracked from
// outside, every reason with the way out, or nil. Errors wrap vmm.ErrUntrackable.
//
// Whoever writes guest memory through page tables that are not QEMU's, or takes
// pages out of the memory's file, does so unseen; a checkpoint would be wrong
// without anybody noticing.
func (m *Machine) Trackable(ctx context.Context) error {
	var errs []error
	refuse := func(err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%w: %w", vmm.ErrUntrackable, err))
		}
	}
	refuse(uffd.Probe())
	for _, mem := range m.Memory() {
		refuse(steadyMemory(mem, m.PID()))
	}
	mon, err := m.connect(ctx)
	if err != nil {
		return fmt.Errorf("guest %s: %w", m.Name(), err)
	}
	if v := mon.Greeting().Version; v.Less(oldestTracked) {
		refuse(fmt.Errorf("QEMU %s is older than %s: use a newer one, or --mode stop", v, oldestTracked))
	}
	unseen, err := m.unseenWriters(ctx)
	if err != nil {
		return fmt.Errorf("devices of guest %s: %w", m.Name(), err)
	}
	for _, err := range unseen {
		refuse(err)
	}
	return errors.Join(errs...)
}

// steadyMemory refuses memory whose pages the kernel may move behind the
// protection's back, or cannot protect.
func steadyMemory(mem vmm.Memory, pid int) error {
	if mem.OfProcess() {
		return steadyPages(mem, pid)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(mem.Path, &fs); err != nil {
		return fmt.Errorf("memory file: %w", err)
	}
	switch fs.Type {
	case unix.HUGETLBFS_MAGIC: // never swapped
		return nil
	case unix.TMPFS_MAGIC:
	default:
		return fmt.Errorf("memory file %s is neither on tmpfs nor on hugetlbfs: pages of an ordinary file cannot be protected; move memory_dir", mem.Path)
	}
	if noswap, err := mountedNoswap(mem.Path); err == nil && noswap {
		return nil
	}
	return steadyPages(mem, pid)
}

// steadyPages refuses memory that the kernel may write to a disk meanwhile.
func steadyPages(mem vmm.Memory, pid int) error {
	swaps, err := os.ReadFile("/proc/swaps")
	if err != nil || strings.Count(string(swaps), "\n") <= 1 {
		return nil // no swap at all, as proc(5) has a line of headings
	}
	if locked, err := lockedBytes(pid); err == nil && locked >= mem.Size {
		return nil
	}
	return errors.New("this host swaps, and guest memory is neither locked nor kept from swap:" +
		" a page that comes back from swap costs the guest a disk read inside a checkpoint; use swapoff, a tmpfs mounted with noswap, or hugetlbfs")
}

// lockedBytes returns VmLck of a process (proc_pid_status(5)).
func lockedBytes(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		var kib uint64
		if n, _ := fmt.Sscanf(line, "VmLck: %d kB", &kib); n == 1 {
			return kib << 10, nil
		}
	}
	return 0, errors.New("no VmLck")
}

// mountedNoswap tells whether path lies on a tmpfs mounted with noswap
// (tmpfs(5), Linux 6.4).
func mountedNoswap(path string) (bool, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return false, err
	}
	device := fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false, err
	}
	for line := range strings.Lines(string(b)) {
		fields := strings.Fields(line)
		if len(fields) > 3 && fields[2] == device && strings.Contains(fields[len(fields)-1], "noswap") {
			return true, nil
		}
	}
	return false, nil
}

// unseenDevices are devices that write guest memory through other mappings than
// QEMU's, or take pages out of it, by the beginning of their type's name.
var unseenDevices = []struct{ prefix, reason string }{
	{"vfio-", "a device of the host writes guest memory by DMA; detach it, or give the guest a virtio card"},
	{"vhost-user-", "another process writes guest memory; use the device of the same name without vhost-user"},
	{"vhost-vdpa-", "a device of the host writes guest memory by DMA; use a virtio device"},
	{"virtio-mem", "takes pages out of guest memory; give the guest fixed memory"},
	{"virtio-pmem", "has memory of its own that is no RAM block; detach it"},
	{"ivshmem", "other processes write memory that the guest sees; detach it"},
	{"x-pci-proxy-dev", "another process writes guest memory; run the device in QEMU"},
}

// Where QEMU keeps the devices of its command line: those with an id, and the
// others (qdev_set_id in system/qdev-monitor.c).
const (
	peripheral     = "/machine/peripheral"
	peripheralAnon = "/machine/peripheral-anon"
)

// eachPeripheral calls f for every device that the command line asked for, with
// its path and type.
func (m *Machine) eachPeripheral(ctx context.Context, f func(path, kind string) error) error {
	for _, parent := range []string{peripheral, peripheralAnon} {
		var children []struct{ Name, Type string }
		if err := m.execute(ctx, "qom-list", map[string]string{"path": parent}, &children); err != nil {
			return err
		}
		for _, c := range children {
			kind, isChild := strings.CutPrefix(c.Type, "child<")
			if !isChild {
				continue
			}
			if err := f(parent+"/"+c.Name, strings.TrimSuffix(kind, ">")); err != nil {
				return err
			}
		}
	}
	return nil
}

// unseenWriters lists what may change guest memory unseen.
func (m *Machine) unseenWriters(ctx context.Context) (reasons []error, err error) {
	err = m.eachPeripheral(ctx, func(path, kind string) error {
		for _, d := range unseenDevices {
			if strings.HasPrefix(kind, d.prefix) {
				reasons = append(reasons, fmt.Errorf("device %s (%s): %s", filepath.Base(path), kind, d.reason))
			}
		}
		if strings.HasPrefix(kind, "virtio-balloon") {
			reason, err := m.balloon(ctx, path)
			if reason != nil {
				reasons = append(reasons, reason)
			}
			return err
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	network, err := m.human(ctx, "info network")
	if err != nil {
		return nil, err
	}
	for _, kind := range []string{"type=vhost-user", "type=vhost-vdpa"} {
		if strings.Contains(network, kind) {
			reasons = append(reasons, fmt.Errorf("a network backend of %s: another process or device writes guest memory; use tap, stream or dgram", kind))
		}
	}
	return reasons, nil
}

// balloon refuses a balloon through which the guest gives pages back by itself.
// One that only an operator inflates is fine while he does not.
func (m *Machine) balloon(ctx context.Context, path string) (reason, err error) {
	for _, property := range []string{"free-page-reporting", "free-page-hint"} {
		var on bool
		if err := m.execute(ctx, "qom-get", map[string]string{"path": path, "property": property}, &on); err != nil {
			return nil, err
		}
		if on {
			return fmt.Errorf("balloon %s has %s: the guest takes pages out of its memory unseen; switch it off", path, property), nil
		}
	}
	return nil, nil
}
