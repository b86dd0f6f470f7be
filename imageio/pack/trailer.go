package pack

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"fermata/imageio/damage"
	"fermata/imageio/frame"
	"fermata/imageio/object"
	"fermata/imageio/seal"
)

// footerMagic ends every pack.
const footerMagic = "FMPKFOOT"

// footer finds the trailer.
type footer struct {
	offset int64
	length int64
	digest [sha256.Size]byte
}

// encodeHeader frames h.
func encodeHeader(h Header) ([]byte, error) {
	body, err := json.Marshal(h)
	if err != nil {
		return nil, fmt.Errorf("encode pack header: %w", err)
	}
	return headerKind().Encode(body)
}

// decodeHeader reads a header that more bytes may follow and returns its
// length as well.
func decodeHeader(data []byte) (Header, int, error) {
	body, rest, err := headerKind().DecodePrefix(data)
	if err != nil {
		return Header{}, 0, err
	}
	var h Header
	if err := json.Unmarshal(body, &h); err != nil {
		return Header{}, 0, damage.New("pack header", err)
	}
	return h, len(data) - len(rest), nil
}

// trailerContext is what the tables of a pack with this header are sealed for.
func trailerContext(header []byte) string { return "trailer of " + string(header) }

// encodeTrailer returns trailer and footer for a pack whose runs end at offset, with
// the tables sealed if there is a domain.
func encodeTrailer(header []byte, t *Trailer, offset int64, domain *seal.Domain) ([]byte, error) {
	tables, version := encodeTables(t), uint32(plainVersion)
	if domain != nil {
		var err error
		if tables, err = domain.Seal(nil, tables, trailerContext(header)); err != nil {
			return nil, err
		}
		version = sealedVersion
	}
	out := make([]byte, 0, 4+len(header)+len(tables)+footerLen)
	out = binary.LittleEndian.AppendUint32(out, uint32(len(header)))
	out = append(out, header...)
	out = append(out, tables...)
	length := len(out)
	out = append(out, footerMagic...)
	out = binary.LittleEndian.AppendUint32(out, version)
	out = binary.LittleEndian.AppendUint32(out, 0)
	out = binary.LittleEndian.AppendUint64(out, uint64(offset))
	out = binary.LittleEndian.AppendUint64(out, uint64(length))
	sum := sha256.Sum256(out)
	return append(out, sum[:]...), nil
}

// encodeTables returns what tables reads.
func encodeTables(t *Trailer) []byte {
	out := make([]byte, 0, 8+len(t.Runs)*runEntryLen+len(t.Objects)*objEntryLen)
	out = binary.LittleEndian.AppendUint32(out, uint32(len(t.Runs)))
	out = binary.LittleEndian.AppendUint32(out, uint32(len(t.Objects)))
	for _, r := range t.Runs {
		out = binary.LittleEndian.AppendUint32(out, r.StoredLen)
		out = binary.LittleEndian.AppendUint32(out, r.RawLen)
		out = binary.LittleEndian.AppendUint32(out, r.CRC)
		out = binary.LittleEndian.AppendUint16(out, uint16(r.Count))
		out = append(out, byte(r.Algorithm), 0)
	}
	for i := range t.Objects {
		o := &t.Objects[i]
		out = append(out, o.ID[:]...)
		out = binary.LittleEndian.AppendUint32(out, o.Length|uint32(o.Kind)<<24)
	}
	return out
}

// decodeFooter reads the last bytes of a pack of size bytes. The digest is
// checked by decodeTrailer, which has all it covers.
func decodeFooter(data []byte, size int64) (footer, error) {
	if len(data) != footerLen || string(data[:8]) != footerMagic {
		return footer{}, errors.New("footer: wrong magic")
	}
	offset := binary.LittleEndian.Uint64(data[16:])
	length := binary.LittleEndian.Uint64(data[24:])
	if length > maxTrailerLen {
		return footer{}, fmt.Errorf("footer: trailer of %d bytes, limit %d", length, maxTrailerLen)
	}
	if offset > uint64(size) || offset+length+footerLen != uint64(size) {
		return footer{}, fmt.Errorf("footer: trailer [%d,+%d) does not end a pack of %d bytes", offset, length, size)
	}
	return footer{offset: int64(offset), length: int64(length), digest: [sha256.Size]byte(data[footerHeadLen:])}, nil
}

// decodeTrailer reads trailer and footer, which are exactly data. What was sealed is
// opened in its place.
//
// On error: not yet named; or frame.ErrNewerFormat.
func decodeTrailer(data []byte, f footer, domain *seal.Domain) (*Trailer, error) {
	if int64(len(data)) != f.length+footerLen {
		return nil, fmt.Errorf("trailer: %d bytes, want %d", len(data), f.length+footerLen)
	}
	sum := sha256.Sum256(data[:f.length+footerHeadLen])
	if sum != f.digest {
		return nil, errors.New("trailer: wrong digest")
	}
	switch v := binary.LittleEndian.Uint32(data[f.length+8:]); {
	case v != plainVersion && v != sealedVersion:
		return nil, fmt.Errorf("pack of version %d, known are %d and %d: %w", v, plainVersion, sealedVersion, frame.ErrNewerFormat)
	case v == sealedVersion && domain == nil:
		return nil, errors.New("trailer: is encrypted, the repository is not")
	case v == plainVersion && domain != nil:
		return nil, errors.New("trailer: is not encrypted, the repository is")
	}
	if binary.LittleEndian.Uint32(data[f.length+12:]) != 0 {
		return nil, errors.New("footer: reserved bytes are set")
	}
	d := tableReader{data: data[:f.length]}
	t := &Trailer{}
	headerLen, err := d.header(t)
	if err != nil {
		return nil, err
	}
	overhead := 0
	if domain != nil {
		overhead = seal.Overhead
		if d.data, err = domain.Open(d.data, trailerContext(data[4:4+headerLen])); err != nil {
			return nil, fmt.Errorf("trailer: %w", err)
		}
	}
	if err := d.tables(t); err != nil {
		return nil, err
	}
	if err := t.place(int64(headerLen), f.offset, uint32(overhead)); err != nil {
		return nil, err
	}
	return t, nil
}

