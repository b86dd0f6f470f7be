package pack

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"

	"fermata/imageio/damage"
	"fermata/imageio/frame"
	"fermata/imageio/object"
	"fermata/imageio/vfs"
	"fermata/imageio/vfs/crashfs"
)

const (
	tempName  = "/p.tmp"
	finalName = "/p"
)

func testHeader() Header {
	return Header{ID: ID{1, 2, 3}, Repository: "r", Cluster: "web", Epoch: 7, Node: "n1"}
}

// pages returns n pages that compress more or less.
func pages(n int) [][]byte {
	rng := rand.New(rand.NewPCG(1, 2))
	out := make([][]byte, n)
	for i := range out {
		out[i] = make([]byte, object.PageBytes)
		for j := range out[i][:rng.IntN(object.PageBytes)] {
			out[i][j] = byte(rng.Uint32())
		}
		out[i][0] = byte(i + 1)
	}
	return out
}

func mustEncode(t testing.TB, e *Encoder, raw []byte) Encoded {
	t.Helper()
	enc, err := e.Encode(nil, raw)
	if err != nil {
		t.Fatal(err)
	}
	return enc
}

// writePack writes runs of three pages with every algorithm in turn.
func writePack(t testing.TB, fsys vfs.FS, contents [][]byte) int64 {
	t.Helper()
	w, err := Create(fsys, tempName, finalName, testHeader(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	for run := 0; len(contents) > 0; run++ {
		n := min(3, len(contents))
		e, err := NewEncoder([]Algorithm{Raw, S2, Zstd}[run%3], 1)
		if err != nil {
			t.Fatal(err)
		}
		var raw []byte
		var objects []Object
		for _, p := range contents[:n] {
			raw = append(raw, p...)
			objects = append(objects, Object{ID: object.Sum(p), Kind: object.KindPage, Length: object.PageBytes})
		}
		if err := w.Append(mustEncode(t, e, raw), objects); err != nil {
			t.Fatal(err)
		}
		contents = contents[n:]
	}
	size, err := w.Finalise()
	if err != nil {
		t.Fatal(err)
	}
	return size
}

// readPack returns every object of the pack, each verified.
func readPack(fsys vfs.FS) ([][]byte, error) {
	tr, err := ReadTrailer(fsys, finalName, testHeader().ID, nil)
	if err != nil {
		return nil, err
	}
	f, err := fsys.Open(finalName)
	if err != nil {
		return nil, err
	}
	var d Decoder
	var out [][]byte
	for _, run := range tr.Runs {
		stored, err := ReadRun(f, run, nil)
		if err != nil {
			return nil, err
		}
		raw, err := d.Decode(nil, run, stored)
		if err != nil {
			return nil, err
		}
		for _, o := range tr.Objects[run.First : run.First+run.Count] {
			data := raw[o.Offset : o.Offset+o.Length]
			if object.Sum(data) != o.ID {
				return nil, fmt.Errorf("object %s: %w", o.ID, damage.ErrCorrupt)
			}
			out = append(out, data)
		}
	}
	return out, nil
}

func TestPack_RoundTrip(t *testing.T) {
	for _, n := range []int{0, 1, 3, 10, 600} {
		fsys := crashfs.New(1)
		want := pages(n)
		size := writePack(t, fsys, want)
		info, err := fsys.Stat(finalName)
		if err != nil || info.Size != size {
			t.Fatalf("size %d, told %d, %v", info.Size, size, err)
		}
		got, err := readPack(fsys)
		if err != nil {
			t.Fatal(err)
		}
		if len(got) != len(want) {
			t.Fatalf("%d objects of %d", len(got), len(want))
		}
		for i := range want {
			if !bytes.Equal(got[i], want[i]) {
				t.Fatalf("object %d of %d differs", i, n)
			}
		}
		h, err := ReadHeader(fsys, finalName, testHeader().ID)
		if err != nil || h != testHeader() {
			t.Fatalf("header %+v, %v", h, err)
		}
		if _, err := fsys.Stat(tempName); err == nil {
			t.Fatal("temporary name is left")
		}
	}
}

// TestPack_EveryFlippedByteIsDamage leaves no byte of a pack uncovered.
func TestPack_EveryFlippedByteIsDamage(t *testing.T) {
	fsys := crashfs.New(1)
	size := writePack(t, fsys, pages(4))
	rng := rand.New(rand.NewPCG(3, 4))
	for off := int64(0); off < size; off += 1 + rng.Int64N(7) {
		mask := byte(1 + rng.IntN(255))
		flip(t, fsys, off, mask)
		_, err := readPack(fsys)
		if err == nil {
			_, err = ReadHeader(fsys, finalName, testHeader().ID)
		}
		if !errors.Is(err, damage.ErrCorrupt) {
			t.Fatalf("byte %d of %d ^ %02x: %v", off, size, mask, err)
		}
		flip(t, fsys, off, mask)
	}
	if _, err := readPack(fsys); err != nil {
		t.Fatal(err)
	}
}

func flip(t testing.TB, fsys *crashfs.FS, off int64, mask byte) {
	t.Helper()
	if err := fsys.FlipByte(finalName, off, mask); err != nil {
		t.Fatal(err)
	}
}

func TestReadTrailer_WrongPackIsDamage(t *testing.T) {
	fsys := crashfs.New(1)
	writePack(t, fsys, pages(1))
	var d *damage.Error
	if _, err := ReadTrailer(fsys, finalName, ID{9}, nil); !errors.As(err, &d) || d.Object != Name(ID{9}) {
		t.Fatal(err)
	}
}

func TestReadTrailer_IOErrorIsNotDamage(t *testing.T) {
	fsys := crashfs.New(1)
	writePack(t, fsys, pages(1))
	fsys.Inject(func(op crashfs.Op) error {
		if op.Kind == "read" {
			return syscall.EIO
		}
		return nil
	})
	if _, err := ReadTrailer(fsys, finalName, testHeader().ID, nil); !errors.Is(err, syscall.EIO) || errors.Is(err, damage.ErrCorrupt) {
		t.Fatal(err)
	}
}

func TestReadTrailer_NewerVersion(t *testing.T) {
	tr := Trailer{Header: testHeader()}
	header, err := encodeHeader(tr.Header)
	if err != nil {
		t.Fatal(err)
	}
	tail, err := encodeTrailer(header, &tr, int64(len(header)), nil)
	if err != nil {
		t.Fatal(err)
	}
	f, err := decodeFooter(tail[len(tail)-footerLen:], int64(len(header)+len(tail)))
	if err != nil {
		t.Fatal(err)
	}
	tail[f.length+8] = sealedVersion + 1
	sum := object.Sum(tail[:f.length+footerHeadLen])
	f.digest = sum
	if _, err := decodeTrailer(tail, f, nil); !errors.Is(err, frame.ErrNewerFormat) {
		t.Fatal(err)
	}
}

func TestWriter_ErrorSticksAndDiscardRemoves(t *testing.T) {
	fsys := crashfs.New(1)
	w, err := Create(fsys, tempName, finalName, testHeader(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	fsys.FailAt(0, syscall.ENOSPC)
	if _, err := w.Finalise(); !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	if _, err := w.Finalise(); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("the error did not stick: %v", err)
	}
	for range 2 {
		if err := w.Discard(); err != nil {
			t.Fatal(err)
		}
	}
	if names, err := fsys.List("/"); err != nil || len(names) != 0 {
		t.Fatalf("left %q, %v", names, err)
	}
}

func TestWriter_WritesWholeChunks(t *testing.T) {
	fsys := crashfs.New(1)
	writePack(t, fsys, pages(2000))
	var off int64
	for line := range bytes.Lines([]byte(fsys.Log())) {
		var name string
		var n int64
		if _, err := fmt.Sscanf(string(line), "write %s %d", &name, &n); err != nil {
			continue
		}
		if off%writeChunk != 0 {
			t.Fatalf("a write at %d", off)
		}
		off += n
	}
	if off <= 2*writeChunk {
		t.Fatalf("pack of %d bytes proves nothing", off)
	}
}

func TestDecoder_RunThatClaimsTooMuch(t *testing.T) {
	e, err := NewEncoder(S2, 1)
	if err != nil {
		t.Fatal(err)
	}
	enc := mustEncode(t, e, make([]byte, 8192))
	run := Run{StoredLen: uint32(len(enc.Stored)), RawLen: 4096, CRC: enc.CRC, Algorithm: enc.Algorithm}
	if _, err := new(Decoder).Decode(nil, run, enc.Stored); !errors.Is(err, damage.ErrCorrupt) {
		t.Fatal(err)
	}
}

func FuzzDecodeTrailer(f *testing.F) {
	seed := func(tr Trailer, runsEnd int64) {
		header, err := encodeHeader(tr.Header)
		if err != nil {
			f.Fatal(err)
		}
		tail, err := encodeTrailer(header, &tr, int64(len(header))+runsEnd, nil)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(tail)
	}
	seed(Trailer{Header: testHeader()}, 0)
	seed(Trailer{Header: testHeader(),
		Runs:    []Run{{StoredLen: 5, RawLen: 4096, Count: 1, Algorithm: S2}},
		Objects: []Object{{ID: object.ID{1}, Kind: object.KindPage, Length: 4096}}}, 5)
	f.Fuzz(func(t *testing.T, tail []byte) {
		if len(tail) < footerLen {
			return
		}
		// The digest would stop nearly every mutation at the door, so it is
		// made right: the tables behind it are what is under test.
		sum := object.Sum(tail[:len(tail)-32])
		copy(tail[len(tail)-32:], sum[:])
		foot, err := decodeFooter(tail[len(tail)-footerLen:], claimedSize(tail))
		if err != nil {
			return
		}
		tr, err := decodeTrailer(tail, foot, nil)
		if err != nil {
			return
		}
		for _, o := range tr.Objects {
			if int(o.Run) >= len(tr.Runs) || o.Offset+o.Length > tr.Runs[o.Run].RawLen {
				t.Fatalf("object outside its run: %+v", o)
			}
		}
	})
}

// claimedSize is the size of pack that would fit the tail's footer.
func claimedSize(tail []byte) int64 {
	f := tail[len(tail)-footerLen:]
	var off uint64
	for i := range 8 {
		off |= uint64(f[16+i]) << (8 * i)
	}
	return int64(off%(1<<40)) + int64(len(tail))
}

func FuzzDecodeRun(f *testing.F) {
	for _, a := range []Algorithm{Raw, S2, Zstd} {
		e, err := NewEncoder(a, 1)
		if err != nil {
			f.Fatal(err)
		}
		enc := mustEncode(f, e, bytes.Repeat([]byte("fermata "), 512))
		f.Add(enc.Stored, uint32(enc.RawLen), uint8(enc.Algorithm))
	}
	d := new(Decoder)
	f.Fuzz(func(t *testing.T, stored []byte, rawLen uint32, algorithm uint8) {
		run := Run{StoredLen: uint32(len(stored)), RawLen: rawLen, CRC: checksum(stored), Algorithm: Algorithm(algorithm)}
		raw, err := d.Decode(nil, run, stored)
		if err == nil && len(raw) != int(rawLen) {
			t.Fatalf("%d bytes, want %d", len(raw), rawLen)
		}
	})
}
