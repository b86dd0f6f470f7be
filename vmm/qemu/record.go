package qemu

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"fermata/vmm"
)

// A device state as SaveDevices returns it is a record:
//
//	0        8         12       16       24        28          a         b          b+n      b+n+32
//	+--------+---------+--------+--------+---------+-----------+---------+----------+---------+
//	| magic  | version | method | n      | blocks  | directory | blocks' | stream   | sha-256 |
//	| 8 B    | u32 LE  | u32 LE | u64 LE | u32 LE  |           | bytes   | n bytes  | 32 B    |
//	+--------+---------+--------+--------+---------+-----------+---------+----------+---------+
//
// The stream is QEMU's own migration stream; method says how it was made and so how
// the receiver must be set up. The blocks are those RAM blocks of the machine that
// are not in vmm.Machine.Memory: firmware, ROMs, ACPI tables. The directory has for
// each, in the order of their bytes:
//
//	size u64 LE, a multiple of a page; CRC-32C of its bytes u32 LE; length of the name u8; name
//
// and zeros up to a whole page, so that blocks and stream begin with pages and a
// repository keeps equal firmware once. The digest covers the record without the
// blocks' bytes, for which the directory has checksums: they are hashed while a guest
// stands still.
//
// Version 1 has neither blocks nor directory, and the stream follows n. Unknown
// versions and methods are refused.
const (
	recordMagic   = "FMTADEVS"
	recordVersion = 2
	recordHeader  = 28
	recordDigest  = sha256.Size

	recordVersion1 = 1
	recordHeader1  = 24

	// maxStream bounds a stream whatever the guest's RAM. A guest of 255 vCPUs
	// and 28 devices has about 4 MiB.
	maxStream = 64 << 20
	// maxBlocks and maxBlockBytes bound what a record may hold of firmware: 16 MiB
	// for the largest there is, and a ROM for each device.
	maxBlocks     = 1024
	maxBlockBytes = 64 << 20
)

const pageSize = 4096

// recordMethod is the number of a SaveMethod in a record.
type recordMethod uint32

const (
	methodXen     recordMethod = 1
	methodMigrate recordMethod = 2
)

// deviceState is what a record holds.
type deviceState struct {
	method recordMethod
	blocks []blockBytes // version 1 has none
	stream []byte
}

// blockBytes is the content of a RAM block.
type blockBytes struct {
	name string
	data []byte
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// encode frames a state.
func (s deviceState) encode() []byte {
	size := recordHeader
	for _, b := range s.blocks {
		size += 13 + len(b.name)
	}
	body := wholePages(size)
	for _, b := range s.blocks {
		body += len(b.data)
	}
	b := make([]byte, 0, body+len(s.stream)+recordDigest)
	b = append(b, recordMagic...)
	b = binary.LittleEndian.AppendUint32(b, recordVersion)
	b = binary.LittleEndian.AppendUint32(b, uint32(s.method))
	b = binary.LittleEndian.AppendUint64(b, uint64(len(s.stream)))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(s.blocks)))
	for _, bl := range s.blocks {
		b = binary.LittleEndian.AppendUint64(b, uint64(len(bl.data)))
		b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(bl.data, castagnoli))
		b = append(b, byte(len(bl.name)))
		b = append(b, bl.name...)
	}
	b = b[:wholePages(len(b))] // fresh, so zero
	sum := sha256.New()
	sum.Write(b)
	for _, bl := range s.blocks {
		b = append(b, bl.data...)
	}
	sum.Write(s.stream)
	b = append(b, s.stream...)
	return sum.Sum(b)
}

func wholePages(n int) int { return (n + pageSize - 1) / pageSize * pageSize }

// decodeRecord checks a record whole before it says what is in it. It is
// total; what it returns are parts of b.
func decodeRecord(b []byte) (deviceState, error) {
	s, err := decodeUnchecked(b)
	if err != nil {
		return deviceState{}, fmt.Errorf("%w: %w", vmm.ErrCorrupt, err)
	}
	return s, nil
}

