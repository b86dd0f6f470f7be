package nodeagent

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"fermata/imageio/repository"
	"fermata/protocol/api"
	"fermata/protocol/fault"
	"fermata/protocol/mustrun"
	"fermata/vmm/qemu"
)

func qemuImg(t *testing.T, args ...string) {
	t.Helper()
	mustrun.Need(t, mustrun.QEMU)
	if out, err := exec.Command("qemu-img", args...).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// makeImage makes an overlay in dir whose header names backing.
func makeImage(t *testing.T, dir, name, format, backing string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	qemuImg(t, "create", "-q", "-u", "-f", "qcow2", "-F", format, "-b", backing, path, "1M")
	return path
}

// TestOpenChain: the images that a base image lies on are named by its content, so
// the rules hold for each of them.
func TestOpenChain(t *testing.T) {
	rules, allowed, outside, _ := tree(t)
	good := makeImage(t, allowed, "relative.qcow2", "raw", "file")
	deep := makeImage(t, allowed, "deep.qcow2", "qcow2", good)
	top, err := openChain(rules, deep, qemu.QCOW2)
	if err != nil {
		t.Fatal(err)
	}
	defer closeDisks([]qemu.Disk{{Backing: top}})
	if b := top.Backing; b == nil || b.Path != good || b.Backing == nil || b.Backing.Path != filepath.Join(allowed, "file") || b.Backing.Format != qemu.Raw {
		t.Errorf("chain of %s: %+v", deep, b)
	}
	loop := makeImage(t, allowed, "loop.qcow2", "raw", "file")
	qemuImg(t, "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", loop, loop)
	external := filepath.Join(allowed, "external.qcow2")
	qemuImg(t, "create", "-q", "-f", "qcow2", "-o", "data_file="+filepath.Join(outside, "data"), external, "1M")
	nameless := filepath.Join(allowed, "nameless.qcow2")
	qemuImg(t, "create", "-q", "-u", "-f", "qcow2", "-F", "vmdk", "-b", filepath.Join(allowed, "file"), nameless, "1M")

	for path, c := range map[string]struct {
		class fault.Class
		says  string
	}{
		makeImage(t, allowed, "outside.qcow2", "raw", filepath.Join(outside, "file")): {fault.Denied, "allowed_paths"},
		makeImage(t, allowed, "dots.qcow2", "raw", "../outside/file"):                 {fault.Denied, "allowed_paths"},
		makeImage(t, allowed, "protocol.qcow2", "raw", "nbd:localhost:1"):             {fault.Invalid, "not a file"},
		makeImage(t, allowed, "json.qcow2", "raw", `json:{"driver":"null-co"}`):       {fault.Invalid, "not a file"},
		loop:     {fault.Invalid, "more than 16"},
		external: {fault.Invalid, "another file"},
		nameless: {fault.Invalid, "qemu-img rebase"},
	} {
		top, err := openChain(rules, path, qemu.QCOW2)
		if fault.ClassOf(err) != c.class || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want class %s and %q", filepath.Base(path), err, c.class, c.says)
		}
		if err := closeDisks([]qemu.Disk{{Backing: top}}); err != nil {
			t.Error(err)
		}
	}
}

// TestPlaceDisk_BelievesNoOverlay restores overlays that somebody has changed in the
// repository.
func TestPlaceDisk_BelievesNoOverlay(t *testing.T) {
	b := newBench(t, 0)
	dir := t.TempDir()
	base := filepath.Join(dir, "base.raw")
	secret := filepath.Join(dir, "secret")
	for _, path := range []string{base, secret} {
		if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	outside := filepath.Join(dir, "written")
	external := filepath.Join(dir, "external.qcow2")
	qemuImg(t, "create", "-q", "-f", "qcow2", "-o", "data_file="+outside, external, "1M")
	raw := filepath.Join(dir, "raw")
	if err := os.WriteFile(raw, []byte("no header"), 0o600); err != nil {
		t.Fatal(err)
	}
	spec := &api.DiskSpec{Name: "d", Path: base, Format: "raw"}
	epoch := uint64(1)
	for path, says := range map[string]string{
		makeImage(t, dir, "as-made", "raw", base):        "",
		makeImage(t, dir, "other-file", "raw", secret):   secret,
		makeImage(t, dir, "other-format", "qcow2", base): "(qcow2)",
		makeImage(t, dir, "protocol", "raw", "json:{}"):  "json:",
		external: outside,
		raw:      "no intact qcow2 header",
	} {
		m := &maker{agent: b.agent, guest: &guest{dir: t.TempDir(), spec: &api.GuestSpec{Name: "g", Disks: []*api.DiskSpec{spec}}}}
		m.updates = newReporter(nil)
		m.image, m.reader = b.storeOverlay(path, "d", epoch)
		epoch++
		disks, err := m.placeDisks(t.Context())
		if err := closeDisks(disks); err != nil {
			t.Error(err)
		}
		if says == "" && err != nil || says != "" && (fault.ClassOf(err) != fault.Corrupt || !strings.Contains(err.Error(), says)) {
			t.Errorf("%s: %v, want class corrupt and %q", filepath.Base(path), err, says)
		}
	}
}

// storeOverlay puts a file into the bench's repository as the overlay of a disk.
func (b *bench) storeOverlay(path, disk string, epoch uint64) (*api.GuestImage, *repository.Reader) {
	b.t.Helper()
	w, err := b.agent.repo.repo.NewWriter(repository.WriterConfig{Cluster: "c", Epoch: epoch, Node: "n1"})
	if err != nil {
		b.t.Fatal(err)
	}
	obj, err := (&saving{agent: b.agent, writer: w}).putFile(b.t.Context(), kindDisk, disk, path)
	if err != nil {
		b.t.Fatal(err)
	}
	result, err := w.Finish(b.t.Context())
	if err != nil {
		b.t.Fatal(err)
	}
	reader, err := b.agent.repo.repo.NewReader(b.t.Context(), result.Packs)
	if err != nil {
		b.t.Fatal(err)
	}
	return &api.GuestImage{Guest: "g", Objects: []*api.ImageObject{obj}}, reader
}
