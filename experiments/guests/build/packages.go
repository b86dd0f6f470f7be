package main

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
	"strings"
)

// kernelMeta depends on the newest cloud kernel, whose package name holds its
// version.
const kernelMeta = "linux-image-cloud-amd64"

// mpiPackages are Open MPI and the libraries it needs with TCP as its only
// transport. Plugins that need others (UCX, libfabric, PSM) are left out of the
// image with them. libc6 comes along so that the image does not depend on the
// host's.
var mpiPackages = []string{
	"openmpi-bin", "openmpi-common", "libopenmpi3", "libopenmpi-dev",
	"libhwloc15", "libpmix2", "libevent-core-2.1-7", "libevent-pthreads-2.1-7",
	"libmunge2", "libudev1", "zlib1g", "libc6",
}

// deb is one package archive as apt knows it.
type deb struct {
	file   string // its name in the cache
	sha256 string // hex
}

// resolve asks apt which archives stand for the packages today.
func resolve(ctx context.Context) ([]deb, error) {
	depends, err := output(ctx, "", "apt-cache", "depends", "--important", kernelMeta)
	if err != nil {
		return nil, fmt.Errorf("kernel package: %w", err)
	}
	var kernel string
	for line := range strings.Lines(depends) {
		name, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: ")
		if ok && strings.HasPrefix(name, "linux-image-") {
			kernel = name
			break // apt lists the newest version's first
		}
	}
	if kernel == "" {
		return nil, fmt.Errorf("apt knows no %s: run .ci/install or apt-get update", kernelMeta)
	}
	args := append([]string{"--print-uris", "download", kernel}, mpiPackages...)
	uris, err := output(ctx, "", "apt-get", args...)
	if err != nil {
		return nil, err
	}
	debs, err := parseURIs(uris)
	if err != nil {
		return nil, err
	}
	if len(debs) != 1+len(mpiPackages) {
		return nil, fmt.Errorf("apt offers %d of %d packages: run apt-get update", len(debs), 1+len(mpiPackages))
	}
	return debs, nil
}

// parseURIs reads the lines `'URI' FILE SIZE SHA256:HEX` of apt-get --print-uris.
func parseURIs(text string) ([]deb, error) {
	var debs []deb
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) != 4 || !strings.HasPrefix(fields[0], "'") {
			continue
		}
		sum, ok := strings.CutPrefix(fields[3], "SHA256:")
		if !ok || filepath.Base(fields[1]) != fields[1] {
			return nil, fmt.Errorf("line of apt-get --print-uris: %q", line)
		}
		debs = append(debs, deb{file: fields[1], sha256: sum})
	}
	return debs, nil
}

// name is the package's name without version and architecture.
func (d deb) name() string {
	name, _, _ := strings.Cut(d.file, "_")
	return name
}

// unpack downloads what is missing in cache and returns the directory in which
// all archives are unpacked over each other, anew.
func unpack(ctx context.Context, cache string, debs []deb) (string, error) {
	archives := filepath.Join(cache, "debs")
	if err := os.MkdirAll(archives, 0o755); err != nil {
		return "", err
	}
	var missing []string
	for _, d := range debs {
		if d.check(archives) != nil {
			missing = append(missing, d.name())
		}
	}
	if len(missing) > 0 {
		// As root apt would drop to a user that may not write here.
		args := append([]string{"-qq", "-o", "APT::Sandbox::User=root", "download"}, missing...)
		if _, err := output(ctx, archives, "apt-get", args...); err != nil {
			return "", fmt.Errorf("%w (stale package lists? run apt-get update)", err)
		}
	}
	root := filepath.Join(cache, "root")
	if err := os.RemoveAll(root); err != nil {
		return "", err
	}
	for _, d := range debs {
		if err := d.check(archives); err != nil {
			return "", err
		}
		if _, err := output(ctx, archives, "dpkg", "-x", d.file, root); err != nil {
			return "", err
		}
	}
	return root, nil
}

// check tells whether the archive in dir has the digest that apt expects.
func (d deb) check(dir string) error {
	f, err := os.Open(filepath.Join(dir, d.file))
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return fmt.Errorf("read %s: %w", d.file, err)
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != d.sha256 {
		return fmt.Errorf("%s: sha256 %s, apt says %s", d.file, got, d.sha256)
	}
	return nil
}

// output runs a command in dir and returns what it wrote; its complaints go
// into the error.
func output(ctx context.Context, dir, name string, args ...string) (string, error) {
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
