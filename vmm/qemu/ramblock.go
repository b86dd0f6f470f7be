package qemu

import (
	"bufio"
	"fmt"
	"strconv"
	"strings"

	"fermata/vmm"
)

// ramBlock is one of the blocks that QEMU's guest memory consists of: the main
// RAM, firmware, ROMs of devices, ACPI tables, video memory.
type ramBlock struct {
	name        string
	offset      uint64 // in QEMU's own numbering of guest memory; no two blocks share it
	used, total uint64 // bytes now, and at most
	host        uint64 // its address in the process; 0: not known

	record uint64 // address of the name in QEMU's own record of the block; 0: not looked for
}

// rom reports whether QEMU itself fills the block and the guest only reads it.
func (b ramBlock) rom() bool {
	return strings.HasPrefix(b.name, "/rom@") || strings.HasSuffix(b.name, ".rom") || strings.HasSuffix(b.name, ".bios")
}

// same reports whether two listings mean the same block. Its used size may differ:
// QEMU grows its ACPI tables when a guest boots.
func (b ramBlock) same(o ramBlock) bool {
	return b.name == o.name && b.offset == o.offset && b.total == o.total && (o.host == 0 || b.host == o.host)
}

// parseRAMBlocks reads "info ramblock" (ram_block_format in QEMU's system/physmem.c):
// name, page size in two words, offset, used, total; since QEMU 8.1 also the address
// in the process. A block without a name belongs to no device state: QEMU itself
// leaves it out of migrations.
func parseRAMBlocks(text string) (blocks []ramBlock, err error) {
	lines := bufio.NewScanner(strings.NewReader(text))
	if !lines.Scan() {
		return nil, fmt.Errorf("%w: info ramblock says nothing", vmm.ErrUnsupported)
	}
	withHost := strings.Contains(lines.Text(), "HVA")
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) == 0 {
			continue
		}
		refused := fmt.Errorf("%w: line of info ramblock %.80q", vmm.ErrUnsupported, lines.Text())
		if len(f) > 1 && strings.HasSuffix(f[1], "iB") { // the unit of the page size: no name before it
			continue
		}
		columns := 3
		if withHost {
			columns = 4
		}
		if len(f) < 3+columns {
			return nil, refused
		}
		var n [4]uint64
		for i := range columns {
			if n[i], err = strconv.ParseUint(f[3+i], 0, 64); err != nil {
				return nil, refused
			}
		}
		blocks = append(blocks, ramBlock{name: f[0], offset: n[0], used: n[1], total: n[2], host: n[3]})
	}
	return blocks, nil
}
