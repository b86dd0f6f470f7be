// Package vmm says what the rest of Fermata may ask of a virtual machine
// monitor. It owns the Machine interface, the small optional abilities beside
// it and the errors that every driver reports; it starts nothing itself.
//
// A Machine is one guest of a cluster. Its RAM lies in a named shared file
// that the caller maps as well, so a checkpoint reads guest memory without a
// copy through the monitor; a driver hands out only the device state.
//
// Drivers: vmm/qemu. Every driver, and the fake in vmm/vmmtest, passes the
// contract suite of vmm/vmmtest.
package vmm

import (
	"context"
	"net"
	"os"

	"fermata/imageio/extent"
)

// Machine is one guest and the process that runs it.
//
// Concurrency: all methods may be called from any goroutine. Stop, Continue,
// SaveDevices and LoadDevices take turns; the others, Kill among them, wait for
// none of these.
//
// A call whose context ends before the monitor answered reports an error that
// wraps the context's cause: whether the monitor still did the work is unknown.
// Stop, Continue and Kill are idempotent, so asking again settles it.
type Machine interface {
	// Name is the guest's name; it never changes.
	Name() string

	// Status asks the monitor for the guest's run state. A machine whose
	// process has ended is StatusDead, without an error.
	Status(ctx context.Context) (Status, error)

	// Stop returns when all vCPUs stand still and the guest's block I/O has
	// reached the host, both confirmed by the monitor. It is idempotent. A guest
	// that stands still because of an error of its disk cannot be stopped: its
	// request has not reached the host, and Stop reports ErrIOError. An error that
	// wraps ErrDisk is of a guest that stands still and has data on no disk.
	Stop(ctx context.Context) error

	// Continue lets a stopped guest run and returns when the monitor says it
	// does. It is idempotent. A guest whose disks meet the same error again at once
	// stands still again: ErrIOError. A machine that still waits for its device state
	// reports ErrIncoming: it would otherwise start by itself in the middle of
	// LoadDevices.
	Continue(ctx context.Context) error

	// Memory lists the RAM blocks. The result is the caller's.
	Memory() []Memory

	// SaveDevices returns the state of everything but the RAM of Memory.
	//
	// Preconditions: the guest is stopped, else ErrNotStopped.
	// Postconditions: the guest is still stopped, and RAM will not change until
	// Continue. It may have changed during the call: copy RAM afterwards.
	SaveDevices(ctx context.Context) ([]byte, error)

	// LoadDevices gives the machine a state that SaveDevices returned and leaves
	// the guest stopped.
	//
	// Preconditions: the machine was launched to wait for a state, else
	// ErrNotIncoming. RAM already holds what was copied after SaveDevices (or
	// its faults are being served): devices read their rings from it here.
	// On error: the machine is of no use any more; Kill it. Only a state refused
	// with ErrCorrupt or ErrStateSize has not been shown to the monitor, so the
	// machine still waits.
	LoadDevices(ctx context.Context, state []byte) (Loaded, error)

	// Exited is closed once the process has ended, for whatever reason; after
	// Detach it may never be.
	Exited() <-chan struct{}

	// Kill ends the process without mercy, waits until it is gone and removes
	// what it held on the host: RAM files and sockets. It is idempotent and
	// also cleans up after a process that ended by itself.
	Kill(ctx context.Context) error

	// Detach lets go of this handle and leaves the guest as it is. Afterwards
	// the handle's other methods report ErrDetached. It is idempotent.
	Detach() error
}

// Loaded says what a device state lacked. States of earlier versions hold no firmware,
// without which a guest runs on and cannot reboot.
type Loaded struct {
	Replaced []string // memory blocks that were filled with this host's firmware, each with its file
	Missing  []string // memory blocks that stay empty until the machine is launched anew
}

// Memory is one RAM block of a guest.
type Memory struct {
	Name   string `json:"name"`   // the monitor's name of the block, the same after a restart
	Path   string `json:"path"`   // the file through which it is read and written
	Offset int64  `json:"offset"` // where it begins in that file, bytes
	Size   uint64 `json:"size"`   // bytes

	// Addr is where it begins in the machine's process; 0: wherever the process
	// maps Path.
	Addr uint64 `json:"addr,omitempty"`
}

