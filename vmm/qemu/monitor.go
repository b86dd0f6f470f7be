package qemu

import (
	"context"
	"errors"
	"fmt"
	"time"

	"fermata/vmm"
	"fermata/vmm/qmp"
)

// connect returns the connection to the monitor, dialling it anew when the last
// one has broken.
func (m *Machine) connect(ctx context.Context) (*qmp.Client, error) {
	select {
	case m.dialling <- struct{}{}:
		defer func() { <-m.dialling }()
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for the monitor: %w", context.Cause(ctx))
	}
	if mon, err := m.connection(); mon != nil || err != nil {
		return mon, err
	}
	mon, err := qmp.Dial(ctx, m.state.QMPPath)
	if err != nil {
		return nil, m.explain(ctx, err)
	}
	m.mu.Lock()
	detached := m.detached
	if !detached {
		m.monitor = mon
		m.heed(mon)
	}
	m.mu.Unlock()
	if detached {
		return nil, errors.Join(vmm.ErrDetached, mon.Close())
	}
	return mon, nil
}

// connection returns the connection if it lives.
func (m *Machine) connection() (*qmp.Client, error) {
	if _, ended := m.proc.hasExited(); ended {
		return nil, m.gone()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.detached {
		return nil, vmm.ErrDetached
	}
	if m.monitor == nil {
		return nil, nil
	}
	select {
	case <-m.monitor.Done():
		m.monitor = nil
	default:
	}
	return m.monitor, nil
}

func (m *Machine) closeMonitor() error {
	m.mu.Lock()
	mon := m.monitor
	m.monitor = nil
	m.mu.Unlock()
	if mon == nil {
		return nil
	}
	return mon.Close()
}

// explain adds vmm.ErrGone to the error of a connection that broke because the
// process ended, so that callers need not guess from an end of file.
func (m *Machine) explain(ctx context.Context, err error) error {
	var refusal *qmp.Error
	if err == nil || ctx.Err() != nil || errors.As(err, &refusal) {
		return err
	}
	if m.isDetached() {
		return fmt.Errorf("%w: %w", vmm.ErrDetached, err)
	}
	grace, cancel := context.WithTimeout(ctx, exitGrace)
	defer cancel()
	select {
	case <-m.proc.exited:
		return fmt.Errorf("%w: %w", m.gone(), err)
	case <-grace.Done():
		return err
	}
}

// execute runs one command on the monitor.
func (m *Machine) execute(ctx context.Context, name string, arguments, result any) error {
	mon, err := m.connect(ctx)
	if err != nil {
		return err
	}
	return m.explain(ctx, mon.Execute(ctx, name, arguments, result))
}

// batch runs commands that are sent together; see qmp.Client.Batch.
func (m *Machine) batch(ctx context.Context, calls ...*qmp.Call) error {
	mon, err := m.connect(ctx)
	if err != nil {
		return err
	}
	return m.explain(ctx, mon.Batch(ctx, calls...))
}

// human runs a command of the human monitor: some things are told there only.
func (m *Machine) human(ctx context.Context, line string) (out string, err error) {
	err = m.execute(ctx, "human-monitor-command", map[string]string{"command-line": line}, &out)
	return out, err
}

func (m *Machine) runState(ctx context.Context) (qmp.RunState, error) {
	var s qmp.RunState
	if err := m.execute(ctx, "query-status", nil, &s); err != nil {
		return s, err
	}
	m.saw(s)
	return s, nil
}

// saw notes that the machine does not wait for a state: it never will again.
func (m *Machine) saw(s qmp.RunState) {
	if statusOf(s) != vmm.StatusIncoming {
		m.settled.Store(true)
	}
}

// takeTurn waits until no other call works on the machine. The caller gives
// the turn back by calling done.
func (m *Machine) takeTurn(ctx context.Context) (done func(), err error) { return take(ctx, m.turn) }

// take takes a lock of a machine.
func take(ctx context.Context, lock chan struct{}) (done func(), err error) {
	select {
	case lock <- struct{}{}:
		return func() { <-lock }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for another call on the guest: %w", context.Cause(ctx))
	}
}

// poll calls ready until it says yes, with pauses that grow from first to at
// most most. QMP has events for some of these conditions, but an event may be
// missing, and the pause is over before a slow reader has one.
func poll(ctx context.Context, first, most time.Duration, ready func() (bool, error)) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for wait := first; ; wait = min(2*wait, most) {
		select {
		case <-timer.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		ok, err := ready()
		if ok || err != nil {
			return err
		}
		timer.Reset(wait)
	}
}
