// Package spec is the specification of a cluster: what its guests, networks
// and disks are, where guests may run and how long a checkpoint may hold them.
//
// Decode reads YAML strictly: unknown keys, duplicate keys, aliases and values
// out of range are refused, all of them at once and each with its line. What it
// returns is complete: defaults are filled in, a count of guests has become
// that many guests, and every network card has its MAC address. Encode writes
// that complete form, and Decode of it gives the same Spec.
package spec

import (
	"fmt"
	"path/filepath"
	"time"

	"fermata/protocol/api"
)

// Limits of a specification. They bound what a file can make the coordinator
// hold, and are far above what one QEMU or one command line takes.
const (
	MaxBytes = 1 << 20 // of the YAML, given or canonical; etcd takes values up to 1.5 MiB

	maxGuests   = 1024
	maxNetworks = 64
	minQuota    = 1 << 20 // an empty overlay and its tables
	maxQuota    = 1 << 46 // 64 TiB, more than a disk has
	quotaStep   = 1 << 16 // a cluster of an overlay
	maxDisks    = 14      // of one guest: the machine has 28 free slots, half for disks
	maxNICs     = 8       // of one guest
	maxVCPUs    = 255
	maxRanges   = 64   // of confidential memory of one guest
	maxCmdline  = 2047 // COMMAND_LINE_SIZE of Linux on x86 is 2048, its end included
	maxPath     = 4095 // PATH_MAX, its end included

	minMemory = 16 << 20
	maxMemory = 16 << 40
	// memoryStep is the large page of x86: memory of any other size cannot lie
	// on hugetlbfs, and the last step of dirty tracking would be cut short.
	memoryStep = 2 << 20

	maxAddress = 1 << 52 // of x86-64

	minMTU = 576  // RFC 791: what every IPv4 host takes
	maxMTU = 9216 // the customary jumbo frame

	minPauseBudget = 10 * time.Millisecond
	maxPauseBudget = time.Hour
	maxSkewBudget  = time.Hour
)

// What is used where the file says nothing. Defaults of the machine are
// constants, never "the newest": they become part of every checkpoint.
const (
	defaultAccel       = "auto"
	defaultMachine     = "pc-q35-7.2"
	defaultCPU         = "qemu64" // runs under KVM and TCG alike
	defaultMTU         = 1500
	defaultPauseBudget = 10 * time.Second
	defaultSkewBudget  = 5 * time.Second
)

// Policy says how guests are spread over nodes.
type Policy string

// The placement policies.
const (
	Spread Policy = "spread" // evenly over the nodes, by their processors; the default
	Pack   Policy = "pack"   // on as few nodes as will hold them
)

// Outside says what happens to frames that guests send out of their cluster, by an
// uplink of a network.
type Outside string

// The policies. What comes in is delivered under all of them.
const (
	OutsideDrop  Outside = "drop"               // nothing goes out; the default
	OutsideAllow Outside = "allow"              // everything goes out at once
	OutsideHold  Outside = "hold-until-durable" // a frame goes out when no restart from the newest checkpoint undoes it
)

// Spec is a complete cluster specification, as Decode makes it.
type Spec struct {
	Name     string
	Networks []Network
	Guests   []Guest // in the order of the file; the order gives the index
	Policy   Policy  // of placement
	Policies Policies
}

// Network is one layer-2 network of the cluster.
type Network struct {
	Name string
	MTU  uint32

	// Uplink is a bridge, by its name in the agents' configuration, that the network is
	// joined to on one node; empty: none. Outside is the policy there.
	Uplink  string
	Outside Outside
	// Bridge is a bridge that the network is, on every node, instead of the fabric's:
	// what is in flight there is not recorded. Not with Uplink.
	Bridge string
}

// Policies are what the cluster promises during a checkpoint.
type Policies struct {
	// PauseBudget is how long a guest may stand still. A guest stopped longer
	// runs again and the checkpoint fails.
	PauseBudget time.Duration
	// SkewBudget is how far apart the guests may be cut, each on its own, by the
	// clocks of their nodes. A checkpoint whose cut takes longer fails; no guest
	// stands still for it. 0: only the pause budget bounds it.
	SkewBudget time.Duration
	Outside    Outside // of uplinks that say none
}

// Guest is one virtual machine.
type Guest struct {
	Name        string
	Accel       string // kvm, tcg or auto
	Machine     string // versioned machine type
	CPU         string // named CPU model
	MemoryBytes uint64
	VCPUs       uint32
	Kernel      string // path on the node; empty: boot from the first disk
	Initrd      string // path on the node
	Cmdline     string
	Disks       []Disk
	NICs        []NIC
	Node        string // the only node it may run on; empty: any
	GuestAgent  bool   // it runs QEMU's guest agent
	GuestTool   bool   // it has a port for fermata-guest

	// Confidential is memory that is never read: a restart finds zeros there.
	Confidential []Range

	// Adopt is the QMP socket, on Node, of a QEMU that somebody else started.
	// Nothing else of such a guest is said here: it is as it was started.
	Adopt string
}

// Range is memory as the guest addresses it (guest-physical), in whole pages.
type Range struct{ Start, Bytes uint64 }

