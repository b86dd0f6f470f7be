package qemu

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	mib = 1 << 20

	// minMemory is the least RAM a guest may have. Device state is a few
	// hundred KiB whatever the guest, and must be small against RAM to be told
	// from a stream that RAM went into (see maxStateBytes).
	minMemory = 16 * mib

	// Slots 0x02 to 0x1d of the root bus are free on both machine families:
	// 0x00 and 0x01 belong to the i440FX chipset, 0x1e and 0x1f to the q35's.
	// Disks and cards have ranges of their own, so that one more disk moves no
	// card.
	firstDiskSlot = 0x02
	maxDisks      = 14
	firstNICSlot  = firstDiskSlot + maxDisks
	maxNICs       = 13
	agentSlot     = firstNICSlot + maxNICs

	maxVCPUs = 255 // more needs an interrupt remapping unit that the machine has not
)

var (
	// nameForm keeps names safe in file names, in QEMU's ids and in its
	// comma-separated options.
	nameForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)
	// machineForm is a PC machine type with its version; an alias such as q35
	// means another machine after an upgrade of QEMU.
	machineForm = regexp.MustCompile(`^pc-(q35|i440fx)-[0-9]+\.[0-9]+(\.[0-9]+)?$`)
	cpuForm     = regexp.MustCompile(`^[A-Za-z0-9_.-]+(,[+-]?[A-Za-z0-9_.-]+(=[A-Za-z0-9_.-]+)?)*$`)
)

// Validate reports every problem that can be seen without touching the host,
// all at once.
func (c Config) Validate() error {
	c = c.withDefaults()
	var p problems
	p.unless(nameForm.MatchString(c.Name), "name %q: want letters, digits, dots, dashes and underscores, at most 64", c.Name)
	p.unless(slices.Contains([]Accel{KVM, TCG, Auto}, c.Accel), "accel %q: want kvm, tcg or auto", c.Accel)
	p.unless(machineForm.MatchString(c.Machine), "machine %q: want a versioned type such as pc-q35-7.2; an alias means another machine after an upgrade", c.Machine)
	c.validateCPU(&p)
	p.unless(c.MemoryBytes >= minMemory && c.MemoryBytes%mib == 0, "memory of %d bytes: want a multiple of 1 MiB, at least %d", c.MemoryBytes, minMemory)
	p.unless(c.VCPUs >= 1 && c.VCPUs <= maxVCPUs, "vcpus %d: want 1 to %d", c.VCPUs, maxVCPUs)
	p.unless(c.Kernel != "" || (c.Initrd == "" && c.Cmdline == ""), "initrd or cmdline without a kernel")
	p.unless(c.ToolPort == "" || nameForm.MatchString(c.ToolPort), "tool port %q: want letters, digits, dots, dashes and underscores, at most 64", c.ToolPort)
	p.unless(slices.Contains([]SaveMethod{SaveAuto, SaveXen, SaveMigrate}, c.Save), "save method %q: want xen, migrate or nothing", c.Save)
	p.unless(filepath.IsAbs(c.Dir), "dir %q: want an absolute path", c.Dir)
	p.unless(filepath.IsAbs(c.MemoryDir), "memory dir %q: want an absolute path", c.MemoryDir)
	c.validateDisks(&p)
	c.Confine.validate(&p)
	c.validateNICs(&p)
	return p.join()
}

func (c Config) validateCPU(p *problems) {
	p.unless(cpuForm.MatchString(c.CPU), "cpu %q: want a model, optionally followed by ,feature=on|off", c.CPU)
	model, _, _ := strings.Cut(c.CPU, ",")
	if !c.AllowUnportableCPU {
		p.unless(model != "host" && model != "max", "cpu model %q is a different CPU on every host: name a model, or allow it explicitly", model)
	}
}

