package qemu

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"reflect"
	"testing"

	"fermata/vmm"
)

// sampleState has everything that a record can hold.
func sampleState() deviceState {
	return deviceState{
		method: methodXen, stream: []byte("a device stream"),
		blocks: []blockBytes{{"pc.bios", bytes.Repeat([]byte{0x5a}, 2*pageSize)}, {"pc.rom", make([]byte, pageSize)}},
	}
}

func TestRecord_EveryBitCounts(t *testing.T) {
	record := sampleState().encode()
	s, err := decodeRecord(record)
	if err != nil || !reflect.DeepEqual(s, sampleState()) {
		t.Fatalf("%+v, %v", s, err)
	}
	for i := range len(record) * 8 {
		damaged := bytes.Clone(record)
		damaged[i/8] ^= 1 << (i % 8)
		if _, err := decodeRecord(damaged); !errors.Is(err, vmm.ErrCorrupt) {
			t.Fatalf("bit %d: %v, want ErrCorrupt", i, err)
		}
	}
	for n := range len(record) {
		if _, err := decodeRecord(record[:n]); !errors.Is(err, vmm.ErrCorrupt) {
			t.Fatalf("%d bytes: %v, want ErrCorrupt", n, err)
		}
	}
	if _, err := decodeRecord(append(record, 0)); !errors.Is(err, vmm.ErrCorrupt) {
		t.Fatalf("a byte more: %v, want ErrCorrupt", err)
	}
	if _, err := decodeRecord(deviceState{method: 7}.encode()); !errors.Is(err, vmm.ErrCorrupt) {
		t.Fatalf("method 7: %v, want ErrCorrupt", err)
	}
}

// TestRecord_Version1: states of earlier versions stay readable.
func TestRecord_Version1(t *testing.T) {
	s, err := decodeRecord(encodeVersion1(methodMigrate, []byte("stream")))
	if err != nil || s.method != methodMigrate || string(s.stream) != "stream" || s.blocks != nil {
		t.Fatalf("%+v, %v", s, err)
	}
}

// encodeVersion1 frames a stream as version 1 did.
func encodeVersion1(method recordMethod, stream []byte) []byte {
	b := []byte(recordMagic)
	b = binary.LittleEndian.AppendUint32(b, recordVersion1)
	b = binary.LittleEndian.AppendUint32(b, uint32(method))
	b = binary.LittleEndian.AppendUint64(b, uint64(len(stream)))
	b = append(b, stream...)
	sum := sha256.Sum256(b)
	return append(b, sum[:]...)
}

// FuzzDecodeRecord: any bytes are a record or ErrCorrupt, and a record is what
// encode makes of its contents.
func FuzzDecodeRecord(f *testing.F) {
	f.Add([]byte(recordMagic))
	f.Add(deviceState{method: methodXen}.encode())
	f.Add(sampleState().encode())
	f.Add(encodeVersion1(methodMigrate, []byte("stream")))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := decodeRecord(b)
		if err != nil {
			if !errors.Is(err, vmm.ErrCorrupt) {
				t.Fatalf("error %v, want ErrCorrupt", err)
			}
			return
		}
		if !bytes.Equal(s.encode(), b) && !bytes.Equal(encodeVersion1(s.method, s.stream), b) {
			t.Fatal("decoded what was never encoded")
		}
	})
}

func TestMaxStateBytes(t *testing.T) {
	for memory, want := range map[uint64]uint64{minMemory: 2 * mib, 512 * mib: 64 * mib, 1 << 40: maxStream} {
		if got := maxStateBytes(memory); got != want {
			t.Errorf("%d of memory: %d, want %d", memory, got, want)
		}
	}
}
