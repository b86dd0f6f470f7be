package doctor

import (
	"context"
	"fmt"
	"os/exec"
	"strings"

	"fermata/vmm/qemu"
)

func (m machine) qemu(ctx context.Context) finding {
	info, err := qemu.Probe(ctx, m.QEMU)
	if err != nil {
		return fail("install qemu-system-x86, version 7.2 or later", "%v", err)
	}
	var lacks []string
	if !info.HasXenSave {
		lacks = append(lacks, "xen-save-devices-state")
	}
	if !info.HasDgram {
		lacks = append(lacks, "-netdev dgram")
	}
	if len(lacks) > 0 {
		return fail("install QEMU 7.2 or later, built with its standard options", "%s %s lacks %s", info.Binary, info.Version, strings.Join(lacks, " and "))
	}
	return ok("%s %s", info.Binary, info.Version)
}

func qemuImg() finding {
	path, err := exec.LookPath("qemu-img")
	if err != nil {
		return warn("install qemu-utils: guests with disks need it", "not found")
	}
	return ok("%s", path)
}

const kvmRemedy = "load kvm_intel or kvm_amd, or enable (nested) virtualisation: without it guests run under TCG, many times slower"

// kvm looks for the signs of a KVM that can boot a kernel or, given one, boots it.
func (m machine) kvm(ctx context.Context) finding {
	if m.BootKernel != "" {
		return m.bootUnderKVM(ctx)
	}
	accel, reason := qemu.ProbeAccel()
	if accel == qemu.KVM {
		return ok("%s", reason)
	}
	return warn(kvmRemedy, "%s", reason)
}

func (m machine) bootUnderKVM(ctx context.Context) finding {
	trial, err := qemu.BootProbe(ctx, m.QEMU, m.BootKernel, qemu.KVM)
	if err != nil {
		return fail(kvmRemedy, "%v", err)
	}
	if trial.Booted {
		return ok("boots %s, first words after %.1f s", m.BootKernel, trial.Elapsed.Seconds())
	}
	text := fmt.Sprintf("does not boot %s: silent for %.1f s", m.BootKernel, trial.Elapsed.Seconds())
	if trial.Said != "" {
		text += ", QEMU says: " + trial.Said
	}
	return fail(kvmRemedy, "%s", text)
}
