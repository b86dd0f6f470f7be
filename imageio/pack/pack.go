// Package pack writes and reads packs: the big append-only files that hold
// objects. A pack describes itself, so that every index can be rebuilt.
//
//	+--------+---------+-----+---------+---------+--------+
//	| header | run 0   |  …  | run r-1 | trailer | footer |
//	+--------+---------+-----+---------+---------+--------+
//
// The header is a frame that says which cluster, epoch and node made the pack.
// A run is a series of objects, compressed together. The trailer is a copy of
// the header and the tables of runs and objects; the footer is found from the
// end of the file:
//
//	trailer                                   footer
//	u32  length of the header                 8 B  "FMPKFOOT"
//	     header, as at the beginning          u32  version
//	u32  runs                                 u32  0
//	u32  objects                              u64  offset of the trailer
//	     runs × 16 B:                         u64  length of the trailer
//	       u32 stored length                  32 B sha-256 of the trailer and
//	       u32 raw length                          the 32 B of footer before
//	       u32 CRC-32C of the stored bytes
//	       u16 objects in the run
//	       u8  algorithm
//	       u8  0
//	     objects × 36 B:
//	       32 B id
//	       u24 length, u8 kind
//
// Runs follow each other without gaps, and so do the objects of a run, so
// offsets are sums. Numbers are little-endian. In a sealed pack, which is version
// 2, each run is sealed, and so is what follows the header in the trailer.
//
// A pack has its final name only when all of it is durable: Writer.Finalise is
// the one place that gives it.
package pack

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"fermata/imageio/frame"
	"fermata/imageio/object"
	"fermata/imageio/seal"
)

// Limits of the format. They bound what a trailer can make a reader allocate.
const (
	// MaxRunBytes bounds a run before compression, and so what reading one
	// object costs. The largest object, a root, fits.
	MaxRunBytes = 1 << 20
	// MaxRuns and MaxObjects bound the trailer to about 11 MiB. 262,144 pages
	// are 1 GiB before compression.
	MaxRuns    = 1 << 16
	MaxObjects = 1 << 18
	// maxObjectsInRun is what fits the u16; the smallest object has 41 bytes.
	maxObjectsInRun = 1<<16 - 1

	plainVersion  = 1
	sealedVersion = 2
	runEntryLen   = 16
	objEntryLen   = 36
	footerHeadLen = 32
	footerLen     = footerHeadLen + 32
	maxTrailerLen = 4 + maxHeaderLen + 8 + MaxRuns*runEntryLen + MaxObjects*objEntryLen + seal.Overhead
)

// ID names a pack. It is random, so no two writers choose the same.
type ID [16]byte

// NewID draws an ID from random.
func NewID(random io.Reader) (ID, error) {
	var id ID
	if random == nil {
		random = rand.Reader
	}
	if _, err := io.ReadFull(random, id[:]); err != nil {
		return ID{}, fmt.Errorf("draw pack id: %w", err)
	}
	return id, nil
}

// ParseID reads the hexadecimal form, in lower case only: it becomes a path.
func ParseID(s string) (ID, error) {
	var id ID
	if len(s) != 2*len(id) {
		return ID{}, fmt.Errorf("pack id %.80q: %d characters, want %d", s, len(s), 2*len(id))
	}
	if _, err := hex.Decode(id[:], []byte(s)); err != nil {
		return ID{}, fmt.Errorf("pack id %q: %w", s, err)
	}
	if id.String() != s {
		return ID{}, fmt.Errorf("pack id %q: not in lower case", s)
	}
	return id, nil
}

func (id ID) String() string { return hex.EncodeToString(id[:]) }

// Header says where a pack comes from.
type Header struct {
	ID         ID     `json:"id"`
	Repository string `json:"repository"`
	Cluster    string `json:"cluster"`
	Epoch      uint64 `json:"epoch"`
	Node       string `json:"node"`
}

// MarshalText gives the hexadecimal form.
func (id ID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText reads the hexadecimal form.
func (id *ID) UnmarshalText(text []byte) error {
	parsed, err := ParseID(string(text))
	if err != nil {
		return err
	}
	*id = parsed
	return nil
}

// Run is one run of a pack.
type Run struct {
	Offset    int64
	StoredLen uint32
	RawLen    uint32
	CRC       uint32 // CRC-32C of the stored bytes
	Algorithm Algorithm
	First     uint32 // number of its first object in the pack
	Count     uint32 // objects in it
}

// Object is where a pack holds an object.
type Object struct {
	ID     object.ID
	Kind   object.Kind
	Run    uint32
	Offset uint32 // in the run, uncompressed
	Length uint32
}

// Trailer is the table of contents.
type Trailer struct {
	Header  Header
	Runs    []Run
	Objects []Object // in order of run and offset
}

// headerKind frames the header. Its body is JSON, as it is met once a pack.
func headerKind() frame.Kind {
	return frame.Kind{Name: "pack header", Magic: [8]byte{'F', 'M', 'P', 'K', 'H', 'E', 'A', 'D'}, Version: 1, MaxBody: maxHeaderBody}
}

const (
	// maxHeaderBody leaves room for the longest names: 63 bytes of cluster,
	// 255 of node, each escaped.
	maxHeaderBody = 4096
	maxHeaderLen  = maxHeaderBody + frame.Overhead
)

var errTooLarge = errors.New("pack is at its limit")
