package vmm

import "errors"

// Errors that drivers report, always wrapped; test with errors.Is.
var (
	// ErrGone: the machine's process has ended, or is not the one that was
	// recorded.
	ErrGone = errors.New("machine is gone")
	// ErrDetached: the handle was given up with Detach.
	ErrDetached = errors.New("handle is detached")
	// ErrNotStopped: the call needs a stopped guest.
	ErrNotStopped = errors.New("guest is not stopped")
	// ErrIncoming: the machine still waits for its device state.
	ErrIncoming = errors.New("machine waits for its device state")
	// ErrNotIncoming: the machine was not launched to take a device state, or
	// has taken one already.
	ErrNotIncoming = errors.New("machine does not wait for a device state")
	// ErrNoSpace: guest RAM does not fit where its file would lie.
	ErrNoSpace = errors.New("no space for guest memory")
	// ErrUnfitMemory: guest RAM would lie on a file system that cannot be
	// write-protected page by page (neither tmpfs nor hugetlbfs).
	ErrUnfitMemory = errors.New("unfit for guest memory")
	// ErrStateSize: a device state of a size that cannot be right; RAM went
	// into it.
	ErrStateSize = errors.New("device state of impossible size")
	// ErrUnsavable: the monitor cannot save the state of one of the machine's
	// devices; the error names it.
	ErrUnsavable = errors.New("guest cannot be saved")
	// ErrDisk: a disk does not answer, or refuses to write; the error names it.
	ErrDisk = errors.New("disk fails")
	// ErrCorrupt: bytes that no SaveDevices returned. Never worth a retry.
	ErrCorrupt = errors.New("device state is corrupt")
	// ErrIncompatible: a checkpoint's machine and this one differ.
	ErrIncompatible = errors.New("machines are incompatible")
	// ErrUnsupported: the monitor lacks what was asked for.
	ErrUnsupported = errors.New("not supported by the monitor")
	// ErrUntrackable: writes to the guest's memory cannot be seen from outside,
	// for a reason that the error tells, with the way out.
	ErrUntrackable = errors.New("guest memory cannot be tracked")
	// ErrForeign: the call is not for a machine that somebody else started, or
	// what somebody else started is no machine that can be adopted; the error
	// tells why.
	ErrForeign = errors.New("machine belongs to somebody else")
	// ErrNotRAM: a range of guest-physical addresses is not the guest's memory.
	ErrNotRAM = errors.New("not guest memory")
	// ErrIOError: the guest stands still because the host could not carry out a request
	// of one of its disks.
	ErrIOError = errors.New("an error of its disk keeps the guest from running")
	// ErrUnknownNIC: the machine has no card of that name.
	ErrUnknownNIC = errors.New("no such network card")
)
