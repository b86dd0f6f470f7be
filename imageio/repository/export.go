package repository

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"fermata/imageio/damage"
	"fermata/imageio/frame"
	"fermata/imageio/manifest"
	"fermata/imageio/object"
	"fermata/imageio/pack"
	"fermata/imageio/seal"
)

// The frames of an export, in order; FORMAT.md, "Exports", draws them.
func exportKind() frame.Kind {
	return frame.Kind{Name: "export", Magic: [8]byte{'F', 'M', 'E', 'X', 'P', 'O', 'R', 'T'}, Version: 1, MaxBody: manifest.MaxBodyBytes + frame.Overhead}
}

func exportRunKind() frame.Kind {
	return frame.Kind{Name: "run of an export", Magic: [8]byte{'F', 'M', 'E', 'X', 'P', 'R', 'U', 'N'}, Version: 1, MaxBody: exportHead + maxExportObjects*exportEntry + pack.MaxRunBytes}
}

func exportEndKind() frame.Kind {
	return frame.Kind{Name: "end of an export", Magic: [8]byte{'F', 'M', 'E', 'X', 'P', 'E', 'N', 'D'}, Version: 1, MaxBody: 4096}
}

const (
	exportHead       = 16      // of a run: stored length, raw length, CRC-32C, objects u16, algorithm u8, 0
	exportEntry      = 4       // of an object: length u24, kind u8
	maxExportObjects = 1 << 15 // in a run
)

// exportEnd tells that an export is whole.
type exportEnd struct {
	Objects uint64 `json:"objects"`
}

// ExportOptions modify Export.
type ExportOptions struct {
	// Key encrypts the export. Nil: the key with which the repository was opened.
	Key *seal.Key
	// Plain leaves the export of an encrypted repository unencrypted.
	Plain bool
	// Progress is told how many bytes of the images are done.
	Progress func(done, total int64)
}

// Export writes a checkpoint with everything that a restart needs to a stream, from
// which Import makes it a checkpoint again, in this repository or another.
func (r *Repository) Export(ctx context.Context, cluster string, epoch uint64, to io.Writer, opt ExportOptions) error {
	e := epochKey{cluster, epoch}
	if err := r.export(ctx, e, to, opt); err != nil {
		return fmt.Errorf("export %s: %w", e, err)
	}
	return nil
}

func (r *Repository) export(ctx context.Context, e epochKey, to io.Writer, opt ExportOptions) error {
	m, err := r.Manifest(ctx, e.cluster, e.epoch)
	if err != nil {
		return err
	}
	rd, err := r.NewReader(ctx, m.Packs)
	if err != nil {
		return err
	}
	encoder, err := r.newEncoder()
	if err != nil {
		return err
	}
	encoder.Domain = nil // whole frames are sealed
	record, err := manifest.Encode(m)
	if err != nil {
		return err
	}
	x := &exporter{to: to, encoder: encoder, compressed: make([]byte, pack.MaxStoredLen(pack.MaxRunBytes)), target: r.cfg.RunBytes}
	if opt.Key == nil {
		opt.Key = r.cfg.Key
	}
	if opt.Key != nil && !opt.Plain {
		if err := x.encrypt(*opt.Key); err != nil {
			return err
		}
	}
	if err := x.frame(exportKind(), record); err != nil {
		return err
	}
	if opt.Progress == nil {
		opt.Progress = func(int64, int64) {}
	}
	seen := placeSet{rd: rd}
	err = rd.eachObjectOf(ctx, m, traversal{want: func(_ object.Kind, id object.ID) bool { return seen.add(id) }, take: x.add}, opt.Progress)
	if err != nil {
		return err
	}
	return x.end()
}

// exporter collects objects in runs and writes them.
type exporter struct {
	to         io.Writer
	encoder    *pack.Encoder
	target     int
	compressed []byte

	domain *seal.Domain // of this export; nil: not encrypted
	frames int          // written, under mu if there are several callers

	mu      sync.Mutex
	raw     []byte   // guarded by mu
	entries []uint32 // guarded by mu; of the objects in raw
	objects uint64   // guarded by mu
}

// exportOwner is what the data key of an export is wrapped for. Each export has one
// of its own.
const exportOwner = "export"

// frameContext is what a frame of an encrypted export is sealed for.
func frameContext(n int) string { return fmt.Sprintf("frame %d of an export", n) }

// encrypt has all frames after this call sealed with a new data key.
func (x *exporter) encrypt(key seal.Key) error {
	domain, err := seal.NewDomain()
	if err != nil {
		return err
	}
	data, err := encodeWrapping(key, domain, exportOwner)
	if err != nil {
		return err
	}
	if _, err := x.to.Write(data); err != nil {
		return err
	}
	x.domain = domain
	return nil
}

