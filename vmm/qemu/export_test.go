package qemu

import (
	"context"
	"fmt"
	"os"
)

// ReadBlocks returns the content of every RAM block of the machine, by name.
func (m *Machine) ReadBlocks(ctx context.Context) (map[string][]byte, error) {
	blocks, err := m.findBlocks(ctx)
	if err != nil {
		return nil, err
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", m.PID()))
	if err != nil {
		return nil, err
	}
	defer mem.Close()
	all := map[string][]byte{}
	for _, b := range blocks {
		data := make([]byte, b.used)
		if _, err := mem.ReadAt(data, int64(b.host)); err != nil {
			return nil, fmt.Errorf("memory block %s: %w", b.name, err)
		}
		all[b.name] = data
	}
	return all, nil
}

// Version1 makes of a device state one as version 1 framed it: without firmware.
func Version1(state []byte) ([]byte, error) {
	s, err := decodeRecord(state)
	if err != nil {
		return nil, err
	}
	return encodeVersion1(s.method, s.stream), nil
}
