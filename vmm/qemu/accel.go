package qemu

import (
	"bufio"
	"fmt"
	"os"
	"slices"
	"strings"
)

// ProbeAccel returns the accelerator that auto stands for on this host, with
// the reason in words.
//
// KVM it is only when /dev/kvm opens and the processor itself offers hardware
// virtualisation: there are hosts whose KVM is nested by software, runs small
// programs and cannot boot a distribution's kernel. Name kvm explicitly to use
// such a one; BootProbe tells what it can do.
func ProbeAccel() (Accel, string) {
	dev, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return TCG, fmt.Sprintf("no kvm: %v", err)
	}
	dev.Close()
	cpuinfo, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return TCG, fmt.Sprintf("processor unknown: %v", err)
	}
	defer cpuinfo.Close()
	lines := bufio.NewScanner(cpuinfo)
	for lines.Scan() {
		if key, flags, ok := strings.Cut(lines.Text(), ":"); ok && strings.TrimSpace(key) == "flags" {
			return accelFor(strings.Fields(flags))
		}
	}
	return TCG, "processor flags unknown"
}

func accelFor(flags []string) (Accel, string) {
	for _, f := range []string{"vmx", "svm"} {
		if slices.Contains(flags, f) {
			return KVM, "/dev/kvm opens and the processor has " + f
		}
	}
	return TCG, "/dev/kvm opens, but the processor has neither vmx nor svm: its kvm may be unable to boot a kernel"
}

// resolveAccel replaces auto by what it stands for.
func resolveAccel(a Accel) (Accel, string) {
	if a == Auto || a == "" {
		return ProbeAccel()
	}
	return a, "configured"
}
