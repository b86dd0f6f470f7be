package vmmtest

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestContract_Fake(t *testing.T) {
	launch := func(s Spec) (*Fake, error) {
		if err := os.Mkdir(s.Dir, 0o700); err != nil {
			return nil, err
		}
		return NewFake(FakeConfig{
			Name:        s.Name,
			MemoryPath:  filepath.Join(s.MemoryDir, s.Name+".ram"),
			MemoryBytes: ProgramMemory,
			ConsolePath: filepath.Join(s.Dir, "console.log"),
			Incoming:    s.Incoming,
			NICs:        []FakeNIC{{Name: s.NIC, File: s.File, Keep: s.Keep}},
		})
	}
	Run(t, Rig{
		MemoryDir: t.TempDir(),
		Launch: func(_ context.Context, s Spec) (Guest, error) {
			f, err := launch(s)
			if err != nil {
				return Guest{}, err
			}
			return fakeUnderTest(f), nil
		},
		LaunchBroken: func(_ context.Context, s Spec) error {
			s.Keep.Close() // noticed after the RAM file was made
			f, err := NewFake(FakeConfig{
				Name: s.Name, MemoryPath: filepath.Join(s.MemoryDir, "ram"), MemoryBytes: ProgramMemory,
				ConsolePath: os.DevNull, NICs: []FakeNIC{{Name: s.NIC, File: s.File, Keep: s.Keep}},
			})
			if err == nil {
				return errors.Join(errors.New("launched"), f.Kill(context.Background()))
			}
			return err
		},
		Crash: func(g Guest) error {
			g.Machine.(*Fake).Crash()
			return nil
		},
	})
}

func fakeUnderTest(f *Fake) Guest {
	return Guest{
		Machine: f,
		Console: f.guest.config.ConsolePath,
		Reattach: func(context.Context) (Guest, error) {
			again, err := f.Reattach()
			if err != nil {
				return Guest{}, err
			}
			return fakeUnderTest(again), nil
		},
	}
}

// TestProgram_BytesMatchSource holds the committed bytes to their source.
func TestProgram_BytesMatchSource(t *testing.T) {
	for _, tool := range []string{"as", "ld"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("GNU binutils are needed: %v", err)
		}
	}
	dir := t.TempDir()
	object, image := filepath.Join(dir, "guest.o"), filepath.Join(dir, "guest.bin")
	for _, args := range [][]string{
		{"as", "--32", "-o", object, "guest/guest.S"},
		{"ld", "-m", "elf_i386", "-Ttext", "0x100000", "--oformat", "binary", "-e", "start", "-o", image, object},
	} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", args, err, out)
		}
	}
	built, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	if string(built) != string(Program()) {
		t.Error("guest/guest.bin is not guest/guest.S: run make in guest")
	}
}

func TestCheckConsole(t *testing.T) {
	for _, c := range []struct {
		name, text string
		last       uint32
		wrong      string // part of the error, none if empty
	}{
		{"empty", "", 0, ""},
		{"steps", "C 00000001\nC 00000002\n", 2, ""},
		{"line being written", "C 00000001\nC 000000", 1, ""},
		{"lost", "C 00000001\nC 00000003\n", 1, "step 3 follows step 1"},
		{"doubled", "C 00000001\nC 00000001\n", 1, "step 1 follows step 1"},
		{"self-check", "C 00000001\nB 00000001\n", 1, "disagree"},
		{"foreign", "hello\n", 0, "not of the program"},
		{"short", "C 1\n", 0, "not of the program"},
	} {
		last, err := CheckConsole(c.text, 1)
		if last != c.last {
			t.Errorf("%s: last step %d, want %d", c.name, last, c.last)
		}
		if (err != nil) != (c.wrong != "") || (err != nil && !strings.Contains(err.Error(), c.wrong)) {
			t.Errorf("%s: error %v, want %q", c.name, err, c.wrong)
		}
	}
}
