package deb

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestParseURIs(t *testing.T) {
	got, err := parseURIs("Reading package lists...\n" +
		"'http://deb.debian.org/debian/pool/main/z/zlib/zlib1g_1.2.13.dfsg-1_amd64.deb' zlib1g_1%3a1.2.13.dfsg-1_amd64.deb 86684 SHA256:d7dd\n")
	want := []Archive{{File: "zlib1g_1%3a1.2.13.dfsg-1_amd64.deb", SHA256: "d7dd"}}
	if err != nil || !slices.Equal(got, want) {
		t.Fatalf("got %v, %v; want %v", got, err, want)
	}
	if got[0].Name() != "zlib1g" {
		t.Errorf("name %q", got[0].Name())
	}
	for what, line := range map[string]string{
		"weak digest":    "'http://x/a.deb' a.deb 1 MD5Sum:00\n",
		"file elsewhere": "'http://x/a.deb' ../a.deb 1 SHA256:00\n",
	} {
		if got, err := parseURIs(line); err == nil {
			t.Errorf("%s: accepted as %v", what, got)
		}
	}
}

func TestArchive_Check(t *testing.T) {
	dir := t.TempDir()
	a := Archive{File: "a_1_all.deb", SHA256: fmt.Sprintf("%x", sha256.Sum256([]byte("archive")))}
	if a.check(dir) == nil {
		t.Error("accepted a missing archive")
	}
	for content, ok := range map[string]bool{"archive": true, "archivf": false} {
		if err := os.WriteFile(filepath.Join(dir, a.File), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := a.check(dir); (err == nil) != ok {
			t.Errorf("content %q: %v", content, err)
		}
	}
}