func decodeUnchecked(b []byte) (s deviceState, err error) {
	if len(b) < recordHeader1+recordDigest {
		return s, fmt.Errorf("%d bytes are too few", len(b))
	}
	if string(b[:len(recordMagic)]) != recordMagic {
		return s, fmt.Errorf("magic %q", b[:len(recordMagic)])
	}
	s.method = recordMethod(binary.LittleEndian.Uint32(b[12:]))
	if s.method != methodXen && s.method != methodMigrate {
		return s, fmt.Errorf("method %d", s.method)
	}
	n := binary.LittleEndian.Uint64(b[16:])
	if n > maxStream {
		return s, fmt.Errorf("stream of %d bytes", n)
	}
	body := recordHeader1 // where the digest leaves blocks out
	switch v := binary.LittleEndian.Uint32(b[8:]); v {
	case recordVersion1:
	case recordVersion:
		if body, err = s.decodeBlocks(b); err != nil {
			return s, err
		}
	default:
		return s, fmt.Errorf("version %d, known is up to %d", v, recordVersion)
	}
	begin := body
	for _, bl := range s.blocks {
		begin += len(bl.data)
	}
	if uint64(len(b)-begin) != n+recordDigest {
		return s, fmt.Errorf("stream of %d bytes in a record of %d", n, len(b))
	}
	s.stream = b[begin:][:n]
	sum := sha256.New()
	sum.Write(b[:body])
	sum.Write(s.stream)
	if !bytes.Equal(sum.Sum(nil), b[begin+int(n):]) {
		return s, errors.New("digest differs")
	}
	return s, nil
}

// decodeBlocks reads the directory and the blocks behind it. It returns where the
// blocks begin; all of them and a digest are within b.
func (s *deviceState) decodeBlocks(b []byte) (body int, err error) {
	if len(b) < recordHeader+recordDigest {
		return 0, fmt.Errorf("%d bytes are too few", len(b))
	}
	count := binary.LittleEndian.Uint32(b[24:])
	if count > maxBlocks {
		return 0, fmt.Errorf("%d blocks", count)
	}
	type entry struct {
		name string
		size int
		crc  uint32
	}
	var entries []entry
	at, total := recordHeader, 0
	for range count {
		if len(b)-at < 13 || len(b)-at-13 < int(b[at+12]) {
			return 0, errors.New("directory is cut short")
		}
		size := binary.LittleEndian.Uint64(b[at:])
		if size == 0 || size%pageSize != 0 || size > maxBlockBytes-uint64(total) {
			return 0, fmt.Errorf("block of %d bytes", size)
		}
		name := string(b[at+13:][:b[at+12]])
		if name == "" {
			return 0, errors.New("block without a name")
		}
		entries = append(entries, entry{name, int(size), binary.LittleEndian.Uint32(b[at+8:])})
		total += int(size)
		at += 13 + len(name)
	}
	body = wholePages(at)
	if len(b) < body+total+recordDigest {
		return 0, errors.New("blocks are cut short")
	}
	if len(bytes.Trim(b[at:body], "\x00")) > 0 {
		return 0, errors.New("bytes behind the directory")
	}
	from := body
	for _, e := range entries {
		data := b[from:][:e.size]
		if crc32.Checksum(data, castagnoli) != e.crc {
			return 0, fmt.Errorf("memory block %s: checksum differs", e.name)
		}
		s.blocks = append(s.blocks, blockBytes{e.name, data})
		from += e.size
	}
	return body, nil
}

// maxStateBytes is the most that a device state of a guest with so much RAM
// may take. Real ones are 0.1 to 0.4 MiB for a small guest, so an eighth of the
// least RAM is ample, and RAM that went into the stream does not fit.
func maxStateBytes(memory uint64) uint64 { return min(memory/8, maxStream) }
