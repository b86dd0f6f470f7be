// Qemunewer gets a newer QEMU beside the installed one, from the backports of
// this Debian. Nothing is installed: apt finds and verifies the packages with
// lists of its own, and they are unpacked below the output directory.
//
//	go run ./experiments/qemunewer [-o DIR]
//
// The output directory (default build/qemu-newer under the module's root) then
// holds
//
//	qemu-system-x86_64  a script that runs it, with the firmware that belongs to it
//	root/               the unpacked packages
//	debs/, apt/         their archives; apt's lists
//
// In front of PATH the directory gives everything here the newer QEMU:
//
//	PATH=$PWD/build/qemu-newer:$PATH go test ./vmm/qemu
//
// A directory that has a QEMU that runs is left alone; remove it for a newer one.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"fermata/experiments/deb"
	"fermata/experiments/result"
)

func main() { os.Exit(result.Main("qemu-newer", run)) }

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("qemunewer", flag.ContinueOnError)
	flags.SetOutput(stderr)
	out := flags.String("o", filepath.Join("build", "qemu-newer"), "output `directory`")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return &result.UsageError{Err: err}
	}
	dir, err := filepath.Abs(*out)
	if err != nil {
		return fmt.Errorf("find %s: %w", *out, err)
	}
	program := filepath.Join(dir, result.QEMU)
	if _, err := os.Stat(program); err != nil {
		if err := build(ctx, dir, program); err != nil {
			return err
		}
	}
	version, err := deb.Output(ctx, "", program, "--version")
	if err != nil {
		return fmt.Errorf("%w (remove %s to get it anew)", err, dir)
	}
	first, _, _ := strings.Cut(version, "\n")
	_, err = fmt.Fprintf(stdout, "%s: %s\n", program, first)
	return err
}

// script runs the unpacked QEMU. Debian's finds firmware at fixed paths, where
// that of the installed one lies.
const script = `#!/bin/sh
root=$(dirname "$(readlink -f "$0")")/root
lib=$root/usr/lib/x86_64-linux-gnu
export LD_LIBRARY_PATH="$lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" QEMU_MODULE_DIR="$lib/qemu"
exec "$root/usr/bin/qemu-system-x86_64" -L "$root/usr/share/qemu" -L "$root/usr/share/seabios" "$@"
`

func build(ctx context.Context, dir, program string) error {
	source, err := backports(ctx, filepath.Join(dir, "apt"))
	if err != nil {
		return err
	}
	if _, err := source.AptGet(ctx, "", "-qq", "update"); err != nil {
		return err
	}
	packages, err := needed(ctx, source)
	if err != nil {
		return err
	}
	archives, err := source.Resolve(ctx, packages...)
	if err != nil {
		return err
	}
	if _, err := source.Unpack(ctx, dir, archives); err != nil {
		return err
	}
	// The last step: a build that ends before is begun anew.
	if err := os.WriteFile(program, []byte(script), 0o755); err != nil {
		return fmt.Errorf("write script: %w", err)
	}
	return nil
}

// needed names QEMU's package and all that it needs and this machine has not
// installed in a sufficient version.
func needed(ctx context.Context, source deb.Source) ([]string, error) {
	uris, err := source.AptGet(ctx, "", "-qq", "-y", "--no-install-recommends", "--print-uris", "install", "qemu-system-x86")
	if err != nil {
		return nil, err
	}
	var packages []string
	for line := range strings.Lines(uris) {
		fields := strings.Fields(line)
		if len(fields) >= 3 && strings.HasPrefix(fields[0], "'") {
			packages = append(packages, deb.Archive{File: fields[1]}.Name())
		}
	}
	if len(packages) == 0 {
		return nil, errors.New("the installed QEMU is the newest that apt knows")
	}
	return packages, nil
}

// backports are this machine's package sources with the backports of its release
// added and preferred. Apt's state is kept in dir.
func backports(ctx context.Context, dir string) (deb.Source, error) {
	lists, list := filepath.Join(dir, "lists"), filepath.Join(dir, "sources.list")
	archives := filepath.Join(dir, "archives")
	for _, d := range []string{filepath.Join(lists, "partial"), filepath.Join(archives, "partial")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return deb.Source{}, fmt.Errorf("make directory for apt: %w", err)
		}
	}
	release, err := codename()
	if err != nil {
		return deb.Source{}, err
	}
	mirror, err := mirrorOf(ctx, release)
	if err != nil {
		return deb.Source{}, err
	}
	// It stands in place of the machine's, beside its sources.list.d.
	sources, err := os.ReadFile("/etc/apt/sources.list")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return deb.Source{}, fmt.Errorf("read package sources: %w", err)
	}
	suite := release + "-backports"
	sources = fmt.Appendf(sources, "\ndeb %s %s main\n", mirror, suite)
	if err := os.WriteFile(list, sources, 0o644); err != nil {
		return deb.Source{}, fmt.Errorf("write package sources: %w", err)
	}
	return deb.Source{Options: []string{
		"-o", "Dir::State::Lists=" + lists,
		"-o", "Dir::Cache::Archives=" + archives,
		"-o", "Dir::Cache::pkgcache=", "-o", "Dir::Cache::srcpkgcache=",
		"-o", "Dir::Etc::SourceList=" + list,
		"-o", "APT::Default-Release=" + suite,
	}}, nil
}

// codename is the name of this Debian's release.
func codename() (string, error) {
	text, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return "", fmt.Errorf("find this system's release: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "VERSION_CODENAME="); ok {
			return name, nil
		}
	}
	return "", errors.New("find this system's release: /etc/os-release has no VERSION_CODENAME")
}

// mirrorOf is where this machine gets the packages of the release.
func mirrorOf(ctx context.Context, release string) (string, error) {
	targets, err := deb.Output(ctx, "", "apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(targets) {
		if uri, name, _ := strings.Cut(strings.TrimSpace(line), " "); name == release {
			return uri, nil
		}
	}
	return "", fmt.Errorf("apt knows no packages of %s: run apt-get update", release)
}
