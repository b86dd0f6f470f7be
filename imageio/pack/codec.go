package pack

import (
	"errors"
	"fmt"
	"hash/crc32"
	"sync"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"

	"fermata/imageio/damage"
	"fermata/imageio/seal"
)

// Algorithm is how a run is compressed.
type Algorithm uint8

const (
	Raw  Algorithm = 1
	S2   Algorithm = 2 // S2 block format
	Zstd Algorithm = 3 // one Zstandard frame
)

// ParseAlgorithm reads a setting: s2, zstd or none.
func ParseAlgorithm(name string) (Algorithm, error) {
	switch name {
	case "s2":
		return S2, nil
	case "zstd":
		return Zstd, nil
	case "none":
		return Raw, nil
	default:
		return 0, fmt.Errorf("compression %.40q: not one of s2, zstd, none", name)
	}
}

func (a Algorithm) String() string {
	switch a {
	case Raw:
		return "none"
	case S2:
		return "s2"
	case Zstd:
		return "zstd"
	default:
		return fmt.Sprintf("algorithm %d", uint8(a))
	}
}

// Encoded is a run ready to be stored.
type Encoded struct {
	Algorithm Algorithm
	RawLen    int
	Stored    []byte
	CRC       uint32
}

// runContext is what a sealed run is sealed for. Where it lies need not be
// authenticated: the ids of what is in it are.
const runContext = "run"

// Encoder compresses runs, and seals them if it has a Domain.
//
// Concurrency: safe for use by several goroutines.
type Encoder struct {
	// Domain is set before first use. Nil: runs are not sealed.
	Domain *seal.Domain

	algorithm Algorithm
	zstd      *zstd.Encoder
}

// NewEncoder returns an encoder for up to workers goroutines at a time; more
// will wait for each other.
func NewEncoder(a Algorithm, workers int) (*Encoder, error) {
	e := &Encoder{algorithm: a}
	switch a {
	case Raw, S2:
		return e, nil
	case Zstd:
		var err error
		e.zstd, err = zstd.NewWriter(nil, zstd.WithEncoderConcurrency(workers), zstd.WithEncoderLevel(zstd.SpeedFastest),
			zstd.WithEncoderCRC(false), zstd.WithWindowSize(MaxRunBytes))
		if err != nil {
			return nil, fmt.Errorf("set up zstd: %w", err)
		}
		return e, nil
	default:
		return nil, fmt.Errorf("compress with %s: unknown", a)
	}
}

// MaxStoredLen is the size of a buffer that Encode never outgrows.
func MaxStoredLen(rawLen int) int { return s2.MaxEncodedLen(rawLen) + seal.Overhead }

// worthwhile is the least gain for which a reader should pay decompression.
const worthwhile = 16 // a sixteenth

// Encode compresses raw. The result lies in buf or, when compression gains
// nothing and nothing is sealed, is raw itself: both must stay as they are while
// it is in use.
func (e *Encoder) Encode(buf, raw []byte) (Encoded, error) {
	enc := Encoded{Algorithm: e.algorithm, RawLen: len(raw)}
	room := buf[:cap(buf)]
	if e.Domain != nil {
		room = room[min(len(room), seal.SaltBytes):] // sealed where it lies
	}
	switch e.algorithm {
	case S2:
		enc.Stored = s2.Encode(room, raw)
	case Zstd:
		enc.Stored = e.zstd.EncodeAll(raw, room[:0])
	}
	if e.algorithm == Raw || len(enc.Stored) > len(raw)-len(raw)/worthwhile {
		enc.Algorithm, enc.Stored = Raw, raw
	}
	if e.Domain != nil {
		var err error
		if enc.Stored, err = e.Domain.Seal(buf, enc.Stored, runContext); err != nil {
			return Encoded{}, err
		}
	}
	enc.CRC = checksum(enc.Stored)
	return enc, nil
}

// checksum is CRC-32C, which processors compute themselves. MakeTable returns
// one shared table.
func checksum(data []byte) uint32 { return crc32.Checksum(data, crc32.MakeTable(crc32.Castagnoli)) }

// Decoder decompresses runs, after it has opened them if it has a Domain.
//
// Concurrency: safe for use by several goroutines.
type Decoder struct {
	// Domain is set before first use. Nil: runs are not sealed.
	Domain *seal.Domain

	once sync.Once
	zstd *zstd.Decoder // set by once
	err  error         // set by once
}

// Decode returns the raw bytes of a run from its stored ones, in buf if that
// is large enough, or in stored, which is spoiled if the run was sealed.
//
// On error: damage, without a name; callers know which run it is.
func (d *Decoder) Decode(buf []byte, run Run, stored []byte) ([]byte, error) {
	if len(stored) != int(run.StoredLen) || run.RawLen > MaxRunBytes {
		return nil, fmt.Errorf("%d bytes for a run of %d stored, %d raw: %w", len(stored), run.StoredLen, run.RawLen, damage.ErrCorrupt)
	}
	if checksum(stored) != run.CRC {
		return nil, fmt.Errorf("wrong checksum: %w", damage.ErrCorrupt)
	}
	if d.Domain != nil {
		var err error
		if stored, err = d.Domain.Open(stored, runContext); err != nil {
			return nil, errors.Join(damage.ErrCorrupt, err)
		}
	}
	raw, err := d.decompress(buf, run, stored)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", run.Algorithm, errors.Join(damage.ErrCorrupt, err))
	}
	if len(raw) != int(run.RawLen) {
		return nil, fmt.Errorf("%d bytes instead of %d: %w", len(raw), run.RawLen, damage.ErrCorrupt)
	}
	return raw, nil
}

func (d *Decoder) decompress(buf []byte, run Run, stored []byte) ([]byte, error) {
	switch run.Algorithm {
	case Raw:
		return stored, nil
	case S2:
		n, err := s2.DecodedLen(stored)
		if err != nil {
			return nil, err
		}
		if n != int(run.RawLen) { // before s2 allocates what the block claims
			return nil, fmt.Errorf("claims %d bytes, want %d", n, run.RawLen)
		}
		if cap(buf) < n {
			buf = make([]byte, n)
		}
		return s2.Decode(buf[:n], stored)
	case Zstd:
		d.once.Do(func() {
			d.zstd, d.err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(MaxRunBytes), zstd.WithDecoderMaxWindow(MaxRunBytes))
		})
		if d.err != nil {
			return nil, d.err
		}
		return d.zstd.DecodeAll(stored, buf[:0])
	default:
		return nil, errors.New("unknown")
	}
}
