package crashfs_test

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"fermata/imageio/vfs"
	"fermata/imageio/vfs/crashfs"
	"fermata/imageio/vfs/vfstest"
)

func TestCrashFS(t *testing.T) {
	vfstest.Run(t, func(t *testing.T) (vfs.FS, string) {
		fsys := crashfs.New(1)
		if err := fsys.Mkdir("/dir"); err != nil {
			t.Fatal(err)
		}
		return fsys, "/dir"
	})
}

// seeds is how many reboots a test looks at: enough to meet every kind of loss.
const seeds = 200

func TestReboot_KeepsWhatWasSynced(t *testing.T) {
	for seed := range uint64(seeds) {
		fsys := crashfs.New(seed)
		writeSynced(t, fsys, "/a", "kept")
		if err := fsys.SyncDir("/"); err != nil {
			t.Fatal(err)
		}
		got, err := vfs.ReadFile(fsys.Reboot(), "/a", 100)
		if err != nil || string(got) != "kept" {
			t.Fatalf("seed %d: %q, %v", seed, got, err)
		}
	}
}

func TestReboot_MayLoseUnsyncedNamesAndBytes(t *testing.T) {
	seen := map[string]bool{}
	for seed := range uint64(seeds) {
		fsys := crashfs.New(seed)
		f, err := fsys.Create("/a")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Write([]byte("never synced")); err != nil {
			t.Fatal(err)
		}
		data, err := vfs.ReadFile(fsys.Reboot(), "/a", 100)
		switch {
		case err != nil:
			seen["no name"] = true
		case string(data) == "never synced":
			seen["whole"] = true
		case strings.HasPrefix("never synced", string(data)):
			seen["part"] = true
		default:
			seen["zeros"] = true
		}
	}
	for _, outcome := range []string{"no name", "whole", "part", "zeros"} {
		if !seen[outcome] {
			t.Errorf("no reboot of %d showed: %s", seeds, outcome)
		}
	}
}

func TestReboot_RenameIsNeverHalf(t *testing.T) {
	for seed := range uint64(seeds) {
		fsys := crashfs.New(seed)
		writeSynced(t, fsys, "/old", "x")
		if err := fsys.SyncDir("/"); err != nil {
			t.Fatal(err)
		}
		if err := fsys.Rename("/old", "/new"); err != nil {
			t.Fatal(err)
		}
		names, err := fsys.Reboot().List("/")
		if err != nil || len(names) != 1 {
			t.Fatalf("seed %d: %q, %v", seed, names, err)
		}
	}
}

func TestCrashAfter_CountsChangingOperations(t *testing.T) {
	fsys := crashfs.New(3)
	fsys.CrashAfter(2)
	f, err := fsys.Create("/a")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fsys.List("/"); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); !errors.Is(err, crashfs.ErrCrashed) {
		t.Fatalf("third operation: %v", err)
	}
	if _, err := fsys.List("/"); !errors.Is(err, crashfs.ErrCrashed) {
		t.Fatalf("after the crash: %v", err)
	}
}

func TestFailAt_FailsOnce(t *testing.T) {
	fsys := crashfs.New(4)
	fsys.FailAt(1, syscall.ENOSPC)
	err := vfs.WriteFile(fsys, "/a", []byte("hello"))
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("write on a full disk: %v", err)
	}
	if err := vfs.WriteFile(fsys, "/a", []byte("hello")); err != nil {
		t.Fatalf("write after there is room again: %v", err)
	}
}

func TestLog_IsATranscript(t *testing.T) {
	fsys := crashfs.New(5)
	writeSynced(t, fsys, "/a", "abc")
	if err := fsys.Link("/a", "/b"); err != nil {
		t.Fatal(err)
	}
	want := "create /a\nwrite /a 3\nsync /a\nlink /a -> b"
	if got := fsys.Log(); got != want {
		t.Fatalf("got:\n%s\nwant:\n%s", got, want)
	}
}

func writeSynced(t testing.TB, fsys vfs.FS, name, contents string) {
	t.Helper()
	if err := vfs.WriteFile(fsys, name, []byte(contents)); err != nil {
		t.Fatal(fmt.Errorf("%s: %w", name, err))
	}
}
