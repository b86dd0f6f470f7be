package frame

import (
	"bytes"
	"errors"
	"testing"

	"fermata/imageio/damage"
)

var kind = Kind{Name: "test record", Magic: [8]byte{'F', 'M', 'T', 'T', 'E', 'S', 'T', 0}, Version: 1, MaxBody: 64}

func encode(t testing.TB, k Kind, body string) []byte {
	t.Helper()
	data, err := k.Encode([]byte(body))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestFrame_RoundTrip(t *testing.T) {
	for _, body := range []string{"", "x", string(bytes.Repeat([]byte{7}, 64))} {
		got, err := kind.Decode(encode(t, kind, body))
		if err != nil || string(got) != body {
			t.Fatalf("got %q, %v", got, err)
		}
	}
	if _, err := kind.Encode(make([]byte, 65)); err == nil {
		t.Fatal("encoded a body over the limit")
	}
}

func TestFrame_EveryFlippedBitIsDamage(t *testing.T) {
	data := encode(t, kind, "hello")
	for i := range data {
		for bit := range 8 {
			bad := bytes.Clone(data)
			bad[i] ^= 1 << bit
			if _, err := kind.Decode(bad); !errors.Is(err, damage.ErrCorrupt) {
				t.Fatalf("bit %d of byte %d: %v", bit, i, err)
			}
		}
	}
	for n := range data {
		if _, err := kind.Decode(data[:n]); !errors.Is(err, damage.ErrCorrupt) {
			t.Fatalf("cut to %d bytes: %v", n, err)
		}
	}
	if _, err := kind.Decode(append(data, 0)); !errors.Is(err, damage.ErrCorrupt) {
		t.Fatalf("one byte more: %v", err)
	}
}

func TestFrame_NewerVersionIsNotDamage(t *testing.T) {
	newer := kind
	newer.Version = 2
	_, err := kind.Decode(encode(t, newer, "from the future"))
	if !errors.Is(err, ErrNewerFormat) || errors.Is(err, damage.ErrCorrupt) {
		t.Fatal(err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(encode(f, kind, ""))
	f.Add(encode(f, kind, "hello"))
	f.Fuzz(func(t *testing.T, data []byte) {
		body, err := kind.Decode(data)
		if err != nil {
			return
		}
		again, err := kind.Encode(body)
		if err != nil || !bytes.Equal(again, data) {
			t.Fatalf("decoded frame encodes differently: %v", err)
		}
	})
}
