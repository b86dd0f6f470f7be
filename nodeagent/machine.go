package nodeagent

import (
	"context"

	"fermata/vmm"
	"fermata/vmm/qemu"
)

// machine is what the agent asks of a guest's virtual machine.
type machine interface {
	vmm.Machine
	vmm.NICHolder
	vmm.Process

	// Describe returns what a restart of the guest must find.
	Describe(ctx context.Context) (qemu.Description, error)
	// State returns the record by which a later agent finds the machine.
	State() qemu.State
	// Trackable says why the guest's memory cannot be captured live, or nil.
	Trackable(ctx context.Context) error
	// ConsolePath is the file that holds what the guest printed.
	ConsolePath() string
}

var _ machine = (*qemu.Machine)(nil)
