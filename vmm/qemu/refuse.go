package qemu

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"fermata/vmm"
	"fermata/vmm/qmp"
)

// refuseUnsavable reports everything for which the machine cannot be saved at present.
// A machine of ours has the devices that it was launched with, so only its blockers are
// asked for.
func (m *Machine) refuseUnsavable(ctx context.Context) error {
	if m.state.Foreign == nil {
		return m.refuseBlocked(ctx)
	}
	blocks, err := m.listBlocks(ctx)
	if err != nil {
		return err
	}
	return errors.Join(m.refuseBlocked(ctx), m.refuseDisks(ctx), m.refuseBlocks(blocks))
}

// refuseBlocked refuses a machine with a device whose state QEMU cannot save. The
// command xen-save-devices-state does not look: it ends QEMU with a signal (nvme in
// 7.2), or leaves the device out. So it is never given to a machine with a blocker.
func (m *Machine) refuseBlocked(ctx context.Context) error {
	progress, err := m.queryMigrate(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, reason := range progress.Blocked {
		errs = append(errs, fmt.Errorf("%w: QEMU cannot save it: %s; unplug the device, or start the guest without it", vmm.ErrUnsavable, reason))
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	mon, err := m.connect(ctx)
	if err != nil {
		return err
	}
	version := mon.Greeting().Version
	if !version.Less(blockedReasons) {
		return nil
	}
	err = m.eachPeripheral(ctx, func(path, kind string) error {
		if losesState(version, kind) {
			errs = append(errs, fmt.Errorf("%w: QEMU %s loses the state of device %s (%s); unplug it, or start the guest without it",
				vmm.ErrUnsavable, version, filepath.Base(path), kind))
		}
		return nil
	})
	return errors.Join(append(errs, err)...)
}

// blockedReasons is the first version whose query-migrate names what blocks it
// (qapi/migration.json).
var blockedReasons = qmp.Version{Major: 6}

// silentDevices are kinds of devices, by the beginning of their types' names, whose
// state older versions do not save: their drivers set "unmigratable" or add a blocker.
var silentDevices = []string{"nvme", "usb-mtp", "usb-uas", "vfio-", "ivshmem", "pvrdma"}

// losesState reports whether a version does not save the state of a kind of device, and
// does not say so.
func losesState(version qmp.Version, kind string) bool {
	return version.Less(blockedReasons) && slices.ContainsFunc(silentDevices, func(d string) bool { return strings.HasPrefix(kind, d) })
}

// refuseDisks refuses a machine that writes to disks: their content would have
// to be of the same instant as its memory. Flash memory is no such disk: it is a memory
// block, from which QEMU writes the file anew when the guest continues
// (pflash_post_load in hw/block/pflash_cfi01.c).
func (m *Machine) refuseDisks(ctx context.Context) error {
	var disks []struct {
		Device   string
		QDev     string
		Inserted *struct {
			File string
			RO   bool
		}
	}
	if err := m.execute(ctx, "query-block", nil, &disks); err != nil {
		return err
	}
	var errs []error
	for _, d := range disks {
		if d.Inserted == nil || d.Inserted.RO {
			continue
		}
		flash, err := m.isFlash(ctx, d.QDev)
		if err != nil {
			errs = append(errs, err)
		}
		if !flash {
			errs = append(errs, fmt.Errorf("%w: it writes to disk %s%s (%s), which a checkpoint would not hold; unplug it, start the guest diskless or with read-only disks, or create it with Fermata",
				vmm.ErrForeign, d.Device, d.QDev, d.Inserted.File))
		}
	}
	return errors.Join(errs...)
}

// isFlash reports whether a device is flash memory.
func (m *Machine) isFlash(ctx context.Context, device string) (bool, error) {
	if !strings.HasPrefix(device, "/machine/") { // an id, which flash of a PC has not
		return false, nil
	}
	var kind string
	err := m.execute(ctx, "qom-get", map[string]string{"path": device, "property": "type"}, &kind)
	return strings.HasPrefix(kind, "cfi.pflash"), err
}

// refuseBlocks refuses a machine whose memory is not what it was when it was adopted.
func (m *Machine) refuseBlocks(now []ramBlock) error {
	if m.state.Foreign == nil || m.state.Foreign.Memory == nil { // nil: it is being adopted
		return nil
	}
	var errs []error
	for _, b := range now {
		if !b.rom() && !m.isMain(b.name) {
			errs = append(errs, fmt.Errorf("%w: memory %s of %d bytes was plugged in after the guest was adopted; stop its cluster, which leaves the guest running, and start it again", vmm.ErrForeign, b.name, b.used))
		}
	}
	for _, mem := range m.Memory() {
		if !slices.ContainsFunc(now, func(b ramBlock) bool { return b.name == mem.Name && b.used == mem.Size }) {
			errs = append(errs, fmt.Errorf("%w: memory %s is not what it was when the guest was adopted; stop its cluster, which leaves the guest running, and start it again", vmm.ErrForeign, mem.Name))
		}
	}
	return errors.Join(errs...)
}
