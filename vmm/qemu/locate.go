package qemu

import (
	"context"
	"fmt"
	"strings"

	"fermata/imageio/extent"
	"fermata/vmm"
)

// Locate implements vmm.Locator by "info mtree -f".
func (m *Machine) Locate(ctx context.Context, addresses extent.Set) ([]vmm.Part, error) {
	if addresses.Empty() {
		return nil, nil
	}
	text, err := m.human(ctx, "info mtree -f")
	if err != nil {
		return nil, err
	}
	return locate(parseViews(flatMemory(text)), m.Memory(), addresses)
}

// flatMemory is the part of "info mtree -f" about the address space "memory", which is
// what processors see.
func flatMemory(text string) string {
	for _, part := range strings.Split(text, "FlatView #") {
		if strings.Contains(part, `AS "memory"`) {
			return part
		}
	}
	return ""
}

func locate(views []view, blocks []vmm.Memory, addresses extent.Set) (parts []vmm.Part, err error) {
	for e := range addresses.All() {
		for at := e.Off; at < e.End(); {
			part, err := partAt(views, blocks, uint64(at), e.End()-at)
			if err != nil {
				return nil, err
			}
			parts = append(parts, part)
			at += part.Where.Len
		}
	}
	return parts, nil
}

// partAt finds the memory at an address, at most so many bytes of it.
func partAt(views []view, blocks []vmm.Memory, at uint64, most int64) (vmm.Part, error) {
	for _, v := range views {
		if at < v.guest || at > v.last {
			continue
		}
		for _, b := range blocks {
			offset := v.offset + at - v.guest
			if !v.is(b.Name) || offset >= b.Size {
				continue
			}
			n := min(most, int64(v.last-at+1), int64(b.Size-offset))
			return vmm.Part{Block: b.Name, Where: extent.Extent{Off: int64(offset), Len: n}}, nil
		}
	}
	return vmm.Part{}, fmt.Errorf("address %#x: %w", at, vmm.ErrNotRAM)
}
