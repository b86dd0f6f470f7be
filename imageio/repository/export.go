package repository

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"

	"fermata/imageio/damage"
	"fermata/imageio/frame"
	"fermata/imageio/manifest"
	"fermata/imageio/object"
	"fermata/imageio/pack"
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

// Export writes a checkpoint with everything that a restart needs to a stream, from
// which Import makes it a checkpoint again, in this repository or another.
//
// progress is told how many bytes of the images are done.
func (r *Repository) Export(ctx context.Context, cluster string, epoch uint64, to io.Writer, progress func(done, total int64)) error {
	e := epochKey{cluster, epoch}
	if err := r.export(ctx, e, to, progress); err != nil {
		return fmt.Errorf("export %s: %w", e, err)
	}
	return nil
}

func (r *Repository) export(ctx context.Context, e epochKey, to io.Writer, progress func(done, total int64)) error {
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
	record, err := manifest.Encode(m)
	if err != nil {
		return err
	}
	x := &exporter{to: to, encoder: encoder, compressed: make([]byte, pack.MaxStoredLen(pack.MaxRunBytes)), target: r.cfg.RunBytes}
	if err := x.frame(exportKind(), record); err != nil {
		return err
	}
	seen := placeSet{rd: rd}
	err = rd.eachObjectOf(ctx, m, traversal{want: func(_ object.Kind, id object.ID) bool { return seen.add(id) }, take: x.add}, progress)
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

	mu      sync.Mutex
	raw     []byte   // guarded by mu
	entries []uint32 // guarded by mu; of the objects in raw
	objects uint64   // guarded by mu
}

func (x *exporter) frame(k frame.Kind, body []byte) error {
	data, err := k.Encode(body)
	if err != nil {
		return err
	}
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
	enc := x.encoder.Encode(x.compressed, x.raw)
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

// Import reads what Export wrote and makes it a checkpoint, under the name it had.
// It reads the stream to its end, verifies all of it, and commits only what is
// complete. Importing again succeeds.
//
// progress is told how many bytes of objects were read.
//
// On error: ErrOutcomeDecided if there is another outcome for the epoch;
// ErrCorrupt if the stream is damaged or cut off.
func (r *Repository) Import(ctx context.Context, from io.Reader, progress func(doneBytes int64)) (*manifest.Manifest, CopyReport, error) {
	body, _, err := exportKind().Read(from, nil)
	if err == io.EOF {
		err = damage.New(exportKind().Name, io.ErrUnexpectedEOF)
	}
	if err != nil {
		return nil, CopyReport{}, fmt.Errorf("import: %w", err)
	}
	m, err := manifest.Decode(body)
	if err != nil {
		return nil, CopyReport{}, fmt.Errorf("import: %w", err)
	}
	report, err := r.receive(ctx, m, func(w *Writer) error { return readExport(ctx, w, from, progress) })
	if err != nil {
		return m, report, fmt.Errorf("import %s@%d: %w", m.Cluster, m.Epoch, err)
	}
	return m, report, nil
}

// readExport puts the objects of an export into a Writer.
func readExport(ctx context.Context, w *Writer, from io.Reader, progress func(doneBytes int64)) error {
	var buf, raw []byte
	var decoder pack.Decoder
	var objects uint64
	var done int64
	for {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		body, kind, grown, err := nextExported(from, buf)
		buf = grown
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

// nextExported reads the next frame, of a run or of the end.
func nextExported(from io.Reader, buf []byte) (body []byte, kind frame.Kind, grown []byte, err error) {
	var magic [8]byte
	if _, err := io.ReadFull(from, magic[:]); err != nil {
		return nil, kind, buf, damage.New(exportKind().Name, fmt.Errorf("is cut off: %w", err))
	}
	kind = exportRunKind()
	if magic == exportEndKind().Magic {
		kind = exportEndKind()
	}
	body, grown, err = kind.Read(io.MultiReader(bytes.NewReader(magic[:]), from), buf)
	return body, kind, grown, err
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