// tableReader consumes the bytes of a trailer.
type tableReader struct{ data []byte }

func (d *tableReader) take(n int) ([]byte, error) {
	if n < 0 || n > len(d.data) {
		return nil, fmt.Errorf("trailer: cut off, %d bytes wanted of %d", n, len(d.data))
	}
	b := d.data[:n]
	d.data = d.data[n:]
	return b, nil
}

func (d *tableReader) u32() (int, error) {
	b, err := d.take(4)
	if err != nil {
		return 0, err
	}
	return int(binary.LittleEndian.Uint32(b)), nil
}

func (d *tableReader) header(t *Trailer) (int, error) {
	n, err := d.u32()
	if err != nil {
		return 0, err
	}
	b, err := d.take(n)
	if err != nil {
		return 0, err
	}
	h, used, err := decodeHeader(b)
	if err != nil {
		return 0, err
	}
	if used != n {
		return 0, errors.New("trailer: header with bytes behind it")
	}
	t.Header = h
	return n, nil
}

// tables reads the tables as they stand; place checks and completes them.
func (d *tableReader) tables(t *Trailer) error {
	runs, err := d.u32()
	if err != nil {
		return err
	}
	objects, err := d.u32()
	if err != nil {
		return err
	}
	if runs > MaxRuns || objects > MaxObjects || len(d.data) != runs*runEntryLen+objects*objEntryLen {
		return fmt.Errorf("trailer: %d bytes of tables for %d runs and %d objects", len(d.data), runs, objects)
	}
	t.Runs = make([]Run, runs)
	for i := range t.Runs {
		b := d.data[i*runEntryLen:]
		if b[15] != 0 {
			return fmt.Errorf("trailer: reserved byte of run %d is set", i)
		}
		t.Runs[i] = Run{
			StoredLen: binary.LittleEndian.Uint32(b),
			RawLen:    binary.LittleEndian.Uint32(b[4:]),
			CRC:       binary.LittleEndian.Uint32(b[8:]),
			Count:     uint32(binary.LittleEndian.Uint16(b[12:])),
			Algorithm: Algorithm(b[14]),
		}
	}
	table := d.data[runs*runEntryLen:]
	t.Objects = make([]Object, objects)
	for i := range t.Objects {
		b := table[i*objEntryLen:]
		word := binary.LittleEndian.Uint32(b[32:])
		t.Objects[i] = Object{ID: object.ID(b[:32]), Kind: object.Kind(word >> 24), Length: word & (1<<24 - 1)}
	}
	return nil
}

// place fills in what follows from the order of the tables, and checks that
// runs and objects cover the pack exactly. overhead is what sealing adds to a run.
func (t *Trailer) place(start, end int64, overhead uint32) error {
	next := 0
	for i := range t.Runs {
		r := &t.Runs[i]
		if r.RawLen == 0 || r.RawLen > MaxRunBytes || r.StoredLen <= overhead || r.StoredLen > r.RawLen+overhead ||
			r.Algorithm < Raw || r.Algorithm > Zstd || r.Algorithm == Raw && r.StoredLen != r.RawLen+overhead {
			return fmt.Errorf("trailer: run %d of %d bytes, %d raw, %s", i, r.StoredLen, r.RawLen, r.Algorithm)
		}
		if r.Count == 0 || int(r.Count) > len(t.Objects)-next {
			return fmt.Errorf("trailer: run %d of %d objects, %d left", i, r.Count, len(t.Objects)-next)
		}
		r.Offset, r.First = start, uint32(next)
		start += int64(r.StoredLen)
		if err := placeObjects(t.Objects[next:next+int(r.Count)], uint32(i), r.RawLen); err != nil {
			return err
		}
		next += int(r.Count)
	}
	if start != end || next != len(t.Objects) {
		return fmt.Errorf("trailer: runs end at %d instead of %d, %d objects of %d", start, end, next, len(t.Objects))
	}
	return nil
}

func placeObjects(objects []Object, run, rawLen uint32) error {
	off := uint32(0)
	for i := range objects {
		o := &objects[i]
		if !o.Kind.Valid() || o.Length == 0 || o.Length > rawLen-off || o.Kind == object.KindPage && o.Length != object.PageBytes {
			return fmt.Errorf("trailer: %s of %d bytes at %d in run %d", o.Kind, o.Length, off, run)
		}
		o.Run, o.Offset = run, off
		off += o.Length
	}
	if off != rawLen {
		return fmt.Errorf("trailer: objects fill %d bytes of %d in run %d", off, rawLen, run)
	}
	return nil
}

// equal compares what was written with what a reader makes of it.
func (t *Trailer) equal(o *Trailer) bool {
	return t.Header == o.Header && slices.Equal(t.Runs, o.Runs) && slices.Equal(t.Objects, o.Objects)
}
