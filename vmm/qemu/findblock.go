package qemu

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"fermata/vmm"
	"fermata/vmm/uffd"
)

// findBlocks lists the machine's RAM blocks with their addresses in the process.
//
// Newer QEMUs print the addresses. Older ones say only where the memory lies that
// the guest sees at present; for the others we read QEMU's own record of each block
// (struct RAMBlock), whose form we learn from the main RAM's.
func (m *Machine) findBlocks(ctx context.Context) ([]ramBlock, error) {
	blocks, err := m.listBlocks(ctx)
	if err != nil {
		return nil, err
	}
	maps, err := uffd.All(m.PID())
	if err != nil {
		return nil, err
	}
	if slices.ContainsFunc(blocks, func(b ramBlock) bool { return b.host == 0 }) {
		if err := m.findHosts(ctx, blocks, maps); err != nil {
			return nil, err
		}
	}
	for _, b := range blocks {
		if !isMapped(maps, b.host, b.used) {
			return nil, fmt.Errorf("%w: memory block %s is not mapped as a whole at %#x", vmm.ErrUnsupported, b.name, b.host)
		}
	}
	return blocks, nil
}

func isMapped(maps []uffd.Mapping, addr, size uint64) bool {
	return slices.ContainsFunc(maps, func(at uffd.Mapping) bool {
		return at.Readable && at.Addr <= addr && addr+size <= at.End()
	})
}

func (m *Machine) listBlocks(ctx context.Context) ([]ramBlock, error) {
	text, err := m.human(ctx, "info ramblock")
	if err != nil {
		return nil, err
	}
	return parseRAMBlocks(text)
}

// findHosts fills in the address of every block.
func (m *Machine) findHosts(ctx context.Context, blocks []ramBlock, maps []uffd.Mapping) error {
	text, err := m.human(ctx, "info mtree -f")
	if err != nil {
		return err
	}
	known, v, ok := largestView(blocks, parseViews(flatMemory(text)))
	if !ok {
		return fmt.Errorf("%w: the guest sees no memory block", vmm.ErrUnsupported)
	}
	host, err := m.hostAddress(ctx, v.guest)
	if err != nil {
		return err
	}
	known.host = host - v.offset
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", m.PID()))
	if err != nil {
		return err
	}
	defer mem.Close()
	// The records come from malloc, which uses the heap proper on QEMU's main thread.
	// Other allocators have their own mappings.
	heaps := []func(uffd.Mapping) bool{
		func(at uffd.Mapping) bool { return at.Name == "[heap]" },
		func(at uffd.Mapping) bool {
			return at.Readable && at.Writable && at.Inode == 0 && (at.Name == "" || strings.HasPrefix(at.Name, "[anon"))
		},
	}
	for _, isHeap := range heaps {
		var records []blockRecord
		for _, at := range maps {
			if isHeap(at) && !holdsBlock(at, blocks, known) {
				records = append(records, findRecords(mem, at, blocks)...)
			}
		}
		if err = placeBlocks(blocks, known, records, maps); err == nil {
			return nil
		}
	}
	return err
}

// largestView finds the largest piece in which the guest sees a block: of its main RAM.
// Unlike the first MiB and the memory of devices, it is never moved.
func largestView(blocks []ramBlock, views []view) (block ramBlock, largest view, ok bool) {
	for _, v := range views {
		of := slices.DeleteFunc(slices.Clone(blocks), func(b ramBlock) bool { return !v.is(b.name) })
		if len(of) == 1 && (!ok || v.last-v.guest > largest.last-largest.guest) {
			block, largest, ok = of[0], v, true
		}
	}
	return block, largest, ok
}

// holdsBlock reports whether a mapping is guest memory itself, where a guest could
// write whatever looks like a record.
func holdsBlock(at uffd.Mapping, blocks []ramBlock, known ramBlock) bool {
	if at.Addr < known.host+known.total && known.host < at.End() {
		return true
	}
	// As QEMU maps a block (qemu_ram_mmap in util/mmap-alloc.c).
	return at.Addr%(2<<20) == 0 && slices.ContainsFunc(blocks, func(b ramBlock) bool { return at.Len == b.total })
}

// recordHead is how many bytes before the name belong to a record as far as we look:
// the addresses, the sizes, a function and flags.
const recordHead = 128

// blockRecord is a place in QEMU's memory that may be its record of a RAM block.
type blockRecord struct {
	name string
	addr uint64           // of the name
	head [recordHead]byte // what lies before it
}

// at returns the word that begins back bytes before the name.
func (r blockRecord) at(back int) uint64 { return binary.LittleEndian.Uint64(r.head[recordHead-back:]) }

// findRecords looks for the names of blocks in a mapping.
func findRecords(mem io.ReaderAt, at uffd.Mapping, blocks []ramBlock) (records []blockRecord) {
	const (
		chunk   = 1 << 20
		overlap = recordHead + 256 // of a record that two chunks share; a name has 255 bytes at most
	)
	buf := make([]byte, chunk+overlap)
	for off := at.Addr; off < at.End(); off += chunk {
		n, _ := mem.ReadAt(buf[:min(uint64(len(buf)), at.End()-off)], int64(off)) // what cannot be read holds no record
		for _, b := range blocks {
			name := append([]byte(b.name), 0)
			for from := recordHead; from < n; {
				i := bytes.Index(buf[from:n], name)
				if i < 0 {
					break
				}
				p := from + i
				from = p + 1
				r := blockRecord{name: b.name, addr: off + uint64(p)}
				copy(r.head[:], buf[p-recordHead:p])
				if !slices.ContainsFunc(records, func(o blockRecord) bool { return o.addr == r.addr }) {
					records = append(records, r)
				}
			}
		}
	}
	return records
}

// placeBlocks finds the shape of a record by the block whose address is known, and the
// addresses of all by it. In the record lie, before the name and in this order, the
// address and the three numbers that "info ramblock" prints.
func placeBlocks(blocks []ramBlock, known ramBlock, records []blockRecord, maps []uffd.Mapping) error {
	for sizes := 24; sizes <= recordHead-16; sizes += 4 {
		for host := sizes + 8; host <= recordHead; host += 8 {
			if placed, ok := (recordShape{sizes, host}).place(blocks, known, records, maps); ok {
				copy(blocks, placed)
				return nil
			}
		}
	}
	return fmt.Errorf("%w: QEMU's records of its memory blocks are not of a known form", vmm.ErrUnsupported)
}

// recordShape says where in a record the numbers lie, in bytes before the name.
type recordShape struct{ sizes, host int }

// place returns the blocks with their addresses. Every block must have one record, and
// the known one's must be right.
func (s recordShape) place(blocks []ramBlock, known ramBlock, records []blockRecord, maps []uffd.Mapping) ([]ramBlock, bool) {
	placed := slices.Clone(blocks)
	for i := range placed {
		b := &placed[i]
		for _, r := range records {
			if r.name != b.name || r.at(s.sizes) != b.offset || r.at(s.sizes-16) != b.total {
				continue
			}
			if !isMapped(maps, r.at(s.host), b.used) { // what is left of one that was unplugged
				continue
			}
			if b.host != 0 && b.host != r.at(s.host) {
				return nil, false
			}
			b.host, b.record = r.at(s.host), r.addr
		}
		if b.host == 0 || b.name == known.name && b.host != known.host {
			return nil, false
		}
	}
	return placed, true
}
