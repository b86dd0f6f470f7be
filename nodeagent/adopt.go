package nodeagent

import (
	"context"
	"fmt"
	"path/filepath"

	"fermata/protocol/api"
	"fermata/protocol/fault"
	"fermata/vmm"
	"fermata/vmm/qemu"
)

// adopt finds the machine of a guest that somebody else started. It is left as it
// is: a guest to be checkpointed must run already, one to be restored must wait
// for its state.
func (m *maker) adopt(ctx context.Context) error {
	g := m.guest
	if err := m.agent.paths.checkSocket(g.spec.Adopt); err != nil {
		return fmt.Errorf("adopt: %w", err)
	}
	if err := freshDirectories(g.dir); err != nil {
		return err
	}
	found, err := qemu.Adopt(ctx, g.spec.Name, g.spec.Adopt, g.dir)
	if err != nil {
		return machineFault(err)
	}
	g.machine = found
	status, err := found.Status(ctx)
	if err != nil {
		return err
	}
	return fitToAdopt(g.spec, status, m.image != nil)
}

// fitToAdopt refuses a QEMU that does not do what it must do to be adopted: run, or
// wait for the state that restores it.
func fitToAdopt(spec *api.GuestSpec, status vmm.Status, restored bool) error {
	switch {
	case !restored && status == vmm.StatusIncoming:
		return fault.New(fault.Invalid, "the QEMU at %s waits for a state: use restart", spec.Adopt)
	case !restored && status != vmm.StatusRunning:
		return fault.New(fault.Invalid, "the guest at %s is %s: resume it first, or whoever paused it would see it run", spec.Adopt, status)
	case restored && status != vmm.StatusIncoming:
		return fault.New(fault.Invalid, "the QEMU at %s is %s and cannot be set back: end it and start its like there, with -S -incoming defer", spec.Adopt, status)
	}
	return nil
}

// checkAdopt refuses an adopted guest of which more is said than where it is.
func checkAdopt(spec *api.GuestSpec) error {
	if spec.GetAdopt() == "" {
		return nil
	}
	if !filepath.IsAbs(spec.Adopt) {
		return fault.New(fault.Invalid, "guest %s: adopt: path %q is not absolute", spec.GetName(), spec.Adopt)
	}
	if spec.MemoryBytes != 0 || spec.Vcpus != 0 || spec.Machine != "" || spec.Cpu != "" || spec.Accel != "" ||
		spec.Kernel != "" || spec.Initrd != "" || spec.Cmdline != "" || len(spec.Nics) > 0 || len(spec.Disks) > 0 || spec.GuestTool {
		return fault.New(fault.Invalid, "guest %s: an adopted guest is as it was started, and nothing of it can be given", spec.GetName())
	}
	return nil
}

// adopted tells a guest that somebody else started. To destroy it is to let go of
// it: it runs on.
func adopted(g *guest) bool { return g.spec.GetAdopt() != "" }
