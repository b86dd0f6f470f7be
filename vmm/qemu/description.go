package qemu

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"fermata/vmm"
)

// Description is everything about a machine that a device state depends on,
// and nothing about where it lives. It goes into a checkpoint as JSON and is
// compared before a restart.
type Description struct {
	QEMU    string `json:"qemu"` // major.minor.micro
	Machine string `json:"machine"`
	CPU     string `json:"cpu"`
	Accel   Accel  `json:"accel"`

	// CPUMissing lists the features of the CPU model that accelerator and host
	// could not provide, so that the guest runs without them; or says "none". It
	// is known of running machines only, and empty otherwise.
	CPUMissing string `json:"cpu_missing,omitempty"`

	VCPUs        int      `json:"vcpus"`
	MemoryBytes  uint64   `json:"memory_bytes"`
	Devices      []string `json:"devices"` // device arguments in order, with bus addresses, without paths
	KernelSHA256 string   `json:"kernel_sha256,omitempty"`
	InitrdSHA256 string   `json:"initrd_sha256,omitempty"`
	Cmdline      string   `json:"cmdline,omitempty"`
}

// Describe says what a launch of c with the probed binary would be. It reads
// the kernel and the initrd.
func (c Config) Describe(info Info) (Description, error) {
	c = c.withDefaults()
	c.Accel, _ = resolveAccel(c.Accel)
	kernel, err := fileDigest(c.Kernel)
	if err != nil {
		return Description{}, fmt.Errorf("digest kernel: %w", err)
	}
	initrd, err := fileDigest(c.Initrd)
	if err != nil {
		return Description{}, fmt.Errorf("digest initrd: %w", err)
	}
	return Description{
		QEMU:         info.Version.String(),
		Machine:      c.Machine,
		CPU:          c.CPU,
		Accel:        c.Accel,
		VCPUs:        c.VCPUs,
		MemoryBytes:  c.MemoryBytes,
		Devices:      c.devices(),
		KernelSHA256: kernel,
		InitrdSHA256: initrd,
		Cmdline:      c.Cmdline,
	}, nil
}

// Compatible reports whether a guest saved on d may be restarted on host. The
// error wraps vmm.ErrIncompatible and names every difference.
//
// Everything must be equal (missing CPU features only where both sides know
// them) but the version of QEMU: a newer one takes the state
// of an older one as long as the versioned machine type is the same, which is
// what those types promise; the other direction is promised by nobody.
func (d Description) Compatible(host Description) error {
	var p problems
	p.add(versionFits(d.QEMU, host.QEMU), "qemu")
	same(&p, "machine type", d.Machine, host.Machine)
	same(&p, "cpu model", d.CPU, host.CPU)
	same(&p, "accel", d.Accel, host.Accel)
	if d.CPUMissing != "" && host.CPUMissing != "" {
		same(&p, "missing cpu features", d.CPUMissing, host.CPUMissing)
	}
	same(&p, "vcpus", d.VCPUs, host.VCPUs)
	same(&p, "memory", d.MemoryBytes, host.MemoryBytes)
	same(&p, "kernel", d.KernelSHA256, host.KernelSHA256)
	same(&p, "initrd", d.InitrdSHA256, host.InitrdSHA256)
	same(&p, "cmdline", d.Cmdline, host.Cmdline)
	for i := range max(len(d.Devices), len(host.Devices)) {
		same(&p, fmt.Sprintf("device %d", i), at(d.Devices, i), at(host.Devices, i))
	}
	if err := p.join(); err != nil {
		return fmt.Errorf("%w: %w", vmm.ErrIncompatible, err)
	}
	return nil
}

func same[T comparable](p *problems, what string, saved, host T) {
	p.unless(saved == host, "%s: saved %v, here %v", what, orNone(saved), orNone(host))
}

// orNone makes an empty text visible.
func orNone(v any) any {
	if v == "" {
		return "none"
	}
	return v
}

func at(list []string, i int) string {
	if i < len(list) {
		return list[i]
	}
	return ""
}

func versionFits(saved, host string) error {
	s, err := parseVersion(saved)
	if err != nil {
		return err
	}
	h, err := parseVersion(host)
	if err != nil {
		return err
	}
	if slices.Compare(h[:], s[:]) < 0 {
		return fmt.Errorf("saved by %s, here the older %s", saved, host)
	}
	return nil
}

// parseVersion returns the major and minor number.
func parseVersion(v string) (n [2]int, err error) {
	if _, err := fmt.Sscanf(v, "%d.%d", &n[0], &n[1]); err != nil {
		return n, fmt.Errorf("version %q: want major.minor", v)
	}
	return n, nil
}

// fileDigest returns the SHA-256 of a file in hex, or "" for no file.
func fileDigest(path string) (digest string, err error) {
	if path == "" {
		return "", nil
	}
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