// Disk is one disk of a guest.
type Disk struct {
	Name     string
	Path     string // base image on the node, never written
	Format   string // raw or qcow2
	ReadOnly bool

	// WriteError and ReadError say what happens when the node cannot carry out a write
	// or a read. Empty is the default: a guest whose write finds no room on the node
	// stands still until there is room, and any other error is reported to the guest.
	WriteError string // stop or report; empty: enospc
	ReadError  string // stop; empty: report
	// QuotaBytes is how much of the node's file system the guest's writes may take; 0:
	// as much as there is.
	QuotaBytes uint64
}

// NIC is one network card of a guest.
type NIC struct {
	Name    string
	Network string
	MAC     string // lower-case, colons
}

// GuestSpecs is the cluster's guests as they travel to the nodes.
func (s *Spec) GuestSpecs() []*api.GuestSpec {
	specs := make([]*api.GuestSpec, 0, len(s.Guests))
	for _, g := range s.Guests {
		a := &api.GuestSpec{
			Name:        g.Name,
			Accel:       g.Accel,
			Machine:     g.Machine,
			Cpu:         g.CPU,
			MemoryBytes: g.MemoryBytes,
			Vcpus:       g.VCPUs,
			Kernel:      g.Kernel,
			Initrd:      g.Initrd,
			Cmdline:     g.Cmdline,
			Adopt:       g.Adopt,
			GuestAgent:  g.GuestAgent,
			GuestTool:   g.GuestTool,
		}
		for _, r := range g.Confidential {
			a.Confidential = append(a.Confidential, &api.MemoryRange{Start: r.Start, Bytes: r.Bytes})
		}
		for _, d := range g.Disks {
			a.Disks = append(a.Disks, &api.DiskSpec{Name: d.Name, Path: d.Path, Format: d.Format, ReadOnly: d.ReadOnly, Werror: d.WriteError, Rerror: d.ReadError, QuotaBytes: d.QuotaBytes})
		}
		for _, n := range g.NICs {
			a.Nics = append(a.Nics, &api.NICSpec{Name: n.Name, Network: n.Network, Mac: n.MAC, Mtu: s.mtu(n.Network), Bridge: s.network(n.Network).Bridge})
		}
		specs = append(specs, a)
	}
	return specs
}

// network is the network of that name, which Decode has found to be there.
func (s *Spec) network(name string) Network {
	for _, n := range s.Networks {
		if n.Name == name {
			return n
		}
	}
	return Network{}
}

// Uplinks are what joins the networks to the world, as it travels to the nodes.
func (s *Spec) Uplinks() []*api.Uplink {
	var all []*api.Uplink
	for _, n := range s.Networks {
		if n.Uplink != "" {
			all = append(all, &api.Uplink{Network: n.Name, Bridge: n.Uplink, Outside: n.Outside.wire(), Mtu: s.mtu(n.Name)})
		}
	}
	return all
}

func (o Outside) wire() api.Outside {
	switch o {
	case OutsideAllow:
		return api.Outside_OUTSIDE_ALLOW
	case OutsideHold:
		return api.Outside_OUTSIDE_HOLD_UNTIL_DURABLE
	default:
		return api.Outside_OUTSIDE_DROP
	}
}

// mtu is what a network's cards tell their guests; 0 where it is what every guest
// takes for granted.
func (s *Spec) mtu(network string) uint32 {
	if mtu := s.network(network).MTU; mtu != defaultMTU {
		return mtu
	}
	return 0
}

// ResolvePaths makes every relative path relative to dir instead of the
// working directory of whoever opens it. The command line calls it with the
// folder of the file, before it sends the specification: the coordinator and
// the agents have working directories of their own. On several nodes the same
// path must name the same file, as it does on a parallel filesystem.
func (s *Spec) ResolvePaths(dir string) {
	for p := range s.paths() {
		if *p.path != "" && !filepath.IsAbs(*p.path) {
			*p.path = filepath.Join(dir, *p.path)
		}
	}
}

// RequireAbsolutePaths returns an error that names the first relative path.
func (s *Spec) RequireAbsolutePaths() error {
	for p := range s.paths() {
		if *p.path != "" && !filepath.IsAbs(*p.path) {
			return fmt.Errorf("cluster %s: %s of guest %s: %q is not an absolute path", s.Name, p.what, p.guest, *p.path)
		}
	}
	return nil
}

// pathOf is one path in a specification, in place.
type pathOf struct {
	guest, what string
	path        *string
}

func (s *Spec) paths() func(yield func(pathOf) bool) {
	return func(yield func(pathOf) bool) {
		for i := range s.Guests {
			g := &s.Guests[i]
			if !yield(pathOf{g.Name, "kernel", &g.Kernel}) || !yield(pathOf{g.Name, "initrd", &g.Initrd}) || !yield(pathOf{g.Name, "adopt", &g.Adopt}) {
				return
			}
			for j := range g.Disks {
				if !yield(pathOf{g.Name, "disk " + g.Disks[j].Name, &g.Disks[j].Path}) {
					return
				}
			}
		}
	}
}
