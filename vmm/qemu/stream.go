package qemu

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"

	"fermata/vmm"
)

// What a device stream is made of (QEMU's migration/savevm.c, migration/ram.c). After
// magic and version come sections: a byte that says of which kind, and then
//
//	configuration  length of the machine type's name u32, name
//	start, full    number u32, length of the device's name u8, name, instance u32, version u32, content, footer
//
// and a byte 0 at the end. A footer repeats the number. Numbers are big endian.
const (
	streamHead           = 8
	sectionEnd           = 0x00
	sectionStart         = 0x01
	sectionFull          = 0x04
	sectionConfiguration = 0x07
	sectionFooter        = 0x7e

	// Of the content of a section "ram", each added to an address or size.
	ramVersion    = 4
	ramZero       = 0x02 // a page of one byte
	ramBlocks     = 0x04 // the list of blocks, and their size in all
	ramPage       = 0x08
	ramEnd        = 0x10
	ramSameBlock  = 0x20 // as the page before
	footerAndEnd  = 6
	ramSectionNum = 0x7f000000 // no device has this number: QEMU counts from 0
)

// withConfiguration puts the configuration section at the head of a stream that
// has none: xen-save-devices-state writes none, and a machine expects one unless
// it was started with send-configuration=off, with which newer QEMUs abort when
// they migrate (seen with 10.0: qemu_savevm_state_header opens its JSON object for
// that section only).
func withConfiguration(stream []byte, machine string) []byte {
	if len(stream) <= streamHead || stream[streamHead] == sectionConfiguration {
		return stream
	}
	out := slices.Clone(stream[:streamHead])
	out = append(out, sectionConfiguration)
	out = binary.BigEndian.AppendUint32(out, uint32(len(machine)))
	out = append(out, machine...)
	return append(out, stream[streamHead:]...)
}

// withBlocks puts memory blocks in front of the devices, as a migration would: QEMU
// itself then writes them, by name, whatever the guest sees of them. The list may
// leave blocks out (parse_ramblocks asks for none).
func withBlocks(stream []byte, blocks []blockBytes) ([]byte, error) {
	if len(blocks) == 0 {
		return stream, nil
	}
	if len(stream) < streamHead+footerAndEnd {
		return nil, fmt.Errorf("%w: stream of %d bytes", vmm.ErrCorrupt, len(stream))
	}
	at := streamHead
	if stream[at] == sectionConfiguration {
		at += 5 + int(binary.BigEndian.Uint32(stream[at+1:]))
		if at < 0 || at > len(stream) {
			return nil, fmt.Errorf("%w: configuration section", vmm.ErrCorrupt)
		}
	}
	// All sections have a footer, or none (send-section-footer).
	footer := stream[len(stream)-footerAndEnd] == sectionFooter
	out := slices.Clone(stream[:at])
	out = appendBlocks(out, blocks, footer)
	return append(out, stream[at:]...), nil
}

func appendBlocks(out []byte, blocks []blockBytes, footer bool) []byte {
	be := binary.BigEndian
	out = append(out, sectionStart)
	out = be.AppendUint32(out, ramSectionNum)
	out = appendName(out, "ram")
	out = be.AppendUint32(out, 0) // instance
	out = be.AppendUint32(out, ramVersion)
	var total uint64
	for _, b := range blocks {
		total += uint64(len(b.data))
	}
	out = be.AppendUint64(out, total|ramBlocks)
	for _, b := range blocks {
		out = appendName(out, b.name)
		out = be.AppendUint64(out, uint64(len(b.data)))
	}
	var zeros [pageSize]byte
	for _, b := range blocks {
		same := uint64(0)
		for off := 0; off < len(b.data); off += pageSize {
			page := b.data[off:][:pageSize]
			kind := uint64(ramPage)
			if bytes.Equal(page, zeros[:]) {
				kind, page = ramZero, zeros[:1]
			}
			out = be.AppendUint64(out, uint64(off)|kind|same)
			if same == 0 {
				out = appendName(out, b.name)
			}
			out = append(out, page...)
			same = ramSameBlock
		}
	}
	out = be.AppendUint64(out, ramEnd)
	if footer {
		out = append(out, sectionFooter)
		out = be.AppendUint32(out, ramSectionNum)
	}
	return out
}

func appendName(out []byte, name string) []byte { return append(append(out, byte(len(name))), name...) }
