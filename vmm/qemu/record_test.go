package qemu

import (
	"bytes"
	"errors"
	"testing"

	"fermata/vmm"
)

func TestRecord_EveryBitCounts(t *testing.T) {
	record := encodeRecord(methodMigrate, []byte("a device stream"))
	method, stream, err := decodeRecord(record)
	if err != nil || method != methodMigrate || string(stream) != "a device stream" {
		t.Fatalf("method %d, stream %q, %v", method, stream, err)
	}
	for i := range len(record) * 8 {
		damaged := bytes.Clone(record)
		damaged[i/8] ^= 1 << (i % 8)
		if _, _, err := decodeRecord(damaged); !errors.Is(err, vmm.ErrCorrupt) {
			t.Fatalf("bit %d: %v, want ErrCorrupt", i, err)
		}
	}
	for n := range len(record) {
		if _, _, err := decodeRecord(record[:n]); !errors.Is(err, vmm.ErrCorrupt) {
			t.Fatalf("%d bytes: %v, want ErrCorrupt", n, err)
		}
	}
	if _, _, err := decodeRecord(append(record, 0)); !errors.Is(err, vmm.ErrCorrupt) {
		t.Fatalf("a byte more: %v, want ErrCorrupt", err)
	}
	if _, _, err := decodeRecord(encodeRecord(7, nil)); !errors.Is(err, vmm.ErrCorrupt) {
		t.Fatalf("method 7: %v, want ErrCorrupt", err)
	}
}

// FuzzDecodeRecord: any bytes are a record or ErrCorrupt, and a record is what
// encodeRecord makes of its contents.
func FuzzDecodeRecord(f *testing.F) {
	f.Add([]byte(recordMagic))
	f.Add(encodeRecord(methodXen, nil))
	f.Add(encodeRecord(methodMigrate, []byte("stream")))
	f.Fuzz(func(t *testing.T, b []byte) {
		method, stream, err := decodeRecord(b)
		if err != nil {
			if !errors.Is(err, vmm.ErrCorrupt) {
				t.Fatalf("error %v, want ErrCorrupt", err)
			}
			return
		}
		if !bytes.Equal(encodeRecord(method, stream), b) {
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
