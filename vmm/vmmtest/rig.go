// Package vmmtest is the contract suite of vmm.Machine: what the rest of
// Fermata relies on, told as the life of one guest. It owns the small program
// that this guest runs, and a fake machine for tests that need a guest and no
// monitor; the fake passes the same suite.
//
// A driver describes itself with a Rig and calls Run from a test.
package vmmtest

import (
	"context"
	"os"

	"golang.org/x/sys/unix"

	"fermata/vmm"
)

// Rig is one way to have machines.
type Rig struct {
	// MemoryDir is where RAM files may be made. The suite makes directories of
	// its own in it and removes them.
	MemoryDir string

	// Launch starts a machine that runs Program in ProgramMemory bytes, or
	// waits for a device state.
	Launch func(context.Context, Spec) (Guest, error)

	// LaunchBroken tries a launch that fails after the machine has begun to
	// exist. What it reports is the launch's error.
	LaunchBroken func(context.Context, Spec) error

	// Crash ends the machine as a fault would: not through its handle.
	Crash func(Guest) error
}

// Spec is what the suite asks of a machine.
type Spec struct {
	Name      string
	Dir       string // for sockets and logs; exists not yet
	MemoryDir string // for the RAM file; exists
	Incoming  bool

	// The one network card. Both files stay the suite's.
	NIC  string
	MAC  string
	File *os.File // the machine's end
	Keep *os.File // the suite's end
}

// Guest is a machine under test.
type Guest struct {
	vmm.Machine

	// Console is the file with what the program wrote.
	Console string

	// Reattach returns a second handle on the machine, as after the agent was
	// restarted. The first has been detached from.
	Reattach func(context.Context) (Guest, error)
}

// SocketPair returns the two ends of a datagram socket pair for a network
// card: file for the machine, keep for the switch.
func SocketPair() (file, keep *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	return os.NewFile(uintptr(fds[0]), "network card"), os.NewFile(uintptr(fds[1]), "network card peer"), nil
}
