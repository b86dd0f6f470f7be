package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"fermata/experiments/deb"
)

// stamp says what an output directory was made from.
type stamp struct{ text string }

// newStamp takes down all inputs: this very program (our sources are part of
// it), the packages, busybox and the compiler.
func newStamp(ctx context.Context, debs []deb.Archive, tool string) (stamp, error) {
	var s strings.Builder
	self, err := os.Executable()
	if err != nil {
		return stamp{}, err
	}
	for _, input := range []struct{ what, path string }{
		{"builder", self},
		{toolName, tool},
		{"busybox", busyboxPath},
		{"libc.a", "/" + libDir + "/libc.a"},
	} {
		sum, err := digest(input.path)
		if err != nil {
			return stamp{}, fmt.Errorf("%w (run .ci/install)", err)
		}
		fmt.Fprintf(&s, "%s %s\n", sum, input.what)
	}
	gcc, err := deb.Output(ctx, "", "gcc", "--version")
	if err != nil {
		return stamp{}, err
	}
	version, _, _ := strings.Cut(gcc, "\n")
	fmt.Fprintln(&s, version)
	for _, d := range debs {
		fmt.Fprintf(&s, "%s %s\n", d.SHA256, d.File)
	}
	return stamp{text: s.String()}, nil
}

func digest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	return fmt.Sprintf("%x", h.Sum(nil)), nil
}

func stampPath(dir string) string { return filepath.Join(dir, "stamp") }

// matches tells whether dir was made from these inputs and is complete.
func (s stamp) matches(dir string) bool {
	have, err := os.ReadFile(stampPath(dir))
	if err != nil || string(have) != s.text {
		return false
	}
	for _, name := range outputs {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			return false
		}
	}
	return true
}

// remove makes sure that a build that ends half-way is not taken for a whole.
func (s stamp) remove(dir string) error {
	if err := os.Remove(stampPath(dir)); err != nil && !os.IsNotExist(err) {
		return err
	}
	return nil
}

func (s stamp) write(dir string) error {
	return os.WriteFile(stampPath(dir), []byte(s.text), 0o644)
}
