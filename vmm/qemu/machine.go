package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"fermata/vmm"
	"fermata/vmm/qmp"
)

var (
	_ vmm.Machine   = (*Machine)(nil)
	_ vmm.NICHolder = (*Machine)(nil)
	_ vmm.Process   = (*Machine)(nil)

	_ vmm.DiskWatcher = (*Machine)(nil)
	_ vmm.DiskFlusher = (*Machine)(nil)
)

// exitGrace is how long after the monitor's connection broke QEMU's end is
// waited for: the kernel closes a dying process's sockets before it reports its
// end, and freeing much RAM lies in between.
const exitGrace = 2 * time.Second

// Machine is a handle on one running QEMU process. See vmm.Machine for the
// contract of its methods.
type Machine struct {
	state State    // immutable
	proc  *process // immutable

	// turn is a lock that a context can give up waiting for. It keeps Stop,
	// Continue, SaveDevices and LoadDevices apart: a Continue in the middle of a
	// save would cut RAM and devices at different instants.
	turn     chan struct{}
	save     saveFile // guarded by turn; what SaveDevices has QEMU write to
	firmware firmware // guarded by turn; what SaveDevices reads beside that

	// asking is such a lock, too: held to ask disks for an answer.
	asking chan struct{}
	disks  []*diskClient // guarded by asking; of the disks that the guest writes to

	// dialling is one, too: held to replace monitor.
	dialling chan struct{}

	settled atomic.Bool // the machine was seen not to wait for a state, and never will again

	mu       sync.Mutex
	monitor  *qmp.Client // guarded by mu; nil before the first use and after an end
	heeder   *heeder     // guarded by mu; of the newest connection, nil before the first
	ending   string      // guarded by mu; why the guest ends, as the monitor has said
	detached bool        // guarded by mu; only becomes true
}

func newMachine(state State, proc *process) *Machine {
	return &Machine{state: state, proc: proc, turn: make(chan struct{}, 1), asking: make(chan struct{}, 1), dialling: make(chan struct{}, 1)}
}

// Attach returns a handle on a machine that an earlier process launched. It
// has every ability of the first handle. The error wraps vmm.ErrGone when the
// process has ended, when its number belongs to another one, or when the host
// was booted since.
func Attach(ctx context.Context, s State) (*Machine, error) {
	proc, err := s.open()
	if err != nil {
		return nil, fmt.Errorf("attach to guest %s: %w", s.Config.Name, err)
	}
	m := newMachine(s, proc)
	status, err := m.Status(ctx)
	if err == nil && status == vmm.StatusDead {
		err = m.gone()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("attach to guest %s: %w", s.Config.Name, err), m.Detach())
	}
	return m, nil
}

// State returns the record for Attach.
func (m *Machine) State() State { return m.state }

// Name implements vmm.Machine.
func (m *Machine) Name() string { return m.state.Config.Name }

// PID implements vmm.Process.
func (m *Machine) PID() int { return m.proc.pid }

// ConsolePath is the file that holds what the guest wrote to its serial port;
// empty for one that somebody else started.
func (m *Machine) ConsolePath() string { return m.state.ConsolePath }

// Memory implements vmm.Machine.
func (m *Machine) Memory() []vmm.Memory {
	if f := m.state.Foreign; f != nil {
		return slices.Clone(f.Memory)
	}
	return []vmm.Memory{{Name: ramID, Path: m.state.MemoryPath, Size: m.state.Config.MemoryBytes}}
}

// Describe returns what a restart of this guest must find, with the version of
// the QEMU that runs it and what its processor lacks.
func (m *Machine) Describe(ctx context.Context) (Description, error) {
	mon, err := m.connect(ctx)
	if err != nil {
		return Description{}, fmt.Errorf("describe guest %s: %w", m.Name(), err)
	}
	d := m.state.Description
	d.QEMU = mon.Greeting().Version.String()
	if d.CPUMissing, err = m.missingFeatures(ctx); err != nil {
		return Description{}, fmt.Errorf("describe guest %s: %w", m.Name(), err)
	}
	if m.state.Foreign != nil { // its owner may have plugged something in or out
		if d.Devices, err = m.foreignDevices(ctx); err != nil {
			return Description{}, fmt.Errorf("describe guest %s: %w", m.Name(), err)
		}
	}
	return d, nil
}

// Exited implements vmm.Machine.
func (m *Machine) Exited() <-chan struct{} { return m.proc.exited }

// ExitReason says why the guest has ended, in words that follow its name: what the monitor
// reported, else how the process ended and what it said last. It is empty while the process lives.
func (m *Machine) ExitReason() string {
	reason, ended := m.proc.hasExited()
	if !ended {
		return ""
	}
	if heard := m.heard(); heard != "" {
		return heard
	}
	reason = "its QEMU ended: " + reason
	if said := logTail(m.state.LogPath); said != "" {
		return reason + ": " + said
	}
	return reason
}

