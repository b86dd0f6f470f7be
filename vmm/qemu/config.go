// Package qemu drives guests that are QEMU processes.
//
// It owns the command line, the process and the monitor of each guest. It
// changes nothing in QEMU and runs nothing beside it: RAM is a shared file that
// the caller maps, device state passes through the monitor in a few
// milliseconds, network cards are descriptors that the caller gives.
//
// Launch starts a guest, Attach finds it again after its agent was restarted,
// Config says what it is, Description what a restart must find unchanged, Probe
// what a binary can do.
//
// What a caller must know of the process: it lives in a session of its own and
// outlives the caller. A service manager that ends a whole control group would
// end it too (systemd: KillMode=process). RAM lies sparse on its tmpfs; when
// the tmpfs runs full the guest dies of SIGBUS.
//
// Lock order (outermost first):
//
//	Machine.turn
//	  Machine.asking
//	    Machine.dialling
//	      Machine.mu
//	        process.mu
//
// turn, asking and dialling are held across calls to the monitor and are waited for
// with a context; nothing blocks under the two mutexes.
package qemu

import (
	"os"
	"path/filepath"
)

// DefaultBinary is looked up in PATH when Config.Binary is empty.
const DefaultBinary = "qemu-system-x86_64"

// Accel is how vCPUs are run.
type Accel string

const (
	KVM  Accel = "kvm"
	TCG  Accel = "tcg"
	Auto Accel = "auto" // resolved by ProbeAccel when a machine is launched
)

// DiskFormat is the format of a disk's file.
type DiskFormat string

const (
	Raw   DiskFormat = "raw"
	QCOW2 DiskFormat = "qcow2"
)

// SaveMethod is how SaveDevices has QEMU write the device state. LoadDevices
// takes the states of every method.
type SaveMethod string

const (
	// SaveAuto takes SaveXen where QEMU has it and SaveMigrate elsewhere.
	SaveAuto SaveMethod = ""
	// SaveXen is the command xen-save-devices-state: about 2 ms, leaves block
	// devices active. Needs no Xen.
	SaveXen SaveMethod = "xen"
	// SaveMigrate is a migration that leaves RAM out (x-ignore-shared): slower,
	// and the guest's block devices are inactive until Continue.
	SaveMigrate SaveMethod = "migrate"
)

// Config says what a guest's virtual machine is made of and where it lives on
// this host. What a restart must find unchanged is in Description.
type Config struct {
	Binary  string `json:"binary,omitempty"` // default DefaultBinary
	Name    string `json:"name"`             // of the guest: letters, digits, dot, dash, underscore
	Accel   Accel  `json:"accel"`            // default auto
	Machine string `json:"machine"`          // versioned machine type, e.g. pc-q35-7.2
	CPU     string `json:"cpu"`              // CPU model, optionally followed by ,feature=on|off ...

	// AllowUnportableCPU permits the models host and max, which are a different
	// CPU on another host: a checkpoint may then not restart elsewhere.
	AllowUnportableCPU bool `json:"allow_unportable_cpu,omitempty"`

	MemoryBytes uint64 `json:"memory_bytes"` // a multiple of 1 MiB, at least minMemory
	VCPUs       int    `json:"vcpus"`

	Kernel  string `json:"kernel,omitempty"` // without it the guest boots from its disks
	Initrd  string `json:"initrd,omitempty"`
	Cmdline string `json:"cmdline,omitempty"`

	Disks []Disk `json:"disks,omitempty"`
	NICs  []NIC  `json:"nics,omitempty"`

	// GuestAgent gives the guest the port by which QEMU's guest agent is spoken to.
	GuestAgent bool `json:"guest_agent,omitempty"`
	// ToolPort is the name, for the guest, of the port of vmm.ToolHolder; empty: none.
	ToolPort string `json:"tool_port,omitempty"`

	// Dir holds the sockets, logs and temporary files of this machine; it is
	// made when missing, its parent is not. It should not lie on a file system that can hang: the
	// device state passes through it while the guest stands still.
	Dir string `json:"dir"`
	// MemoryDir is where the RAM file is made: tmpfs or hugetlbfs.
	MemoryDir string `json:"memory_dir"`

	// Confine says what QEMU may do on the host.
	Confine Confinement `json:"confine,omitzero"`

	Incoming bool       `json:"incoming,omitempty"` // wait for LoadDevices
	Save     SaveMethod `json:"save,omitempty"`

	// Info spares Launch the start of a second QEMU process to ask what the
	// binary can do. One that was probed from another version of the binary is
	// not used. Optional.
	Info *Info `json:"-"`
}

