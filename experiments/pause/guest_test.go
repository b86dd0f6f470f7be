package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"fermata/coordinator/spec"
)

func TestNewGuest(t *testing.T) {
	g, err := newGuest(gib, "kernel", "initrd")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{" fermata.mpi=1022,1073741824,5", " fermata.tick=20", " rdinit=/ballast", " fermata.ballast=256"} {
		if !strings.Contains(g.cmdline, want) {
			t.Errorf("command line %q has no %q", g.cmdline, want)
		}
	}
	const limit = 2048 // COMMAND_LINE_SIZE of x86, its end included
	if len(g.cmdline) >= limit {
		t.Errorf("command line of %d bytes", len(g.cmdline))
	}
}

func TestSpecification_IsOne(t *testing.T) {
	g, err := newGuest(256*mib, "/k/vmlinuz", "/k/initrd.img")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := spec.Decode("cluster.yaml", g.specification()); err != nil {
		t.Errorf("%v\n%s", err, g.specification())
	}
}

func TestWriteInitrd(t *testing.T) {
	dir := t.TempDir()
	original, path := filepath.Join(dir, "original"), filepath.Join(dir, "initrd")
	for _, before := range []string{"", "12345", "12345678"} {
		if err := os.WriteFile(original, []byte(before), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := writeInitrd(path, original); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.HasPrefix(b, []byte(before)) {
			t.Errorf("%q is not kept", before)
		}
		at := bytes.Index(b, []byte("070701"))
		if at < 0 || at%4 != 0 || len(bytes.Trim(b[len(before):at], "\x00")) > 0 {
			t.Errorf("behind %q the archive begins at %d", before, at)
		}
		if !bytes.Contains(b, []byte(ballastScript)) || !bytes.Contains(b, []byte("TRAILER!!!")) || len(b)%4 != 0 {
			t.Errorf("behind %q: no whole archive", before)
		}
	}
	if err := writeInitrd(path, filepath.Join(dir, "none")); err == nil {
		t.Error("wrote a RAM disk from nothing")
	}
}
