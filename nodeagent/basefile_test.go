package nodeagent

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"fermata/protocol/api"
	"fermata/protocol/fault"
	"fermata/vmm/qemu"
)

// TestDigests_ReadAFileOnce, also across a restart of the agent, until it is written to.
func TestDigests_ReadAFileOnce(t *testing.T) {
	b := newBench(t, 0)
	path := filepath.Join(t.TempDir(), "base.img")
	reads := 0
	fresh := func() *digests {
		d := newDigests(b.agent.journal, func(work func() error) error {
			reads++
			return work()
		})
		d.settled = 0
		return d
	}
	d := fresh()
	digest := func() string {
		t.Helper()
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		got, err := d.of(t.Context(), f)
		if err != nil {
			t.Fatal(err)
		}
		return got.SHA256
	}
	write := func(content string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("abc")
	// FIPS 180-2, appendix B.1.
	const abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
	if got := digest(); got != abc || reads != 1 {
		t.Errorf("digest %s after %d reads, want %s after 1", got, reads, abc)
	}
	if got := digest(); got != abc || reads != 1 {
		t.Errorf("again: digest %s after %d reads, want no further one", got, reads)
	}
	d = fresh()
	if got := digest(); got != abc || reads != 1 {
		t.Errorf("after a restart: digest %s after %d reads, want no further one", got, reads)
	}
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	write("abd")
	if err := os.Chtimes(path, fi.ModTime(), fi.ModTime()); err != nil { // nobody can set back st_ctime
		t.Fatal(err)
	}
	if got := digest(); got == abc || reads != 2 {
		t.Errorf("after a write of the same length and time: digest %s after %d reads", got, reads)
	}
	d.settled = time.Hour
	write("abe")
	digest()
	if digest(); reads != 4 {
		t.Errorf("a file that was just written to was read %d times, want each time", reads-2)
	}
}

// TestBaseFiles_OtherContentIsRefused: a guest goes on only upon the bytes that it was made
// upon, wherever they lie and however old they look.
func TestBaseFiles_OtherContentIsRefused(t *testing.T) {
	b := newBench(t, 1)
	b.agent.digests.settled = 0
	dir := t.TempDir()
	base := filepath.Join(dir, "base.img")
	content := bytes.Repeat([]byte{7}, 1<<20)
	write := func(content []byte) {
		t.Helper()
		if err := os.WriteFile(base, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(content)
	top := makeImage(t, dir, "top.qcow2", "raw", base)
	g := b.cluster.list()[0]
	g.spec.Disks = []*api.DiskSpec{{Name: "root", Path: top, Format: "qcow2", ReadOnly: true}}
	defer func() { g.spec.Disks = nil }()
	files, err := b.agent.baseFiles(t.Context(), g)
	if err != nil || len(files) != 2 || files[0].Path != top || files[1].Path != base || files[1].SizeBytes != 1<<20 {
		t.Fatalf("files %v, %v, want both images", files, err)
	}
	records, err := b.agent.journal.Guests()
	if err != nil || len(records[0].Bases) != 2 {
		t.Errorf("journal %+v, %v, want both images", records, err)
	}
	image := &api.GuestImage{Guest: "g1", Files: files}
	check := func() error {
		chain, err := openChain(b.agent.paths, top, qemu.QCOW2)
		if err != nil {
			t.Fatal(err)
		}
		defer closeDisks([]qemu.Disk{{Backing: chain}})
		return b.agent.checkBases(t.Context(), image, "root", chain)
	}
	if err := check(); err != nil {
		t.Errorf("the same files: %v", err)
	}
	other := bytes.Clone(content)
	other[4711]++
	for name, c := range map[string][]byte{"another byte": other, "longer": append(other, 0)} {
		write(c)
		if err := check(); fault.ClassOf(err) != fault.Mismatch || !strings.Contains(err.Error(), base) {
			t.Errorf("%s: %v, want class mismatch naming %s", name, err, base)
		}
		// A checkpoint upon it could not be restarted.
		if _, err := b.agent.baseFiles(t.Context(), g); fault.ClassOf(err) != fault.Mismatch || !strings.Contains(err.Error(), base) {
			t.Errorf("%s: checkpoint: %v, want class mismatch naming %s", name, err, base)
		}
	}
	write(content) // a copy, with another time
	if err := check(); err != nil {
		t.Errorf("the same bytes at another time: %v", err)
	}
	if _, err := b.agent.baseFiles(t.Context(), g); err != nil {
		t.Errorf("the same bytes at another time: %v", err)
	}
	if err := b.agent.checkBases(t.Context(), &api.GuestImage{Guest: "g1"}, "root", nil); err != nil {
		t.Errorf("a checkpoint that names no files: %v", err)
	}
}
