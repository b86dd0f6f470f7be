package qemu

import (
	"context"
	"fmt"
	"net"

	"fermata/vmm"
	"fermata/vmm/qmp"
)

// DialTool implements vmm.ToolHolder.
func (m *Machine) DialTool(ctx context.Context) (net.Conn, error) {
	if m.state.Config.ToolPort == "" {
		return nil, fmt.Errorf("guest %s: %w: it has no port for a tool", m.Name(), vmm.ErrUnsupported)
	}
	return m.dialPort(ctx, m.state.Config.toolPath())
}

// dialPort connects to the host's end of a virtio-serial port.
func (m *Machine) dialPort(ctx context.Context, path string) (net.Conn, error) {
	conn, err := qmp.Connect(ctx, path)
	if err != nil {
		return nil, m.explain(ctx, err)
	}
	return conn, nil
}
