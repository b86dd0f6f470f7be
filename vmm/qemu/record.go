package qemu

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"fermata/vmm"
)

// A device state as SaveDevices returns it is a record:
//
//	0        8         12       16       24          24+n     24+n+32
//	+--------+---------+--------+--------+-----------+---------+
//	| magic  | version | method | n      | stream    | sha-256 |
//	| 8 B    | u32 LE  | u32 LE | u64 LE | n bytes   | 32 B    |
//	+--------+---------+--------+--------+-----------+---------+
//
// The stream is QEMU's own migration stream; method says how it was made and
// so how the receiver must be set up. The digest covers every byte before it.
// Unknown versions and methods are refused.
const (
	recordMagic   = "FMTADEVS"
	recordVersion = 1
	recordHeader  = 24
	recordDigest  = sha256.Size

	// maxStream bounds a stream whatever the guest's RAM. A guest of 255 vCPUs
	// and 28 devices has about 4 MiB.
	maxStream = 64 << 20
)

// recordMethod is the number of a SaveMethod in a record.
type recordMethod uint32

const (
	methodXen     recordMethod = 1
	methodMigrate recordMethod = 2
)

// encodeRecord frames a stream.
func encodeRecord(method recordMethod, stream []byte) []byte {
	b := make([]byte, 0, recordHeader+len(stream)+recordDigest)
	b = append(b, recordMagic...)
	b = binary.LittleEndian.AppendUint32(b, recordVersion)
	b = binary.LittleEndian.AppendUint32(b, uint32(method))
	b = binary.LittleEndian.AppendUint64(b, uint64(len(stream)))
	b = append(b, stream...)
	sum := sha256.Sum256(b)
	return append(b, sum[:]...)
}

// decodeRecord checks a record whole before it says what is in it. It is
// total; the stream it returns is a part of b.
func decodeRecord(b []byte) (recordMethod, []byte, error) {
	if len(b) < recordHeader+recordDigest {
		return 0, nil, fmt.Errorf("%d bytes are too few: %w", len(b), vmm.ErrCorrupt)
	}
	if string(b[:len(recordMagic)]) != recordMagic {
		return 0, nil, fmt.Errorf("magic %q: %w", b[:len(recordMagic)], vmm.ErrCorrupt)
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != recordVersion {
		return 0, nil, fmt.Errorf("version %d, known is %d: %w", v, recordVersion, vmm.ErrCorrupt)
	}
	n := binary.LittleEndian.Uint64(b[16:])
	if n > maxStream || n != uint64(len(b)-recordHeader-recordDigest) {
		return 0, nil, fmt.Errorf("stream of %d bytes in a record of %d: %w", n, len(b), vmm.ErrCorrupt)
	}
	body, digest := b[:recordHeader+n], b[recordHeader+n:]
	if sum := sha256.Sum256(body); !bytes.Equal(sum[:], digest) {
		return 0, nil, fmt.Errorf("digest differs: %w", vmm.ErrCorrupt)
	}
	method := recordMethod(binary.LittleEndian.Uint32(b[12:]))
	if method != methodXen && method != methodMigrate {
		return 0, nil, fmt.Errorf("method %d: %w", method, vmm.ErrCorrupt)
	}
	return method, body[recordHeader:], nil
}

// maxStateBytes is the most that a device state of a guest with so much RAM
// may take. Real ones are 0.1 to 0.4 MiB for a small guest, so an eighth of the
// least RAM is ample, and RAM that went into the stream does not fit.
func maxStateBytes(memory uint64) uint64 { return min(memory/8, maxStream) }
