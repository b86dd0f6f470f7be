package qemu_test

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"fermata/protocol/mustrun"
	"fermata/vmm/qemu"
)

func TestProbe(t *testing.T) {
	mustrun.Need(t, mustrun.QEMU)
	info, err := qemu.Probe(t.Context(), "")
	must(t, err)
	t.Logf("%s: %s, %d machine types, %d cpu models", info.Binary, info.Version, len(info.MachineTypes), len(info.CPUModels))
	if info.Version.Major < 7 || !filepath.IsAbs(info.Binary) {
		t.Errorf("%s has version %s", info.Binary, info.Version)
	}
	if !slices.Contains(info.MachineTypes, machineType) || slices.Contains(info.MachineTypes, "q35") {
		t.Errorf("machine types %v", info.MachineTypes)
	}
	if !slices.Contains(info.CPUModels, "qemu64") || !info.HasXenSave || !info.HasDgram {
		t.Errorf("cpu models %v, xen save %v, dgram %v", info.CPUModels, info.HasXenSave, info.HasDgram)
	}
	if !strings.HasPrefix(info.Aliases["q35"], "pc-q35-") {
		t.Errorf("q35 is %q", info.Aliases["q35"])
	}
	if _, err := qemu.Probe(t.Context(), "/bin/true"); err == nil {
		t.Error("/bin/true passes for QEMU")
	}
	accel, why := qemu.ProbeAccel()
	t.Logf("auto is %s: %s", accel, why)
}

// TestBootProbe_Program: a program that is no Linux kernel is shown, and is not
// taken for one. The trial ends with its context only, so that grows until the
// program has spoken.
func TestBootProbe_Program(t *testing.T) {
	mustrun.Need(t, mustrun.QEMU)
	kernel := programFile(t)
	var report qemu.BootReport
	for limit := time.Second / 2; report.Output == "" && limit < budget; limit *= 2 {
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		var err error
		report, err = qemu.BootProbe(ctx, "", kernel, qemu.TCG)
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) { // of a QEMU that took that long to start
			must(t, err)
		}
	}
	if report.Booted || !strings.HasPrefix(report.Output, "C 00000001") {
		t.Errorf("report %+v", report)
	}
	if _, err := qemu.BootProbe(t.Context(), "", kernel, qemu.Auto); err == nil {
		t.Error("auto is no accelerator to try")
	}
}

func TestBootProbe_Linux(t *testing.T) {
	mustrun.Need(t, mustrun.QEMU, mustrun.GuestImage)
	dir, err := mustrun.GuestDir()
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute) // of a busy machine
	defer cancel()
	report, err := qemu.BootProbe(ctx, "", filepath.Join(dir, "vmlinuz"), qemu.TCG)
	must(t, err)
	t.Logf("spoke after %v", report.Elapsed)
	if !report.Booted {
		t.Errorf("report %+v", report)
	}
}
