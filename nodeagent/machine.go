package nodeagent

import (
	"context"
	"os"

	"fermata/vmm"
	"fermata/vmm/qemu"
)

// machine is what the agent asks of a guest's virtual machine.
type machine interface {
	vmm.Machine
	vmm.NICHolder
	vmm.Process
	vmm.ClockStepper
	vmm.Locator
	vmm.ToolHolder
	vmm.DiskWatcher
	vmm.DiskFlusher

	// Describe returns what a restart of the guest must find.
	Describe(ctx context.Context) (qemu.Description, error)
	// State returns the record by which a later agent finds the machine.
	State() qemu.State
	// ReadySave makes ready what SaveDevices needs, while the guest runs, and refuses
	// a machine that cannot be saved.
	ReadySave(ctx context.Context) error
	// Trackable says why the guest's memory cannot be captured live, or nil.
	Trackable(ctx context.Context) error
	// ExitReason says why the guest has ended, in words that follow its name; empty:
	// it has not.
	ExitReason() string
	// ConsolePath is the file that holds what the guest printed; empty: none does.
	ConsolePath() string
	// TAPName is the device of a card on a bridge.
	TAPName(nic string) (string, error)
	// GuardConnection is for the guard; nil when it can make one of its own.
	GuardConnection(ctx context.Context) (*os.File, error)
}

var _ machine = (*qemu.Machine)(nil)
