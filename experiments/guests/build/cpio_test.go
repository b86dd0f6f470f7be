package main

import (
	"bytes"
	"io/fs"
	"slices"
	"strconv"
	"testing"
)

// entry is one file read back from an archive.
type entry struct {
	name        string
	mode, mtime uint64
	major, data string
}

// readNewc reads an archive as the kernel does.
func readNewc(t *testing.T, archive []byte) []entry {
	t.Helper()
	var entries []entry
	for {
		if string(archive[:6]) != "070701" {
			t.Fatalf("magic %q after %d entries", archive[:6], len(entries))
		}
		var fields [13]uint64
		for i := range fields {
			v, err := strconv.ParseUint(string(archive[6+8*i:14+8*i]), 16, 32)
			if err != nil {
				t.Fatal(err)
			}
			fields[i] = v
		}
		mode, mtime, size, nameSize := fields[1], fields[5], int(fields[6]), int(fields[11])
		name := string(archive[110 : 110+nameSize-1])
		archive = archive[(110+nameSize+3)&^3:]
		if name == "TRAILER!!!" {
			if len(archive) != 0 {
				t.Errorf("%d bytes after the trailer", len(archive))
			}
			return entries
		}
		entries = append(entries, entry{name: name, mode: mode, mtime: mtime,
			major: strconv.FormatUint(fields[9], 10), data: string(archive[:size])})
		archive = archive[(size+3)&^3:]
	}
}

func TestTree_WriteTo(t *testing.T) {
	write := func() []byte {
		tr := tree{}
		tr.link("bin/sh", "busybox")
		tr.file("bin/busybox", 0o755, []byte("12345"))
		tr.put("dev/console", node{mode: fs.ModeDevice | fs.ModeCharDevice | 0o600, rdev: [2]uint32{5, 1}})
		tr.file("/a/b/../c/empty", 0o644, nil)
		var out bytes.Buffer
		if err := tr.writeTo(&out); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
	archive := write()
	for range 10 { // maps are walked in another order each time
		if !bytes.Equal(archive, write()) {
			t.Fatal("two archives of the same tree differ")
		}
	}
	want := []entry{
		{"a", 0o40755, 0, "0", ""},
		{"a/c", 0o40755, 0, "0", ""},
		{"a/c/empty", 0o100644, 0, "0", ""},
		{"bin", 0o40755, 0, "0", ""},
		{"bin/busybox", 0o100755, 0, "0", "12345"},
		{"bin/sh", 0o120777, 0, "0", "busybox"},
		{"dev", 0o40755, 0, "0", ""},
		{"dev/console", 0o20600, 0, "5", ""},
	}
	if got := readNewc(t, archive); !slices.Equal(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}
