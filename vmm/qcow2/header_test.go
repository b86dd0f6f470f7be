package qcow2

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"fermata/protocol/mustrun"
)

// image builds a header of version 3, with extensions and a backing file's name.
func image(edit func(b []byte), backing string, extensions ...string) []byte {
	b := make([]byte, headerV3)
	copy(b, magic)
	binary.BigEndian.PutUint32(b[4:], 3)
	binary.BigEndian.PutUint32(b[20:], 16)
	binary.BigEndian.PutUint64(b[24:], 1<<20)
	binary.BigEndian.PutUint32(b[100:], headerV3)
	for _, e := range extensions {
		b = append(b, e...)
	}
	b = append(b, make([]byte, 8)...)
	if backing != "" {
		binary.BigEndian.PutUint64(b[8:], uint64(len(b)))
		binary.BigEndian.PutUint32(b[16:], uint32(len(backing)))
		b = append(b, backing...)
	}
	if edit != nil {
		edit(b)
	}
	return b
}

func extension(kind uint32, data string) string {
	b := binary.BigEndian.AppendUint32(nil, kind)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	b = append(b, data...)
	return string(append(b, make([]byte, (8-len(data)%8)%8)...))
}

func feature(bits uint64) func([]byte) {
	return func(b []byte) { binary.BigEndian.PutUint64(b[72:], bits) }
}

func TestRead(t *testing.T) {
	h, err := Read(bytes.NewReader(image(nil, "/images/base.raw", extension(0x6803f857, "names"), extension(extensionBackingFormat, "raw"))))
	if err != nil {
		t.Fatal(err)
	}
	want := Header{Version: 3, Size: 1 << 20, Backing: "/images/base.raw", BackingFormat: "raw"}
	if h != want {
		t.Errorf("header %+v, want %+v", h, want)
	}
	if err := h.Check(); err != nil {
		t.Errorf("check: %v", err)
	}
}

func TestRead_Corrupt(t *testing.T) {
	put32 := func(at int, v uint32) func([]byte) {
		return func(b []byte) { binary.BigEndian.PutUint32(b[at:], v) }
	}
	for name, b := range map[string][]byte{
		"empty":                    nil,
		"raw":                      bytes.Repeat([]byte{1}, 4096),
		"cut off":                  image(nil, "")[:80],
		"version":                  image(put32(4, 4), ""),
		"clusters too large":       image(put32(20, 62), ""),
		"clusters too small":       image(put32(20, 8), ""),
		"header too long":          image(put32(100, 1<<31), ""),
		"header too short":         image(put32(100, 8), ""),
		"name outside":             image(put32(12, 1<<20), "x"),
		"name in the header":       image(put32(12, 8), "x"),
		"name's offset overflows":  image(put32(8, 1<<31), "x"),
		"name too long":            image(put32(16, 1024), strings.Repeat("x", 2000)),
		"name with a zero byte":    image(nil, "/a\x00b"),
		"extension longer than it": image(nil, "", extension(1, "x")[:4]+"\xff\xff\xff\xff"),
	} {
		if h, err := Read(bytes.NewReader(b)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %+v, %v, want ErrCorrupt", name, h, err)
		}
	}
}

func TestCheck_Refuses(t *testing.T) {
	for name, c := range map[string]struct {
		image []byte
		says  string
	}{
		"data file":           {image(feature(featureDataFile), "", extension(extensionDataFile, "/etc/shadow")), "/etc/shadow"},
		"data file, no name":  {image(feature(featureDataFile), ""), "another file"},
		"data file, no bit":   {image(nil, "", extension(extensionDataFile, "/etc/shadow")), "/etc/shadow"},
		"encrypted":           {image(func(b []byte) { b[35] = 1 }, ""), "encrypted"},
		"encrypted extension": {image(nil, "", extension(extensionEncryption, strings.Repeat("x", 16))), "encrypted"},
		"corrupt":             {image(feature(featureCorrupt), ""), "corrupt"},
		"unknown feature":     {image(feature(1<<40), ""), "0x10000000000"},
	} {
		h, err := Read(bytes.NewReader(c.image))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if err := h.Check(); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want ErrRefused with %q", name, err, c.says)
		}
	}
}

// TestRead_QEMU reads images of the tool that makes them.
func TestRead_QEMU(t *testing.T) {
	mustrun.Need(t, mustrun.QEMU)
	dir := t.TempDir()
	base := filepath.Join(dir, "base.raw")
	if err := os.WriteFile(base, make([]byte, 3<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name    string
		args    []string
		want    Header
		refused bool
	}{
		{"overlay", []string{"-F", "raw", "-b", base}, Header{Version: 3, Size: 3 << 20, Backing: base, BackingFormat: "raw"}, false},
		{"compat", []string{"-o", "compat=0.10", "-F", "raw", "-b", base}, Header{Version: 2, Size: 3 << 20, Backing: base, BackingFormat: "raw"}, false},
		{"zstd", []string{"-o", "compression_type=zstd", "1M"}, Header{Version: 3, Size: 1 << 20, Incompatible: featureCompression}, false},
		{"data", []string{"-o", "data_file=" + filepath.Join(dir, "outside"), "1M"},
			Header{Version: 3, Size: 1 << 20, Incompatible: featureDataFile, DataFile: filepath.Join(dir, "outside")}, true},
	} {
		path := filepath.Join(dir, c.name+".qcow2")
		args := append([]string{"create", "-q", "-f", "qcow2"}, c.args...)
		if n := len(args) - 1; strings.HasSuffix(args[n], "M") {
			args = append(args[:n], path, args[n])
		} else {
			args = append(args, path)
		}
		if out, err := exec.Command("qemu-img", args...).CombinedOutput(); err != nil {
			t.Fatalf("qemu-img %s: %v: %s", args, err, out)
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		h, err := Read(f)
		f.Close()
		if err != nil || h != c.want {
			t.Errorf("%s: %+v, %v, want %+v", c.name, h, err, c.want)
		}
		if err := h.Check(); errors.Is(err, ErrRefused) != c.refused {
			t.Errorf("%s: check: %v, want refused %t", c.name, err, c.refused)
		}
	}
}

// FuzzRead: any bytes are a header or ErrCorrupt, and the header is of bounded size.
func FuzzRead(f *testing.F) {
	f.Add(image(nil, "/base", extension(extensionBackingFormat, "raw")))
	f.Add(image(feature(featureDataFile), "", extension(extensionDataFile, "/etc/shadow")))
	f.Add(image(func(b []byte) { b[7] = 2 }, "/base"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := Read(bytes.NewReader(b))
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatalf("error %v, want ErrCorrupt", err)
			}
			return
		}
		if len(h.Backing) > maxBacking || len(h.DataFile) > len(b) {
			t.Fatalf("header %+v of %d bytes", h, len(b))
		}
		if err := h.Check(); err == nil && h.DataFile != "" {
			t.Fatalf("%+v passes", h)
		}
	})
}