// Disk is a virtio-blk disk. Its place on the bus is its place in Config.Disks.
type Disk struct {
	Name     string     `json:"name"`
	Path     string     `json:"path"`
	Format   DiskFormat `json:"format"`
	ReadOnly bool       `json:"read_only,omitempty"`

	// Backing is the image that holds what Path, an overlay, does not. QEMU reads it
	// instead of the file that the overlay's header names; nil: the header must name none.
	Backing *Image `json:"backing,omitempty"`

	// QuotaBytes is how large the file of Path may become: it has that size, with holes,
	// and QEMU has no room behind it. A multiple of 512; 0: no limit.
	QuotaBytes uint64 `json:"quota_bytes,omitempty"`

	WriteError OnError `json:"write_error,omitempty"`
	ReadError  OnError `json:"read_error,omitempty"`

	// File is Path as the caller has opened it: for reading if ReadOnly, else for
	// reading and writing. It stays the caller's. Optional: without it Launch opens Path.
	File *os.File `json:"-"`
}

// Image is a read-only layer below a disk's.
type Image struct {
	Path    string     `json:"path"`
	Format  DiskFormat `json:"format"`
	Backing *Image     `json:"backing,omitempty"`

	File *os.File `json:"-"` // as Disk.File, open for reading
}

// NIC is a virtio-net card. Its place on the bus is its place in Config.NICs.
//
// File and Keep are the two ends of one unix datagram socket pair: QEMU sends
// and receives one Ethernet frame a datagram on File. It inherits Keep, too,
// without using it, so that the pair and the frames in it outlive the caller
// (see Machine.NICFiles). Both stay the caller's; closing File after Launch is
// right.
//
// A stopped QEMU still takes one frame out of the socket, holds it and delivers
// it after Continue; a saved state does not have it, and it cannot be taken
// back. So a caller that saves the guest sends nothing to it from before Stop,
// once the socket is empty (SIOCOUTQ), until Continue.
//
// A card on a TAP device has that as its File, and no Keep: its frames are the host's
// business.
type NIC struct {
	Name string   `json:"name"`
	MAC  string   `json:"mac"`
	MTU  int      `json:"mtu,omitempty"` // bytes that the card tells the guest; 0: nothing, which means 1500
	TAP  bool     `json:"tap,omitempty"`
	File *os.File `json:"-"`
	Keep *os.File `json:"-"`
}

// firstNICFile is the number, in QEMU, of the first card's File; 0 to 2 are
// stdio, then come the two monitors' listeners. It is part of the meaning of a
// State: an agent of another version must find the files at the same numbers.
const firstNICFile = 5

// guestFD and keepFD are the numbers in QEMU of the two ends of card i.
func guestFD(i int) int { return firstNICFile + 2*i }
func keepFD(i int) int  { return firstNICFile + 2*i + 1 }

// port is a virtio-serial port whose host end is a socket.
type port struct{ id, path string }

// ports lists the guest's ports, in the order of their files.
func (c Config) ports() []port {
	var all []port
	if c.GuestAgent {
		all = append(all, port{"agent", c.agentPath()})
	}
	if c.ToolPort != "" {
		all = append(all, port{"tool", c.toolPath()})
	}
	return all
}

// portFD is the number in QEMU of port i's listener.
func (c Config) portFD(i int) int { return guestFD(len(c.NICs)) + i }

// withDefaults returns c with every optional choice made, except those that
// need the host to be asked.
func (c Config) withDefaults() Config {
	if c.Binary == "" {
		c.Binary = DefaultBinary
	}
	if c.Accel == "" {
		c.Accel = Auto
	}
	return c
}

func (c Config) memoryPath() string  { return filepath.Join(c.MemoryDir, c.Name+".ram") }
func (c Config) qmpPath() string     { return filepath.Join(c.Dir, "qmp.sock") }
func (c Config) guardPath() string   { return filepath.Join(c.Dir, "guard.sock") }
func (c Config) consolePath() string { return filepath.Join(c.Dir, "console.log") }
func (c Config) agentPath() string   { return filepath.Join(c.Dir, "agent.sock") }
func (c Config) toolPath() string    { return filepath.Join(c.Dir, "tool.sock") }
func (c Config) disksPath() string   { return filepath.Join(c.Dir, "disks.sock") }
func (c Config) logPath() string     { return filepath.Join(c.Dir, "qemu.log") }

// migratedPath holds the record of a guest saved by migration, which cannot be
// migrated again before it has run.
func (c Config) migratedPath() string { return filepath.Join(c.Dir, "devices.migrated") }

func (c Config) statePath() string { return filepath.Join(c.Dir, "state.json") }
