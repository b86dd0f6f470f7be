package fabric

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// The bytes of a link. A connection carries records one way; the other way come
// acknowledgements and what the peer wants of the sender, which are records too. All
// integers are little-endian.
//
//	0       1      2       4        8          16        24        32
//	+-------+------+-------+--------+----------+---------+---------+---------+
//	|version| type | zero  | length | sequence | epoch   | network | payload |
//	| u8    | u8   | u16   | u32    | u64      | u64     | u64     | length B|
//	+-------+------+-------+--------+----------+---------+---------+---------+
//
//	type    length               sequence           epoch           network
//	frame   MinFrame..MaxFrame   1 + predecessor's  sender's        networkID
//	marker  0                    1 + predecessor's  that it opens   0
//	ack     0                    of the last        0               0
//	                             record processed
//	hold    14 a flow            0                  0               0
//
// Sequences belong to a link, not to a connection: see hello. The payload of a hold is
// every flow that the peer is to hold back from now on, each a networkID and an address.
const (
	recordVersion = 2
	recordHeader  = 32
)

type recordType uint8

const (
	recordFrame  recordType = 1
	recordMarker recordType = 2
	recordAck    recordType = 3
	// recordHold asks for no more frames to some addresses for now: their guests take
	// them more slowly than they come.
	recordHold recordType = 4
)

func (t recordType) String() string {
	switch t {
	case recordFrame:
		return "frame"
	case recordMarker:
		return "marker"
	case recordAck:
		return "ack"
	case recordHold:
		return "hold"
	default:
		return fmt.Sprintf("type %d", uint8(t))
	}
}

type record struct {
	kind     recordType
	sequence uint64
	epoch    uint64
	network  uint64
	payload  []byte
}

func (r record) cost() int { return len(r.payload) + frameOverhead }

// flow is what frames to one address of a network are.
type flow struct {
	network uint64
	to      macAddress
}

// flow is what a frame belongs to.
//
// Preconditions: r is a frame.
func (r record) flow() flow { return flow{network: r.network, to: destination(r.payload)} }

const (
	flowLen = 14
	// maxHeld bounds the flows that a peer holds back. Beyond, all that comes from it waits.
	maxHeld = 1024
)

func holdRecord(flows map[flow]bool) record {
	b := make([]byte, 0, flowLen*len(flows))
	for f := range flows {
		b = binary.LittleEndian.AppendUint64(b, f.network)
		b = append(b, f.to[:]...)
	}
	return record{kind: recordHold, payload: b}
}

// flows is what a hold says.
func (r record) flows() map[flow]bool {
	flows := make(map[flow]bool, len(r.payload)/flowLen)
	for b := r.payload; len(b) > 0; b = b[flowLen:] {
		flows[flow{network: binary.LittleEndian.Uint64(b), to: macAddress(b[8:flowLen])}] = true
	}
	return flows
}

// header encodes everything but the payload.
func (r record) header() [recordHeader]byte {
	var h [recordHeader]byte
	h[0] = recordVersion
	h[1] = byte(r.kind)
	binary.LittleEndian.PutUint32(h[4:], uint32(len(r.payload)))
	binary.LittleEndian.PutUint64(h[8:], r.sequence)
	binary.LittleEndian.PutUint64(h[16:], r.epoch)
	binary.LittleEndian.PutUint64(h[24:], r.network)
	return h
}

func writeRecord(w io.Writer, r record) error {
	h := r.header()
	if _, err := w.Write(h[:]); err != nil {
		return fmt.Errorf("write %s: %w", r.kind, err)
	}
	if len(r.payload) == 0 {
		return nil
	}
	if _, err := w.Write(r.payload); err != nil {
		return fmt.Errorf("write %s: %w", r.kind, err)
	}
	return nil
}

// readRecord reads one record. It allocates no more than MaxFrame, and only
// after the header was found good. io.EOF means that no byte was left.
func readRecord(r io.Reader) (record, error) {
	var h [recordHeader]byte
	if _, err := io.ReadFull(r, h[:]); err != nil {
		if errors.Is(err, io.EOF) {
			return record{}, err
		}
		return record{}, fmt.Errorf("read record header: %w", err)
	}
	rec, length, err := decodeHeader(h)
	if err != nil {
		return record{}, err
	}
	if length == 0 {
		return rec, nil
	}
	rec.payload = make([]byte, length)
	if _, err := io.ReadFull(r, rec.payload); err != nil {
		return record{}, fmt.Errorf("read %s: %w", rec.kind, err)
	}
	return rec, nil
}

func decodeHeader(h [recordHeader]byte) (record, int, error) {
	rec := record{
		kind:     recordType(h[1]),
		sequence: binary.LittleEndian.Uint64(h[8:]),
		epoch:    binary.LittleEndian.Uint64(h[16:]),
		network:  binary.LittleEndian.Uint64(h[24:]),
	}
	length := binary.LittleEndian.Uint32(h[4:])
	if h[0] != recordVersion {
		return record{}, 0, fmt.Errorf("record version %d, know %d: %w", h[0], recordVersion, ErrMalformed)
	}
	if h[2] != 0 || h[3] != 0 {
		return record{}, 0, fmt.Errorf("record with reserved bytes set: %w", ErrMalformed)
	}
	switch rec.kind {
	case recordFrame:
		if length < MinFrame || length > MaxFrame {
			return record{}, 0, fmt.Errorf("frame of %d bytes, want %d to %d: %w", length, MinFrame, MaxFrame, ErrMalformed)
		}
	case recordMarker, recordAck:
		if length != 0 || rec.network != 0 {
			return record{}, 0, fmt.Errorf("%s with a payload or a network: %w", rec.kind, ErrMalformed)
		}
	case recordHold:
		if length%flowLen != 0 || length > flowLen*maxHeld || rec.sequence != 0 || rec.epoch != 0 || rec.network != 0 {
			return record{}, 0, fmt.Errorf("hold of %d bytes, or with a sequence, an epoch or a network: %w", length, ErrMalformed)
		}
	default:
		return record{}, 0, fmt.Errorf("record of unknown %s: %w", rec.kind, ErrMalformed)
	}
	return rec, int(length), nil
}
