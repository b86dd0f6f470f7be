package qemu_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"fermata/vmm/qcow2"
	"fermata/vmm/qemu"
)

func qemuImg(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("qemu-img", args...).CombinedOutput(); err != nil {
		t.Fatalf("qemu-img %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// overlayOf makes an overlay whose header names backing, which need not exist.
func overlayOf(t *testing.T, backing string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "overlay.qcow2")
	qemuImg(t, "create", "-q", "-f", "qcow2", "-u", "-F", "raw", "-b", backing, path, "1M")
	return path
}

// TestLaunch_FollowsNoPathOfAnImage: an image can neither have QEMU write to a file
// that its header names nor read one.
func TestLaunch_FollowsNoPathOfAnImage(t *testing.T) {
	victim := filepath.Join(t.TempDir(), "victim")
	must(t, os.WriteFile(victim, []byte("secret"), 0o600))

	t.Run("data file", func(t *testing.T) {
		outside := filepath.Join(t.TempDir(), "outside")
		image := filepath.Join(t.TempDir(), "image.qcow2")
		qemuImg(t, "create", "-q", "-f", "qcow2", "-o", "data_file="+outside, image, "1M")
		c := smallConfig(t, "datafile")
		c.Disks = []qemu.Disk{{Name: "d", Path: image, Format: qemu.QCOW2}}
		_, err := qemu.Launch(t.Context(), c)
		if !errors.Is(err, qcow2.ErrRefused) || !strings.Contains(err.Error(), outside) {
			t.Errorf("error %v, want ErrRefused with %s", err, outside)
		}
	})
	t.Run("backing file unnamed", func(t *testing.T) {
		c := smallConfig(t, "unnamed")
		c.Disks = []qemu.Disk{{Name: "d", Path: overlayOf(t, victim), Format: qemu.QCOW2}}
		_, err := qemu.Launch(t.Context(), c)
		if !errors.Is(err, qcow2.ErrRefused) || !strings.Contains(err.Error(), victim) {
			t.Errorf("error %v, want ErrRefused with %s", err, victim)
		}
	})
	t.Run("backing file unlike the configuration's", func(t *testing.T) {
		base := rawDisk(t, "base,1.img")
		c := smallConfig(t, "other")
		c.Disks = []qemu.Disk{{Name: "d", Path: overlayOf(t, victim), Format: qemu.QCOW2, Backing: &qemu.Image{Path: base, Format: qemu.Raw}}}
		m := launch(t, c)
		var open []string
		entries, err := filepath.Glob(filepath.Join("/proc", strconv.Itoa(m.PID()), "fd", "*"))
		must(t, err)
		for _, e := range entries {
			if target, err := os.Readlink(e); err == nil {
				open = append(open, target)
			}
		}
		all := strings.Join(open, "\n")
		if strings.Contains(all, victim) || !strings.Contains(all, base) {
			t.Errorf("QEMU has open\n%s\nwant %s and not %s", all, base, victim)
		}
	})
}