func (x *exporter) frame(k frame.Kind, body []byte) error {
	data, err := k.Encode(body)
	if err == nil {
		data, err = sealRecord(x.domain, frameContext(x.frames), data)
	}
	if err != nil {
		return err
	}
	x.frames++
	_, err = x.to.Write(data)
	return err
}

func (x *exporter) add(kind object.Kind, _ object.ID, data []byte) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if len(x.raw) > 0 && (len(x.raw)+len(data) > x.target || len(x.entries) == maxExportObjects) {
		if err := x.flush(); err != nil {
			return err
		}
	}
	x.raw = append(x.raw, data...)
	x.entries = append(x.entries, uint32(len(data))|uint32(kind)<<24)
	x.objects++
	return nil
}

// flush writes a run. Callers hold mu, or are alone.
func (x *exporter) flush() error {
	if len(x.raw) == 0 {
		return nil
	}
	enc, err := x.encoder.Encode(x.compressed, x.raw)
	if err != nil {
		return err
	}
	body := make([]byte, 0, exportHead+exportEntry*len(x.entries)+len(enc.Stored))
	body = binary.LittleEndian.AppendUint32(body, uint32(len(enc.Stored)))
	body = binary.LittleEndian.AppendUint32(body, uint32(enc.RawLen))
	body = binary.LittleEndian.AppendUint32(body, enc.CRC)
	body = binary.LittleEndian.AppendUint16(body, uint16(len(x.entries)))
	body = append(body, byte(enc.Algorithm), 0)
	for _, e := range x.entries {
		body = binary.LittleEndian.AppendUint32(body, e)
	}
	body = append(body, enc.Stored...)
	x.raw, x.entries = x.raw[:0], x.entries[:0]
	return x.frame(exportRunKind(), body)
}

func (x *exporter) end() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if err := x.flush(); err != nil {
		return err
	}
	body, err := json.Marshal(exportEnd{Objects: x.objects})
	if err != nil {
		return err
	}
	return x.frame(exportEndKind(), body)
}

// ImportOptions modify Import.
type ImportOptions struct {
	// Key opens an encrypted export. Nil: the key with which the repository was opened.
	Key *seal.Key
	// Progress is told how many bytes of objects were read.
	Progress func(doneBytes int64)
}

// Import reads what Export wrote and makes it a checkpoint, under the name it had.
// It reads the stream to its end, verifies all of it, and commits only what is
// complete. Importing again succeeds.
//
// On error: ErrOutcomeDecided if there is another outcome for the epoch;
// ErrCorrupt if the stream is damaged or cut off; ErrKeyMissing and ErrWrongKey if it
// is encrypted.
func (r *Repository) Import(ctx context.Context, from io.Reader, opt ImportOptions) (*manifest.Manifest, CopyReport, error) {
	if opt.Key == nil {
		opt.Key = r.cfg.Key
	}
	if opt.Progress == nil {
		opt.Progress = func(int64) {}
	}
	in := &importer{from: from, key: opt.Key}
	body, _, err := in.next(exportKind())
	if err != nil {
		return nil, CopyReport{}, fmt.Errorf("import: %w", err)
	}
	m, err := manifest.Decode(body)
	if err != nil {
		return nil, CopyReport{}, fmt.Errorf("import: %w", err)
	}
	report, err := r.receive(ctx, m, func(w *Writer) error { return in.putAll(ctx, w, opt.Progress) })
	if err != nil {
		return m, report, fmt.Errorf("import %s@%d: %w", m.Cluster, m.Epoch, err)
	}
	return m, report, nil
}

// importer reads the frames of an export.
type importer struct {
	from   io.Reader
	key    *seal.Key
	domain *seal.Domain // set by the first frame of an encrypted export
	frames int          // read
	buf    []byte
}

// putAll puts the objects of an export into a Writer.
func (in *importer) putAll(ctx context.Context, w *Writer, progress func(doneBytes int64)) error {
	var raw []byte
	var decoder pack.Decoder
	var objects uint64
	var done int64
	for {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		body, kind, err := in.next(exportRunKind(), exportEndKind())
		if err != nil {
			return err
		}
		if kind.Magic == exportEndKind().Magic {
			var end exportEnd
			if err := json.Unmarshal(body, &end); err != nil || end.Objects != objects {
				return damage.New(kind.Name, fmt.Errorf("%d objects of %d: %w", objects, end.Objects, errors.Join(err, damage.ErrCorrupt)))
			}
			return nil
		}
		var n int
		if raw, n, err = putRun(ctx, w, &decoder, body, raw); err != nil {
			return err
		}
		objects += uint64(n)
		done += int64(len(raw))
		progress(done)
	}
}

