package fabric

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
)

// A channel state as bytes, version 1. All integers are little-endian; the
// digest covers every byte before it.
//
//	0       8         12      16                                  n      n+32
//	+-------+---------+-------+-----------------------------+-----+---------+
//	| magic | version | count | length | frame  | … repeated      | SHA-256 |
//	| 8 B   | u32     | u32   | u32    | length B of count times  | 32 B    |
//	+-------+---------+-------+-----------------------------+-----+---------+
const (
	frameListMagic   = "FERMFRMS"
	frameListVersion = 1
	frameListHeader  = 16
)

// EncodeFrames turns the channel state of one NIC into bytes.
func EncodeFrames(frames [][]byte) []byte {
	size := frameListHeader + sha256.Size
	for _, fr := range frames {
		size += 4 + len(fr)
	}
	b := make([]byte, 0, size)
	b = append(b, frameListMagic...)
	b = binary.LittleEndian.AppendUint32(b, frameListVersion)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(frames)))
	for _, fr := range frames {
		b = binary.LittleEndian.AppendUint32(b, uint32(len(fr)))
		b = append(b, fr...)
	}
	sum := sha256.Sum256(b)
	return append(b, sum[:]...)
}

// DecodeFrames is the inverse of EncodeFrames. The frames share b's memory. It
// allocates no more than the length of b allows for.
//
// On error ErrMalformed: b is not what EncodeFrames wrote.
func DecodeFrames(b []byte) ([][]byte, error) {
	if len(b) < frameListHeader+sha256.Size {
		return nil, fmt.Errorf("decode frames: %d bytes are too short: %w", len(b), ErrMalformed)
	}
	if string(b[:8]) != frameListMagic {
		return nil, fmt.Errorf("decode frames: magic %q: %w", b[:8], ErrMalformed)
	}
	if v := binary.LittleEndian.Uint32(b[8:]); v != frameListVersion {
		return nil, fmt.Errorf("decode frames: version %d, know %d: %w", v, frameListVersion, ErrMalformed)
	}
	body, digest := b[:len(b)-sha256.Size], b[len(b)-sha256.Size:]
	if sha256.Sum256(body) != [sha256.Size]byte(digest) {
		return nil, fmt.Errorf("decode frames: digest differs: %w", ErrMalformed)
	}
	count := int(binary.LittleEndian.Uint32(b[12:]))
	rest := body[frameListHeader:]
	if count > len(rest)/(4+MinFrame) {
		return nil, fmt.Errorf("decode frames: %d frames in %d bytes: %w", count, len(rest), ErrMalformed)
	}
	frames := make([][]byte, 0, count)
	for i := range count {
		if len(rest) < 4 {
			return nil, fmt.Errorf("decode frames: frame %d is cut off: %w", i, ErrMalformed)
		}
		n := int(binary.LittleEndian.Uint32(rest))
		if n < MinFrame || n > MaxFrame || n > len(rest)-4 {
			return nil, fmt.Errorf("decode frames: frame %d of %d bytes: %w", i, n, ErrMalformed)
		}
		frames = append(frames, rest[4:4+n:4+n])
		rest = rest[4+n:]
	}
	if len(rest) != 0 {
		return nil, fmt.Errorf("decode frames: %d bytes after the last frame: %w", len(rest), ErrMalformed)
	}
	return frames, nil
}