// Status implements vmm.Machine.
func (m *Machine) Status(ctx context.Context) (vmm.Status, error) {
	s, err := m.queryStatus(ctx)
	if errors.Is(err, vmm.ErrGone) {
		return vmm.StatusDead, nil
	}
	if err != nil {
		return 0, fmt.Errorf("status of guest %s: %w", m.Name(), err)
	}
	return s, nil
}

func (m *Machine) queryStatus(ctx context.Context) (vmm.Status, error) {
	s, err := m.runState(ctx)
	if err != nil {
		return 0, err
	}
	return statusOf(s), nil
}

// statusOf translates QEMU's run states (qapi/run-state.json). A word that is
// not known is never taken for a guest that could be saved.
func statusOf(s qmp.RunState) vmm.Status {
	if s.Running {
		return vmm.StatusRunning
	}
	switch s.Status {
	case "paused", "prelaunch", "postmigrate":
		return vmm.StatusPaused
	case "io-error":
		return vmm.StatusIOError
	case "inmigrate":
		return vmm.StatusIncoming
	default:
		return vmm.StatusFailed
	}
}

// Kill implements vmm.Machine.
func (m *Machine) Kill(ctx context.Context) error {
	if m.isDetached() {
		return fmt.Errorf("kill guest %s: %w", m.Name(), vmm.ErrDetached)
	}
	if m.state.Foreign != nil {
		return fmt.Errorf("kill guest %s: %w", m.Name(), vmm.ErrForeign)
	}
	if err := m.proc.kill(ctx); err != nil {
		return fmt.Errorf("kill guest %s: %w", m.Name(), err)
	}
	if err := errors.Join(m.closeMonitor(), m.state.remove()); err != nil {
		return fmt.Errorf("clean up after guest %s: %w", m.Name(), err)
	}
	return nil
}

// Detach implements vmm.Machine. A machine that this process launched and
// detached from stays a zombie when it ends, until some handle on it is open
// again or this process ends.
func (m *Machine) Detach() error {
	ctx, cancel := context.WithTimeout(context.Background(), cleanupTime)
	defer cancel()
	if done, err := m.takeTurn(ctx); err == nil {
		m.dropSave(ctx)
		m.dropFirmware()
		done()
	}
	if done, err := take(ctx, m.asking); err == nil {
		m.dropDisks()
		done()
	}
	m.mu.Lock()
	m.detached = true
	m.mu.Unlock()
	return errors.Join(m.closeMonitor(), m.proc.release())
}

func (m *Machine) isDetached() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.detached
}

// gone is the error of a call on a machine whose process has ended.
func (m *Machine) gone() error { return fmt.Errorf("%w: %s", vmm.ErrGone, m.ExitReason()) }

// TAPName is the name of the device that a card on a TAP has, in the network namespace
// it was made in.
//
// Source: the "iff" line of a TAP's /proc/PID/fdinfo (tun_chr_show_fdinfo in
// drivers/net/tun.c).
func (m *Machine) TAPName(nic string) (string, error) {
	for i, n := range m.state.Config.NICs {
		if n.Name != nic || !n.TAP {
			continue
		}
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%d", m.PID(), guestFD(i)))
		if err != nil {
			return "", fmt.Errorf("device of network card %s: %w", nic, err)
		}
		for line := range strings.Lines(string(b)) {
			if name, ok := strings.CutPrefix(line, "iff:"); ok {
				return strings.TrimSpace(name), nil
			}
		}
	}
	return "", fmt.Errorf("device of network card %s: %w", nic, vmm.ErrUnknownNIC)
}

// NICFiles implements vmm.NICHolder.
func (m *Machine) NICFiles(nic string) (keep, guest *os.File, err error) {
	if m.isDetached() {
		return nil, nil, fmt.Errorf("files of network card %s: %w", nic, vmm.ErrDetached)
	}
	for i, n := range m.state.Config.NICs {
		if n.Name != nic {
			continue
		}
		keep, err = m.proc.takeFile(keepFD(i), nic+" keep")
		if err != nil {
			return nil, nil, fmt.Errorf("files of network card %s: %w", nic, err)
		}
		guest, err = m.proc.takeFile(guestFD(i), nic+" guest")
		if err == nil {
			err = errors.Join(datagramSocket(keep), datagramSocket(guest))
		}
		if err != nil {
			keep.Close()
			if guest != nil {
				guest.Close()
			}
			return nil, nil, fmt.Errorf("files of network card %s: %w", nic, err)
		}
		return keep, guest, nil
	}
	return nil, nil, fmt.Errorf("%w: %s", vmm.ErrUnknownNIC, nic)
}