// OfProcess tells memory that is reached only through the process itself
// (proc_pid_mem(5)): it cannot be mapped, and has no holes that could be asked for
// or made.
func (m Memory) OfProcess() bool { return m.Addr != 0 && m.Offset == int64(m.Addr) }

// NICHolder is implemented by machines that keep both ends of their network
// cards' sockets open in their own process. A caller that lost its own copies
// (the node agent after a restart) gets them back from there; without this
// ability frames that wait in the sockets would be lost with the caller.
type NICHolder interface {
	// NICFiles returns new descriptors for the two ends of a card's socket
	// pair: keep is the switch's end, guest the monitor's. The caller closes
	// both. They share file status flags with every other copy.
	NICFiles(nic string) (keep, guest *os.File, err error)
}

// Process is implemented by machines that are an operating system process
// whose memory can be protected from outside.
type Process interface {
	PID() int

	// Lend gives the process a descriptor and returns its number there; done takes
	// it back. The file stays the caller's.
	Lend(ctx context.Context, file *os.File) (number int, done func() error, err error)
}

// DiskFlusher is implemented by machines that can ask their disks for an answer while
// the guest runs. Stop waits for all disks, however long they take, and a guest whose
// disk hangs stands still until it answers: ask first.
type DiskFlusher interface {
	// FlushDisks returns when every disk that the guest writes to has written everything
	// out, and every disk has answered a request, if it has any. The guest runs meanwhile.
	//
	// Errors wrap ErrDisk when a disk has not answered within the context, or has refused.
	FlushDisks(ctx context.Context) error
}

// ClockStepper is implemented by machines that may tell their guest what time it is.
type ClockStepper interface {
	// StepClock sets the guest's real-time clock to the host's, and returns when the
	// guest has done so. Its monotonic clock goes on.
	//
	// Preconditions: the guest runs.
	// Errors wrap ErrUnsupported when the machine has no way to tell it.
	StepClock(ctx context.Context) error
}

// Part is a part of one RAM block.
type Part struct {
	Block string        // its name in Memory
	Where extent.Extent // in the block
}

// Locator is implemented by machines that know where guest-physical memory lies in
// their RAM blocks.
type Locator interface {
	// Locate returns what of the blocks of Memory the guest sees at guest-physical
	// addresses, in their order.
	//
	// Errors wrap ErrNotRAM if some of them is no memory of a block.
	Locate(ctx context.Context, addresses extent.Set) ([]Part, error)
}

// ToolHolder is implemented by machines whose guest has a port by which a program in it
// speaks to whoever holds the machine.
type ToolHolder interface {
	// DialTool connects to the port. One caller at a time.
	//
	// Errors wrap ErrUnsupported if there is none.
	DialTool(ctx context.Context) (net.Conn, error)
}

// DiskWatcher is implemented by machines that can name the disks for which their guest
// stands still (StatusIOError).
type DiskWatcher interface {
	// DiskErrors returns the disks whose errors keep the guest from running. None: it
	// does not stand still for a disk.
	DiskErrors(ctx context.Context) ([]DiskError, error)
}

// DiskError is why a disk keeps its guest from running.
type DiskError struct {
	Disk    string // its name in the configuration; of a machine that somebody else started, the monitor's
	NoSpace bool   // no room on the host; false: any other error
}

// Status is the run state of a guest. The zero value is not a status.
type Status int

const (
	// StatusRunning: vCPUs run.
	StatusRunning Status = iota + 1
	// StatusPaused: vCPUs stand still and Continue makes them run. A fresh
	// machine begins here.
	StatusPaused
	// StatusIncoming: the machine waits for LoadDevices.
	StatusIncoming
	// StatusFailed: the guest stands still because something broke (a disk, the
	// guest itself, the monitor); Continue may not help.
	StatusFailed
	// StatusDead: the process has ended.
	StatusDead
	// StatusIOError: the guest stands still because the host could not carry out a
	// request of one of its disks; see DiskWatcher. Continue repeats the request.
	StatusIOError
)

// String returns the lower-case word used in logs.
func (s Status) String() string {
	switch s {
	case StatusRunning:
		return "running"
	case StatusPaused:
		return "paused"
	case StatusIncoming:
		return "incoming"
	case StatusFailed:
		return "failed"
	case StatusDead:
		return "dead"
	case StatusIOError:
		return "stopped by a disk error"
	default:
		return "invalid"
	}
}
