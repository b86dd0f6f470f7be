package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"fermata/vmm"
)

// firmware is where the RAM blocks lie that are part of the device state and not of
// Memory: firmware, ROMs, ACPI tables. QEMU does not write them into the stream of
// xen-save-devices-state, and a machine that waits for a state leaves them empty.
type firmware struct {
	mem    *os.File   // the memory of QEMU's process
	blocks []ramBlock // all of the machine
}

// isMain reports whether a block is one of Memory, which the caller saves.
func (m *Machine) isMain(block string) bool {
	return slices.ContainsFunc(m.Memory(), func(mem vmm.Memory) bool { return mem.Name == block })
}

// readyFirmware finds the blocks, unless nothing has changed since they were found.
//
// Preconditions: the caller has the turn.
func (m *Machine) readyFirmware(ctx context.Context) error {
	now, err := m.listBlocks(ctx)
	if err != nil {
		return err
	}
	if err := m.refuseBlocks(now); err != nil {
		return err
	}
	if m.firmware.mem != nil && m.knownBlocks(now) == nil {
		return nil
	}
	m.dropFirmware()
	blocks, err := m.findBlocks(ctx)
	if err != nil {
		return err
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", m.PID()))
	if err != nil {
		return err
	}
	m.firmware = firmware{mem: mem, blocks: blocks}
	return nil
}

func (m *Machine) dropFirmware() {
	if m.firmware.mem != nil {
		_ = m.firmware.mem.Close() // only read
	}
	m.firmware = firmware{}
}

// knownBlocks reports whether the machine still has the blocks that were found, at
// the same addresses.
func (m *Machine) knownBlocks(now []ramBlock) error {
	if err := m.refuseBlocks(now); err != nil {
		return err
	}
	if len(now) != len(m.firmware.blocks) {
		return fmt.Errorf("%w: it has %d memory blocks now, and had %d", errMemoryChanged, len(now), len(m.firmware.blocks))
	}
	for i, b := range m.firmware.blocks {
		if !b.same(now[i]) {
			return fmt.Errorf("%w: memory block %s is now %s", errMemoryChanged, b.name, now[i].name)
		}
		if b.record == 0 {
			continue
		}
		name := make([]byte, len(b.name)+1)
		if _, err := m.firmware.mem.ReadAt(name, int64(b.record)); err != nil || string(name) != b.name+"\x00" {
			return fmt.Errorf("%w: QEMU keeps memory block %s elsewhere now", errMemoryChanged, b.name)
		}
	}
	return nil
}

var errMemoryChanged = errors.New("memory was plugged in or out")

// readFirmware reads the blocks of a guest that stands still. text is what "info
// ramblock" says of it.
//
// Preconditions: readyFirmware; the caller has the turn.
func (m *Machine) readFirmware(text string) (blocks []blockBytes, err error) {
	now, err := parseRAMBlocks(text)
	if err != nil {
		return nil, err
	}
	if err := m.knownBlocks(now); err != nil {
		return nil, err
	}
	var total uint64
	for i, b := range now {
		if m.isMain(b.name) {
			continue
		}
		if total += b.used; total > maxBlockBytes {
			return nil, fmt.Errorf("%w: more than %d bytes of firmware and ROMs", vmm.ErrUnsupported, maxBlockBytes)
		}
		data := make([]byte, b.used)
		if _, err := m.firmware.mem.ReadAt(data, int64(m.firmware.blocks[i].host)); err != nil {
			return nil, fmt.Errorf("read memory block %s: %w", b.name, err)
		}
		blocks = append(blocks, blockBytes{b.name, data})
	}
	return blocks, nil
}

// restoredBlocks are the blocks to put into the machine. A state of an earlier version
// has none: the firmware proper is then the one that this QEMU uses for a new machine.
//
// A block that is empty in every machine that waits, and that QEMU fills when the
// guest boots again, is not missed.
func (m *Machine) restoredBlocks(ctx context.Context, saved []blockBytes) (all []blockBytes, loaded vmm.Loaded, err error) {
	here, err := m.listBlocks(ctx)
	if err != nil {
		return nil, loaded, err
	}
	all = slices.Clone(saved)
	for _, s := range saved {
		if !slices.ContainsFunc(here, func(b ramBlock) bool { return b.name == s.name }) {
			return nil, loaded, fmt.Errorf("%w: the saved machine has memory block %s, and this one has not", vmm.ErrIncompatible, s.name)
		}
	}
	for _, b := range here {
		if m.isMain(b.name) || slices.ContainsFunc(saved, func(s blockBytes) bool { return s.name == b.name }) || filledAtBoot(b.name) {
			continue
		}
		if data, from := m.knownFirmware(ctx, b); data != nil {
			all = append(all, blockBytes{b.name, data})
			loaded.Replaced = append(loaded.Replaced, fmt.Sprintf("%s by %s", b.name, from))
			continue
		}
		loaded.Missing = append(loaded.Missing, b.name)
	}
	return all, loaded, nil
}

// filledAtBoot reports whether QEMU makes the block's content anew when the guest's
// firmware asks for it (acpi_build_update in hw/i386/acpi-build.c), or whether PCs
// leave it empty, as they hand option ROMs to the firmware in another way.
func filledAtBoot(block string) bool {
	return block == "pc.rom" || strings.HasPrefix(block, "/rom@etc/acpi/") || block == "/rom@etc/table-loader"
}
