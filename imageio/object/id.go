// Package object says what the repository identifies: pages, and the tree of
// hashes over the pages that makes an image.
//
// An image is any sequence of bytes with a size: a block of guest memory, a
// disk, a device state. Cut into pages of 4 KiB, the last one padded with
// zeros, it is the leaves' level of a tree in which every object is named by
// the SHA-256 of its bytes:
//
//	root     size, up to 16,384 branches   16 TiB
//	branch   up to 512 leaves               1 GiB
//	leaf     up to 512 pages                2 MiB
//	page                                    4 KiB
//
// A page of zeros is not an object: its parent says so with one bit, and a leaf
// or branch with nothing but zeros under it is in turn one bit of its parent.
// Every image has exactly one encoding, so equal parts of images are equal
// objects.
package object

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
)

// ID is the SHA-256 of an object's bytes. The zero ID names no object; in a
// tree it stands for zeros.
type ID [sha256.Size]byte

// Sum returns the ID of an object with these bytes.
func Sum(data []byte) ID { return sha256.Sum256(data) }

// ParseID reads the hexadecimal form.
func ParseID(s string) (ID, error) {
	var id ID
	if len(s) != 2*len(id) {
		return ID{}, fmt.Errorf("object id %.80q: %d characters, want %d", s, len(s), 2*len(id))
	}
	if _, err := hex.Decode(id[:], []byte(s)); err != nil {
		return ID{}, fmt.Errorf("object id %q: %w", s, err)
	}
	return id, nil
}

// IsZero says that id names no object.
func (id ID) IsZero() bool { return id == ID{} }

func (id ID) String() string { return hex.EncodeToString(id[:]) }

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

// Kind says what an object is. It is not a part of its identity: objects with
// equal bytes are one object.
type Kind uint8

const (
	KindPage   Kind = 1
	KindLeaf   Kind = 2
	KindBranch Kind = 3
	KindRoot   Kind = 4
)

func (k Kind) String() string {
	switch k {
	case KindPage:
		return "page"
	case KindLeaf:
		return "leaf"
	case KindBranch:
		return "branch"
	case KindRoot:
		return "root"
	default:
		return fmt.Sprintf("kind %d", uint8(k))
	}
}

// Valid says that k is known.
func (k Kind) Valid() bool { return k >= KindPage && k <= KindRoot }
