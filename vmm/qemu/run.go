package qemu

import (
	"context"
	"fmt"

	"fermata/vmm"
)

// Stop implements vmm.Machine. The command is given even to a guest that
// stands still: it is what drains block I/O.
func (m *Machine) Stop(ctx context.Context) error {
	done, err := m.takeTurn(ctx)
	if err != nil {
		return fmt.Errorf("stop guest %s: %w", m.Name(), err)
	}
	defer done()
	if err := m.execute(ctx, "stop", nil, nil); err != nil {
		return fmt.Errorf("stop guest %s: %w", m.Name(), err)
	}
	if err := m.confirm(ctx, func(s vmm.Status) bool { return s != vmm.StatusRunning }); err != nil {
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
	status, err := m.queryStatus(ctx)
	if err != nil {
		return err
	}
	switch status {
	case vmm.StatusRunning:
		return nil
	case vmm.StatusIncoming:
		return vmm.ErrIncoming
	}
	if err := m.execute(ctx, "cont", nil, nil); err != nil {
		return err
	}
	return m.confirm(ctx, func(s vmm.Status) bool { return s == vmm.StatusRunning })
}

// confirm asks for the guest's status after a command that QEMU carries out
// before it answers. A status other than the one wanted means that the guest
// failed at once, or that somebody else drives it.
func (m *Machine) confirm(ctx context.Context, wanted func(vmm.Status) bool) error {
	s, err := m.runState(ctx)
	if err != nil {
		return err
	}
	if status := statusOf(s); !wanted(status) {
		return fmt.Errorf("the monitor obeyed, but the guest is %s (%s)", status, s.Status)
	}
	return nil
}
