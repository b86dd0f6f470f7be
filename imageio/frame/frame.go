// Package frame turns the small records of a repository into bytes and back.
// Every record but a pack's trailer is one frame:
//
//	0        8         12       16         16+n     16+n+32
//	+--------+---------+--------+----------+---------+
//	| magic  | version | n      | body     | sha-256 |
//	| 8 B    | u32 LE  | u32 LE | n bytes  | 32 B    |
//	+--------+---------+--------+----------+---------+
//
// The digest covers every byte before it. This layout is the same in every
// version, so that a reader can tell a newer record from a damaged one.
package frame

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"fermata/imageio/damage"
)

// ErrNewerFormat says that a record is whole but of a version this code does
// not know.
var ErrNewerFormat = errors.New("format is newer than this program")

const (
	headLen = 16
	// Overhead is what a frame adds to its body.
	Overhead = headLen + sha256.Size
)

// Kind describes one kind of record.
type Kind struct {
	Name    string // for errors
	Magic   [8]byte
	Version uint32 // written, and the only one read
	MaxBody int    // bounds what a record may make a reader allocate
}

// Encode returns the frame of body.
func (k Kind) Encode(body []byte) ([]byte, error) {
	if len(body) > k.MaxBody {
		return nil, fmt.Errorf("%s of %d bytes, limit %d", k.Name, len(body), k.MaxBody)
	}
	out := make([]byte, 0, Overhead+len(body))
	out = append(out, k.Magic[:]...)
	out = binary.LittleEndian.AppendUint32(out, k.Version)
	out = binary.LittleEndian.AppendUint32(out, uint32(len(body)))
	out = append(out, body...)
	sum := sha256.Sum256(out)
	return append(out, sum[:]...), nil
}

// Is says that data begins like a record of this kind.
func (k Kind) Is(data []byte) bool { return bytes.HasPrefix(data, k.Magic[:]) }

// MaxLen is the length of the largest record of this kind.
func (k Kind) MaxLen() int64 { return int64(k.MaxBody) + Overhead }

// Decode returns the body of a frame that is exactly data. The body aliases
// data.
//
// On error: damage, or ErrNewerFormat for a whole frame of another version.
func (k Kind) Decode(data []byte) ([]byte, error) {
	body, rest, err := k.DecodePrefix(data)
	if err != nil {
		return nil, err
	}
	if len(rest) != 0 {
		return nil, damage.New(k.Name, fmt.Errorf("%d bytes behind the end", len(rest)))
	}
	return body, nil
}

// Read reads one frame from a stream, and no byte more. buf is used if it is large
// enough; the body aliases it or a new one, which is returned.
//
// On error: io.EOF if there is nothing, as for Decode, or what r said.
func (k Kind) Read(r io.Reader, buf []byte) (body, grown []byte, err error) {
	var head [headLen]byte
	if _, err := io.ReadFull(r, head[:]); err == io.EOF {
		return nil, buf, err
	} else if err != nil {
		return nil, buf, fmt.Errorf("%s: %w", k.Name, cutOff(err))
	}
	if !k.Is(head[:]) {
		return nil, buf, damage.New(k.Name, errors.New("wrong magic"))
	}
	n := uint64(binary.LittleEndian.Uint32(head[12:]))
	if n > uint64(k.MaxBody) {
		return nil, buf, damage.New(k.Name, fmt.Errorf("body of %d bytes, limit %d", n, k.MaxBody))
	}
	if uint64(cap(buf)) < n+Overhead {
		buf = make([]byte, n+Overhead)
	}
	buf = buf[:n+Overhead]
	copy(buf, head[:])
	if _, err := io.ReadFull(r, buf[headLen:]); err != nil {
		return nil, buf, fmt.Errorf("%s: %w", k.Name, cutOff(err))
	}
	body, err = k.Decode(buf)
	return body, buf, err
}

// cutOff makes an early end damage.
func cutOff(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.Join(damage.ErrCorrupt, io.ErrUnexpectedEOF)
	}
	return err
}

// DecodePrefix is Decode for a frame that more bytes follow.
func (k Kind) DecodePrefix(data []byte) (body, rest []byte, err error) {
	if len(data) < Overhead {
		return nil, nil, damage.New(k.Name, fmt.Errorf("%d bytes are too short", len(data)))
	}
	if !k.Is(data) {
		return nil, nil, damage.New(k.Name, errors.New("wrong magic"))
	}
	n := uint64(binary.LittleEndian.Uint32(data[12:]))
	if n > uint64(k.MaxBody) {
		return nil, nil, damage.New(k.Name, fmt.Errorf("body of %d bytes, limit %d", n, k.MaxBody))
	}
	if n > uint64(len(data)-Overhead) {
		return nil, nil, damage.New(k.Name, fmt.Errorf("body of %d bytes is cut off", n))
	}
	end := headLen + int(n)
	sum := sha256.Sum256(data[:end])
	if !bytes.Equal(sum[:], data[end:end+sha256.Size]) {
		return nil, nil, damage.New(k.Name, errors.New("wrong digest"))
	}
	if v := binary.LittleEndian.Uint32(data[8:]); v != k.Version {
		return nil, nil, fmt.Errorf("%s of version %d, known is %d: %w", k.Name, v, k.Version, ErrNewerFormat)
	}
	return data[headLen:end], data[end+sha256.Size:], nil
}
