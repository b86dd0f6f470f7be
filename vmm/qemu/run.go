package qemu

import (
	"context"
	"fmt"

	"fermata/vmm"
	"fermata/vmm/qmp"
)

// Stop implements vmm.Machine. The command is given even to a guest that
// stands still: it is what drains block I/O.
func (m *Machine) Stop(ctx context.Context) error {
	done, err := m.takeTurn(ctx)
	if err != nil {
		return fmt.Errorf("stop guest %s: %w", m.Name(), err)
	}
	defer done()
	err = m.command(ctx, "stop", func(s vmm.Status) bool { return s != vmm.StatusRunning && s != vmm.StatusIOError })
	if err == nil {
		err = m.confirmFlush(ctx)
	}
	if err != nil {
		return fmt.Errorf("stop guest %s: %w", m.Name(), err)
	}
	return nil
}

// Continue implements vmm.Machine.
func (m *Machine) Continue(ctx context.Context) error {
	done, err := m.takeTurn(ctx)
	if err != nil {
		return fmt.Errorf("continue guest %s: %w", m.Name(), err)
	}
	defer done()
	if err := m.cont(ctx); err != nil {
		return fmt.Errorf("continue guest %s: %w", m.Name(), err)
	}
	return nil
}

func (m *Machine) cont(ctx context.Context) error {
	if !m.settled.Load() {
		status, err := m.queryStatus(ctx)
		if err != nil {
			return err
		}
		if status == vmm.StatusIncoming {
			return vmm.ErrIncoming
		}
	}
	return m.command(ctx, "cont", func(s vmm.Status) bool { return s == vmm.StatusRunning })
}

// command has the monitor carry out a command and asks for the guest's status in
// the same breath: a pause is no time to wait for two answers. A status other
// than the one wanted means that the guest failed at once, or that somebody else
// drives it.
func (m *Machine) command(ctx context.Context, name string, wanted func(vmm.Status) bool) error {
	var s qmp.RunState
	obeyed, asked := &qmp.Call{Name: name}, &qmp.Call{Name: "query-status", Result: &s}
	if err := m.batch(ctx, obeyed, asked); err != nil {
		return err
	}
	m.saw(s)
	status := statusOf(s)
	switch {
	case wanted(status):
		return nil
	case status == vmm.StatusIOError:
		return vmm.ErrIOError
	default:
		return fmt.Errorf("the monitor obeyed, but the guest is %s (%s)", status, s.Status)
	}
}
