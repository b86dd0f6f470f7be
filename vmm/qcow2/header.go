// Package qcow2 reads the header of disk images in QEMU's format qcow2, so that
// an image from elsewhere is known before QEMU opens it.
//
// A header can name other files of the host: a backing file that is read, and an
// external data file that is read and written. Whoever writes the header chooses
// the paths. Nothing here follows them.
//
// Source of the layout: docs/interop/qcow2.txt of QEMU.
package qcow2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Errors of this package, for errors.Is.
var (
	// ErrCorrupt says that the bytes are no header that QEMU writes.
	ErrCorrupt = errors.New("no intact qcow2 header")
	// ErrRefused says that the image uses a feature that no image of ours needs.
	ErrRefused = errors.New("qcow2 image refused")
)

// Header is the part of an image's header that decides which files it depends on.
type Header struct {
	Version       uint32
	Size          uint64 // of the disk that a guest sees, in bytes
	Backing       string // file below it, as the image names it; empty: none
	BackingFormat string // empty: the image does not say
	DataFile      string // external data file that an extension names
	Encryption    uint32 // crypt_method; 0: none
	Incompatible  uint64 // bits of features that a reader must know
}

// Bits of Header.Incompatible.
const (
	featureDirty       = 1 << 0 // reference counts are stale; QEMU repairs them
	featureCorrupt     = 1 << 1
	featureDataFile    = 1 << 2
	featureCompression = 1 << 3 // clusters are compressed by zstd
	featureExtendedL2  = 1 << 4

	allowedFeatures = featureDirty | featureCompression | featureExtendedL2
)

const (
	magic = "QFI\xfb"

	headerV2 = 72  // bytes of a header of version 2
	headerV3 = 104 // least bytes of a header of version 3

	minClusterBits, maxClusterBits = 9, 21 // 512 bytes to 2 MiB (block/qcow2.h)

	maxBacking = 1023 // bytes of a backing file's name
)

// Types of header extensions.
const (
	extensionEnd           = 0
	extensionBackingFormat = 0xe2792aca
	extensionDataFile      = 0x44415441
	extensionEncryption    = 0x0537be77
)

// Read decodes the header at the beginning of r. It reads one cluster at most.
// Errors of the content wrap ErrCorrupt.
func Read(r io.ReaderAt) (Header, error) {
	fixed := make([]byte, headerV3)
	n, err := r.ReadAt(fixed, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return Header{}, fmt.Errorf("read qcow2 header: %w", err)
	}
	bits, err := clusterBits(fixed[:n])
	if err != nil {
		return Header{}, err
	}
	cluster := make([]byte, 1<<bits)
	n, err = r.ReadAt(cluster, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return Header{}, fmt.Errorf("read qcow2 header: %w", err)
	}
	return decode(cluster[:n], 1<<bits)
}

// clusterBits returns the binary logarithm of the image's cluster size.
func clusterBits(b []byte) (uint32, error) {
	if len(b) < headerV2 || string(b[:4]) != magic {
		return 0, fmt.Errorf("%w: it does not begin as one", ErrCorrupt)
	}
	bits := binary.BigEndian.Uint32(b[20:])
	if bits < minClusterBits || bits > maxClusterBits {
		return 0, fmt.Errorf("%w: clusters of 2^%d bytes", ErrCorrupt, bits)
	}
	return bits, nil
}

// decode reads the first cluster, of which b may lack the end.
func decode(b []byte, clusterSize int) (Header, error) {
	h := Header{
		Version:    binary.BigEndian.Uint32(b[4:]),
		Size:       binary.BigEndian.Uint64(b[24:]),
		Encryption: binary.BigEndian.Uint32(b[32:]),
	}
	length := uint64(headerV2)
	switch h.Version {
	case 2:
	case 3:
		if len(b) < headerV3 {
			return Header{}, fmt.Errorf("%w: %d bytes", ErrCorrupt, len(b))
		}
		h.Incompatible = binary.BigEndian.Uint64(b[72:])
		length = uint64(binary.BigEndian.Uint32(b[100:]))
		if length < headerV3 || length > uint64(len(b)) || length%8 != 0 {
			return Header{}, fmt.Errorf("%w: header of %d bytes", ErrCorrupt, length)
		}
	default:
		return Header{}, fmt.Errorf("%w: version %d, known are 2 and 3", ErrCorrupt, h.Version)
	}
	end, err := h.readBacking(b, length, clusterSize)
	if err != nil {
		return Header{}, err
	}
	if err := h.readExtensions(b[length:end]); err != nil {
		return Header{}, err
	}
	return h, nil
}

// readBacking reads the backing file's name and returns where the extensions, which
// lie between the header and that name, end at the latest.
func (h *Header) readBacking(b []byte, length uint64, clusterSize int) (end uint64, err error) {
	offset := binary.BigEndian.Uint64(b[8:])
	size := uint64(binary.BigEndian.Uint32(b[16:]))
	if offset == 0 {
		return uint64(len(b)), nil
	}
	if offset < length || offset > uint64(clusterSize) || size > maxBacking || offset+size > uint64(len(b)) {
		return 0, fmt.Errorf("%w: backing file's name of %d bytes at %d", ErrCorrupt, size, offset)
	}
	h.Backing = string(b[offset : offset+size])
	if strings.ContainsRune(h.Backing, 0) {
		return 0, fmt.Errorf("%w: backing file %q", ErrCorrupt, h.Backing)
	}
	return offset, nil
}

// readExtensions reads the header's extensions, each a type, a length and data that
// is padded to eight bytes.
func (h *Header) readExtensions(b []byte) error {
	for len(b) >= 8 {
		kind, size := binary.BigEndian.Uint32(b), uint64(binary.BigEndian.Uint32(b[4:]))
		b = b[8:]
		if kind == extensionEnd {
			return nil
		}
		if size > uint64(len(b)) {
			return fmt.Errorf("%w: extension %#x of %d bytes", ErrCorrupt, kind, size)
		}
		data := string(b[:size])
		switch kind {
		case extensionBackingFormat:
			h.BackingFormat = data
		case extensionDataFile:
			h.DataFile = data
		case extensionEncryption:
			h.Encryption = max(h.Encryption, 1)
		}
		b = b[min((size+7)&^7, uint64(len(b))):]
	}
	return nil
}

// Check refuses an image that depends on a file that no backing chain shows, that
// is encrypted or damaged, or of which something is not known. Its errors wrap
// ErrRefused.
func (h Header) Check() error {
	switch {
	case h.Incompatible&featureDataFile != 0 || h.DataFile != "":
		return fmt.Errorf("%w: its data lies in another file, %q", ErrRefused, h.DataFile)
	case h.Encryption != 0:
		return fmt.Errorf("%w: it is encrypted", ErrRefused)
	case h.Incompatible&featureCorrupt != 0:
		return fmt.Errorf("%w: QEMU has marked it as corrupt; repair it with qemu-img check -r all", ErrRefused)
	case h.Incompatible&^allowedFeatures != 0:
		return fmt.Errorf("%w: unknown features %#x", ErrRefused, h.Incompatible&^allowedFeatures)
	}
	return nil
}
