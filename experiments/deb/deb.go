// Package deb gets Debian packages without installing them: apt finds and
// verifies the archives, dpkg unpacks them into a directory.
//
// The main types are Source, where packages come from, and Archive.
package deb

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Archive is one package archive as apt knows it.
type Archive struct {
	File   string // its name, without a directory
	SHA256 string // hex
}

// Source is where packages come from.
type Source struct {
	// Options are apt's, such as "-o", "Dir::Etc::SourceList=FILE". None: what is
	// configured on this machine.
	Options []string
}

// Resolve asks apt which archives stand for the packages today. The order is
// apt's.
func (s Source) Resolve(ctx context.Context, packages ...string) ([]Archive, error) {
	uris, err := s.AptGet(ctx, "", append([]string{"--print-uris", "download"}, packages...)...)
	if err != nil {
		return nil, err
	}
	archives, err := parseURIs(uris)
	if err != nil {
		return nil, err
	}
	if len(archives) != len(packages) {
		return nil, fmt.Errorf("apt offers %d of %d packages: run apt-get update", len(archives), len(packages))
	}
	return archives, nil
}

// AptGet runs apt-get in dir and returns what it wrote.
func (s Source) AptGet(ctx context.Context, dir string, args ...string) (string, error) {
	// As root apt would drop to a user that may not write here.
	return Output(ctx, dir, "apt-get", slices.Concat(args, []string{"-o", "APT::Sandbox::User=root"}, s.Options)...)
}

// parseURIs reads the lines `'URI' FILE SIZE SHA256:HEX` of apt-get --print-uris.
func parseURIs(text string) ([]Archive, error) {
	var archives []Archive
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) != 4 || !strings.HasPrefix(fields[0], "'") {
			continue
		}
		sum, ok := strings.CutPrefix(fields[3], "SHA256:")
		if !ok || filepath.Base(fields[1]) != fields[1] {
			return nil, fmt.Errorf("line of apt-get --print-uris: %q", line)
		}
		archives = append(archives, Archive{File: fields[1], SHA256: sum})
	}
	return archives, nil
}

// Name is the package's name without version and architecture.
func (a Archive) Name() string {
	name, _, _ := strings.Cut(a.File, "_")
	return name
}

// Unpack downloads what is missing in cache and returns the directory in it in
// which all archives are unpacked over each other, anew.
func (s Source) Unpack(ctx context.Context, cache string, archives []Archive) (string, error) {
	dir := filepath.Join(cache, "debs")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	var missing []string
	for _, a := range archives {
		if a.check(dir) != nil {
			missing = append(missing, a.Name())
		}
	}
	if len(missing) > 0 {
		if _, err := s.AptGet(ctx, dir, append([]string{"-qq", "download"}, missing...)...); err != nil {
			return "", fmt.Errorf("%w (stale package lists? run apt-get update)", err)
		}
	}
	root := filepath.Join(cache, "root")
	if err := os.RemoveAll(root); err != nil {
		return "", err
	}
	for _, a := range archives {
		if err := a.check(dir); err != nil {
			return "", err
		}
		if _, err := Output(ctx, dir, "dpkg", "-x", a.File, root); err != nil {
			return "", err
		}
	}
	return root, nil
}

// check tells whether the archive in dir has the digest that apt expects.
func (a Archive) check(dir string) error {
	f, err := os.Open(filepath.Join(dir, a.File))
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return fmt.Errorf("read %s: %w", a.File, err)
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != a.SHA256 {
		return fmt.Errorf("%s: sha256 %s, apt says %s", a.File, got, a.SHA256)
	}
	return nil
}

// Output runs a command in dir and returns what it wrote; its complaints go
// into the error.
func Output(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w", name, firstWords(args), errors.Join(err, lastLine(&stderr)))
	}
	return string(out), nil
}

func firstWords(args []string) string {
	return strings.Join(args[:min(3, len(args))], " ")
}

// lastLine is the last non-empty line of a program's complaints, or nil.
func lastLine(r io.Reader) error {
	last := ""
	for lines := bufio.NewScanner(r); lines.Scan(); {
		if text := strings.TrimSpace(lines.Text()); text != "" {
			last = text
		}
	}
	if last == "" {
		return nil
	}
	return errors.New(last)
}