func (c Config) validateDisks(p *problems) {
	p.unless(len(c.Disks) <= maxDisks, "%d disks: at most %d", len(c.Disks), maxDisks)
	seen := make(map[string]bool)
	for i, d := range c.Disks {
		p.unless(nameForm.MatchString(d.Name), "disk %d: name %q: want letters, digits, dots, dashes and underscores", i, d.Name)
		p.unless(!seen[d.Name], "disk %d: name %q is taken", i, d.Name)
		seen[d.Name] = true
		p.unless(d.Format == Raw || d.Format == QCOW2, "disk %s: format %q: want raw or qcow2", d.Name, d.Format)
		p.unless(filepath.IsAbs(d.Path), "disk %s: path %q: want an absolute path", d.Name, d.Path)
		p.unless(slices.Contains([]OnError{OnErrorDefault, OnErrorNoSpace, OnErrorStop, OnErrorReport}, d.WriteError), "disk %s: write error %q: want enospc, stop or report", d.Name, d.WriteError)
		p.unless(slices.Contains([]OnError{OnErrorDefault, OnErrorStop, OnErrorReport}, d.ReadError), "disk %s: read error %q: want stop or report", d.Name, d.ReadError)
		p.unless(d.QuotaBytes == 0 || d.Format == QCOW2 && !d.ReadOnly && d.QuotaBytes%512 == 0, "disk %s: quota of %d bytes: want a multiple of 512, for a qcow2 file that is written", d.Name, d.QuotaBytes)
		p.unless(d.Backing == nil || d.Format == QCOW2, "disk %s: format %q: only qcow2 can lie on another image", d.Name, d.Format)
		depth := 0
		for b := d.Backing; b != nil; b = b.Backing {
			p.unless(b.Format == Raw || b.Format == QCOW2, "disk %s: backing image %s: format %q: want raw or qcow2", d.Name, b.Path, b.Format)
			p.unless(b.Backing == nil || b.Format == QCOW2, "disk %s: backing image %s: format %q: only qcow2 can lie on another image", d.Name, b.Path, b.Format)
			if depth++; depth > MaxBacking {
				p.unless(false, "disk %s: more than %d backing images", d.Name, MaxBacking)
				break
			}
		}
	}
}

func (c Config) validateNICs(p *problems) {
	p.unless(len(c.NICs) <= maxNICs, "%d network cards: at most %d", len(c.NICs), maxNICs)
	names, macs := make(map[string]bool), make(map[string]bool)
	for i, n := range c.NICs {
		p.unless(nameForm.MatchString(n.Name), "network card %d: name %q: want letters, digits, dots, dashes and underscores", i, n.Name)
		p.unless(!names[n.Name], "network card %d: name %q is taken", i, n.Name)
		names[n.Name] = true
		p.unless(n.MTU == 0 || n.MTU >= 68 && n.MTU <= 65535, "network card %s: MTU %d: want 68 to 65535 (host_mtu of QEMU)", n.Name, n.MTU)
		mac, err := net.ParseMAC(n.MAC)
		good := err == nil && len(mac) == 6 && mac[0]&1 == 0
		p.unless(good, "network card %s: %q is no unicast Ethernet address", n.Name, n.MAC)
		if good {
			p.unless(!macs[mac.String()], "network card %s: address %s is taken", n.Name, mac)
			macs[mac.String()] = true
		}
	}
}

// validateFiles checks what only a launch needs: a Config that was read back
// from a State has no files.
func (c Config) validateFiles() error {
	var p problems
	for _, n := range c.NICs {
		if n.TAP {
			p.unless(n.File != nil, "network card %s: TAP device: missing", n.Name)
			continue
		}
		p.add(datagramSocket(n.File), "network card %s: file", n.Name)
		p.add(datagramSocket(n.Keep), "network card %s: keep", n.Name)
	}
	return p.join()
}

// datagramSocket reports why f is not a datagram socket, the only kind on which
// QEMU keeps frames apart.
func datagramSocket(f *os.File) error {
	if f == nil {
		return errors.New("missing")
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var kind int
	var inner error
	if err := raw.Control(func(fd uintptr) {
		kind, inner = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TYPE)
	}); err != nil {
		return err
	}
	if inner != nil {
		return os.NewSyscallError("getsockopt", inner)
	}
	if kind != unix.SOCK_DGRAM {
		return errors.New("not a datagram socket")
	}
	return nil
}

// problems collects what is wrong with a configuration.
type problems struct{ errs []error }

func (p *problems) unless(good bool, format string, args ...any) {
	if !good {
		p.errs = append(p.errs, fmt.Errorf(format, args...))
	}
}

// add notes err, if there is one, as a problem of what.
func (p *problems) add(err error, what string, args ...any) {
	if err != nil {
		p.errs = append(p.errs, fmt.Errorf("%s: %w", fmt.Sprintf(what, args...), err))
	}
}

func (p *problems) join() error { return errors.Join(p.errs...) }
