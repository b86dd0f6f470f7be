package object

import (
	"encoding/binary"
	"fmt"
	"math/bits"

	"fermata/imageio/damage"
)

// The sizes are a part of the format.
const (
	// PageBytes is the unit of identity: the page of the guest's memory, so
	// that one write dirties one object.
	PageBytes = 4096
	// Fanout bounds the children of a leaf and of a branch. 512 hashes are
	// 16 KiB: what one changed page costs in its leaf.
	Fanout = 512
	// LeafBytes is what one leaf covers, BranchBytes what one branch covers.
	LeafBytes   = Fanout * PageBytes
	BranchBytes = Fanout * LeafBytes
	// maxBranches bounds a root to 512 KiB and an image to 16 TiB.
	maxBranches = 16384
	// MaxImageBytes is the largest image.
	MaxImageBytes int64 = maxBranches * BranchBytes

	version    = 1
	nodeHead   = 8
	rootHead   = 16
	idBytes    = len(ID{})
	bitsPerMap = 8
)

// MaxNodeBytes is the length of the largest leaf, branch or root.
const MaxNodeBytes = rootHead + maxBranches/bitsPerMap + maxBranches*idBytes

// A node, that is a leaf, branch or root, is
//
//	0       3         4      5   6        8
//	+-------+---------+------+---+--------+----------------+--------+-----------+
//	| "fmn" | version | kind | 0 | count  | size (u64 LE,  | bitmap | ids       |
//	| 3 B   | 1 B     | 1 B  |   | u16 LE | root only)     |        | 32 B each |
//	+-------+---------+------+---+--------+----------------+--------+-----------+
//
// with one bit a child, lowest first, that is set if the child is not all
// zeros, and one id for each bit that is set.

// AppendNode appends the encoding of a leaf or branch to dst. Zero ids stand
// for children of zeros.
//
// Preconditions: 1 to Fanout children, not all of them zero.
func AppendNode(dst []byte, kind Kind, children []ID) []byte {
	if len(children) == 0 || len(children) > Fanout || kind != KindLeaf && kind != KindBranch {
		panic(fmt.Sprintf("object: %s of %d children", kind, len(children)))
	}
	dst = append(dst, 'f', 'm', 'n', version, byte(kind), 0)
	dst = binary.LittleEndian.AppendUint16(dst, uint16(len(children)))
	return appendChildren(dst, children)
}

// DecodeNode appends the children of a leaf or branch to dst. want is how many
// its place in the image gives it.
//
// On error: damage.
func DecodeNode(dst []ID, data []byte, kind Kind, want int) ([]ID, error) {
	count, err := decodeHead(data, kind)
	if err != nil {
		return nil, err
	}
	if count != want || count < 1 || count > Fanout {
		return nil, damaged(kind, "%d children, want %d", count, want)
	}
	start := len(dst)
	dst, err = decodeChildren(dst, data[nodeHead:], kind, count)
	if err != nil {
		return nil, err
	}
	for _, id := range dst[start:] {
		if !id.IsZero() {
			return dst, nil
		}
	}
	return nil, damaged(kind, "nothing but zeros")
}

// Root is the top of an image.
type Root struct {
	Size     int64
	Branches []ID // one for each begun BranchBytes; zero for zeros
}

// BranchCount is how many branches an image of size bytes has.
func BranchCount(size int64) int { return int(ceilDiv(size, BranchBytes)) }

// LeafCount is how many leaves an image of size bytes has.
func LeafCount(size int64) int { return int(ceilDiv(size, LeafBytes)) }

// PageCount is how many pages an image of size bytes has.
func PageCount(size int64) int64 { return ceilDiv(size, PageBytes) }

