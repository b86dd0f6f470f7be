package qemu

import (
	"context"
	"fmt"
	"net"

	"fermata/vmm"
)

// DialTool implements vmm.ToolHolder.
func (m *Machine) DialTool(ctx context.Context) (net.Conn, error) {
	if m.state.Config.ToolPort == "" {
		return nil, fmt.Errorf("guest %s: %w: it has no port for a tool", m.Name(), vmm.ErrUnsupported)
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", m.state.Config.toolPath())
	if err != nil {
		return nil, m.explain(ctx, err)
	}
	return conn, nil
}
