package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"fermata/imageio/vfs/faultfs"
	"fermata/protocol/fault"
	"fermata/protocol/mustrun"
)

// writing writes a text.
func writing(text string) func(io.Writer) error {
	return func(w io.Writer) error {
		_, err := io.WriteString(w, text)
		return err
	}
}

func wantFile(t *testing.T, path, want string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || string(got) != want {
		t.Errorf("%s has %q, %v; want %q", path, got, err, want)
	}
	names, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(names) != 1 {
		t.Errorf("beside it: %v, %v", names, err)
	}
}

// TestWriteWhole_AfterAKill: a process that is killed amid an export leaves a part; the
// next export takes it over, however long that part is.
func TestWriteWhole_AfterAKill(t *testing.T) {
	path := filepath.Join(t.TempDir(), "export")
	if os.Getenv("FERMATA_TEST_WRITE") != "" {
		err := writeWhole(os.Getenv("FERMATA_TEST_WRITE"), func(w io.Writer) error {
			if _, err := io.WriteString(w, strings.Repeat("of the dead ", 1000)); err != nil {
				return err
			}
			fmt.Println("writes")
			_, err := io.Copy(io.Discard, os.Stdin) // until it is killed
			return err
		})
		t.Fatal(err)
	}
	killed := exec.Command(os.Args[0], "-test.run", "^TestWriteWhole_AfterAKill$")
	killed.Env = append(os.Environ(), "FERMATA_TEST_WRITE="+path)
	out, err := killed.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	in, err := killed.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if err := killed.Start(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, len("writes"))
	_, rerr := io.ReadFull(out, buf)
	// While it lives it is not disturbed.
	if err := writeWhole(path, writing("other")); fault.ClassOf(err) != fault.Busy {
		t.Errorf("beside another export: %v", err)
	}
	_ = killed.Process.Kill()
	_ = killed.Wait() // it was killed
	if rerr != nil || string(buf) != "writes" {
		t.Fatalf("%q, %v", buf, rerr)
	}
	if _, err := os.Stat(path + ".part"); err != nil {
		t.Fatal(err)
	}
	if err := writeWhole(path, writing("whole")); err != nil {
		t.Fatal(err)
	}
	wantFile(t, path, "whole")
	// It replaces nothing, and says so before it has written anything.
	err = writeWhole(path, func(io.Writer) error { t.Error("it writes"); return nil })
	if fault.ClassOf(err) != fault.Exists || !strings.Contains(err.Error(), "choose another name") {
		t.Errorf("%v", err)
	}
}

// TestWriteWhole_FailsAndLeavesNothing: an export that fails can be tried again.
func TestWriteWhole_FailsAndLeavesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "export")
	broken := errors.New("broken")
	if err := writeWhole(path, func(w io.Writer) error { _, _ = w.Write([]byte("half")); return broken }); !errors.Is(err, broken) {
		t.Fatal(err)
	}
	if err := writeWhole(path, writing("whole")); err != nil {
		t.Fatal(err)
	}
	wantFile(t, path, "whole")
}

// TestWriteWhole_WithoutHardLinks: many file systems of removable disks and of other
// systems have none.
func TestWriteWhole_WithoutHardLinks(t *testing.T) {
	mustrun.Need(t, mustrun.FUSE)
	for _, errno := range []syscall.Errno{syscall.EPERM, syscall.EOPNOTSUPP} {
		f, dir := faultfs.Temp(t)
		f.Rule(func(op faultfs.Op, _ string) faultfs.Fault {
			if op == faultfs.Link {
				return faultfs.Fault{Errno: errno}
			}
			return faultfs.Fault{}
		})
		path := filepath.Join(dir, "export")
		if err := writeWhole(path, writing("whole")); err != nil {
			t.Fatal(err)
		}
		wantFile(t, path, "whole")
	}
}

// TestRepoCreate_WithoutHardLinks: a repository cannot be without them. It is refused
// before anything is made.
func TestRepoCreate_WithoutHardLinks(t *testing.T) {
	mustrun.Need(t, mustrun.FUSE)
	f, dir := faultfs.Temp(t)
	f.Rule(func(op faultfs.Op, _ string) faultfs.Fault {
		if op == faultfs.Link {
			return faultfs.Fault{Errno: syscall.EPERM}
		}
		return faultfs.Fault{}
	})
	there := filepath.Join(dir, "there")
	if err := os.Mkdir(there, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, target := range []string{there, filepath.Join(dir, "new")} {
		r := fermata(t, nil, "repo", "create", target)
		if r.status != fault.Mismatch.ExitCode() || !strings.Contains(r.stderr, "hard link") {
			t.Errorf("%+v", r)
		}
	}
	if names, err := os.ReadDir(dir); err != nil || len(names) != 1 {
		t.Errorf("left behind: %v, %v", names, err)
	}
	if names, err := os.ReadDir(there); err != nil || len(names) != 0 {
		t.Errorf("left behind: %v, %v", names, err)
	}
}