// AppendRoot appends the encoding of r to dst.
//
// Preconditions: the size is valid and the branches fit it.
func AppendRoot(dst []byte, r Root) []byte {
	if r.Size < 0 || r.Size > MaxImageBytes || len(r.Branches) != BranchCount(r.Size) {
		panic(fmt.Sprintf("object: root of %d bytes with %d branches", r.Size, len(r.Branches)))
	}
	dst = append(dst, 'f', 'm', 'n', version, byte(KindRoot), 0)
	dst = binary.LittleEndian.AppendUint16(dst, uint16(len(r.Branches)))
	dst = binary.LittleEndian.AppendUint64(dst, uint64(r.Size))
	return appendChildren(dst, r.Branches)
}

// DecodeRoot reads a root.
//
// On error: damage.
func DecodeRoot(data []byte) (Root, error) {
	count, err := decodeHead(data, KindRoot)
	if err != nil {
		return Root{}, err
	}
	if len(data) < rootHead {
		return Root{}, damaged(KindRoot, "%d bytes are too short", len(data))
	}
	size := binary.LittleEndian.Uint64(data[nodeHead:])
	if size > uint64(MaxImageBytes) || count != BranchCount(int64(size)) {
		return Root{}, damaged(KindRoot, "size %d with %d branches", size, count)
	}
	branches, err := decodeChildren(make([]ID, 0, count), data[rootHead:], KindRoot, count)
	if err != nil {
		return Root{}, err
	}
	return Root{Size: int64(size), Branches: branches}, nil
}

func appendChildren(dst []byte, children []ID) []byte {
	start := len(dst)
	dst = append(dst, make([]byte, bitmapLen(len(children)))...)
	bitmap := dst[start:]
	for i := range children {
		if !children[i].IsZero() {
			bitmap[i/bitsPerMap] |= 1 << (i % bitsPerMap)
		}
	}
	for i := range children {
		if !children[i].IsZero() {
			dst = append(dst, children[i][:]...)
		}
	}
	return dst
}

func decodeHead(data []byte, kind Kind) (count int, err error) {
	if len(data) < nodeHead {
		return 0, damaged(kind, "%d bytes are too short", len(data))
	}
	if string(data[:3]) != "fmn" || data[3] != version || data[5] != 0 {
		return 0, damaged(kind, "wrong head % x", data[:nodeHead])
	}
	if Kind(data[4]) != kind {
		return 0, damaged(kind, "is a %s", Kind(data[4]))
	}
	return int(binary.LittleEndian.Uint16(data[6:])), nil
}

// decodeChildren reads bitmap and ids, which must be all of data.
func decodeChildren(dst []ID, data []byte, kind Kind, count int) ([]ID, error) {
	mapLen := bitmapLen(count)
	if len(data) < mapLen {
		return nil, damaged(kind, "bitmap is cut off")
	}
	bitmap, ids := data[:mapLen], data[mapLen:]
	set := 0
	for _, b := range bitmap {
		set += bits.OnesCount8(b)
	}
	if count%bitsPerMap != 0 && bitmap[mapLen-1]>>(count%bitsPerMap) != 0 {
		return nil, damaged(kind, "bitmap goes beyond %d children", count)
	}
	if len(ids) != set*idBytes {
		return nil, damaged(kind, "%d bytes of ids, want %d", len(ids), set*idBytes)
	}
	for i := range count {
		if bitmap[i/bitsPerMap]&(1<<(i%bitsPerMap)) == 0 {
			dst = append(dst, ID{})
			continue
		}
		id := ID(ids[:idBytes])
		ids = ids[idBytes:]
		if id.IsZero() {
			return nil, damaged(kind, "child %d has the zero id", i)
		}
		dst = append(dst, id)
	}
	return dst, nil
}

func bitmapLen(children int) int { return (children + bitsPerMap - 1) / bitsPerMap }

// ceilDiv does not overflow for any n of an int64.
func ceilDiv(n, d int64) int64 {
	q := n / d
	if n%d != 0 {
		q++
	}
	return q
}

func damaged(kind Kind, format string, args ...any) error {
	return damage.New(kind.String(), fmt.Errorf(format, args...))
}