// next reads the next frame, which is one of the given kinds. The body is valid until
// the next call.
func (in *importer) next(kinds ...frame.Kind) (body []byte, kind frame.Kind, err error) {
	magic, from, err := peek(in.from)
	if err == nil && in.frames == 0 && wrappingKind().Is(magic) {
		if err = in.unlock(from); err == nil {
			magic, from, err = peek(in.from)
		}
	}
	if err != nil {
		return nil, kind, err
	}
	context := frameContext(in.frames)
	in.frames++
	if in.domain == nil {
		kind = ofMagic(kinds, magic)
		body, in.buf, err = kind.Read(from, in.buf)
		return body, kind, err
	}
	sealed, buf, err := sealedKind(slices.MaxFunc(kinds, func(a, b frame.Kind) int { return cmp.Compare(a.MaxLen(), b.MaxLen()) }).MaxLen()).Read(from, in.buf)
	in.buf = buf
	if err != nil {
		return nil, kind, err
	}
	data, err := in.domain.Open(sealed, context)
	if err != nil {
		return nil, kind, damage.New(context, err)
	}
	kind = ofMagic(kinds, data)
	body, err = kind.Decode(data)
	return body, kind, err
}

// peek returns how the next frame begins, and a reader of all of it.
func peek(from io.Reader) (magic []byte, all io.Reader, err error) {
	magic = make([]byte, 8)
	if _, err := io.ReadFull(from, magic); err != nil {
		return nil, nil, damage.New(exportKind().Name, fmt.Errorf("is cut off: %w", err))
	}
	return magic, io.MultiReader(bytes.NewReader(magic), from), nil
}

// ofMagic is the kind of a frame that begins like data; the first, if it is none of
// them.
func ofMagic(kinds []frame.Kind, data []byte) frame.Kind {
	if i := slices.IndexFunc(kinds, func(k frame.Kind) bool { return k.Is(data) }); i >= 0 {
		return kinds[i]
	}
	return kinds[0]
}

// unlock reads the data key at the beginning of an encrypted export.
func (in *importer) unlock(from io.Reader) error {
	body, _, err := wrappingKind().Read(from, nil)
	if err != nil {
		return err
	}
	w, err := decodeWrapping(body)
	if err != nil {
		return err
	}
	if in.key == nil {
		return fmt.Errorf("for key %.40q: %w", w.Key, ErrKeyMissing)
	}
	if w.Key != in.key.ID() {
		return fmt.Errorf("%s does not open it; key %.40q does: %w", in.key, w.Key, ErrWrongKey)
	}
	in.domain, err = w.open(*in.key, exportOwner)
	return err
}

// putRun decodes a run and stores its objects, named by what they are.
func putRun(ctx context.Context, w *Writer, decoder *pack.Decoder, body, buf []byte) (raw []byte, objects int, err error) {
	raw, list, err := decodeExportRun(decoder, body, buf)
	if err != nil {
		return raw, 0, err
	}
	for _, o := range list {
		data := raw[o.Offset:][:o.Length]
		if err := w.putObject(ctx, o.Kind, object.Sum(data), data); err != nil {
			return raw, 0, err
		}
	}
	return raw, len(list), nil
}

// decodeExportRun returns the bytes of a run, in buf if that is large enough, and where
// its objects lie. They fill it, in order, and have no ids yet.
//
// On error: damage.
func decodeExportRun(decoder *pack.Decoder, body, buf []byte) (raw []byte, objects []pack.Object, err error) {
	name := exportRunKind().Name
	if len(body) < exportHead {
		return buf, nil, damage.New(name, fmt.Errorf("%d bytes are too short", len(body)))
	}
	run := pack.Run{
		StoredLen: binary.LittleEndian.Uint32(body), RawLen: binary.LittleEndian.Uint32(body[4:]),
		CRC: binary.LittleEndian.Uint32(body[8:]), Algorithm: pack.Algorithm(body[14]),
	}
	count := int(binary.LittleEndian.Uint16(body[12:]))
	table := body[exportHead:]
	if body[15] != 0 || count > maxExportObjects || len(table) < count*exportEntry {
		return buf, nil, damage.New(name, fmt.Errorf("%d objects in %d bytes", count, len(body)))
	}
	table, stored := table[:count*exportEntry], table[count*exportEntry:]
	raw, err = decoder.Decode(buf, run, stored)
	if err != nil {
		return buf, nil, damage.New(name, err)
	}
	if run.Algorithm == pack.Raw { // it aliases the frame
		raw = append(buf[:0], raw...)
	}
	off := 0
	for i := range count {
		entry := binary.LittleEndian.Uint32(table[i*exportEntry:])
		length, kind := int(entry&(1<<24-1)), object.Kind(entry>>24)
		if !kind.Valid() || length == 0 || length > len(raw)-off {
			return raw, nil, damage.New(name, fmt.Errorf("object of kind %d with %d bytes of %d", kind, length, len(raw)-off))
		}
		objects = append(objects, pack.Object{Kind: kind, Offset: uint32(off), Length: uint32(length)})
		off += length
	}
	if off < len(raw) {
		return raw, nil, damage.New(name, fmt.Errorf("%d bytes behind the last object", len(raw)-off))
	}
	return raw, objects, nil
}
