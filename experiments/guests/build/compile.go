package main

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"fermata/experiments/deb"
	"fermata/experiments/guests/programs"
)

// Where Debian puts libraries on amd64, below the unpacked root.
const (
	libDir     = "usr/lib/x86_64-linux-gnu"
	coreLibDir = "lib/x86_64-linux-gnu"
)

// program is one executable made from our sources.
type program struct {
	name    string
	sources []string
	mpi     bool // linked with Open MPI; the others are static
}

var compiled = []program{
	{name: "say", sources: []string{"say.c", "line.c"}},
	{name: "canary", sources: []string{"canary.c", "books.c", "wire.c", "stream.c", "kernel.c", "line.c"}},
	{name: "secret", sources: []string{"secret.c", "line.c"}},
	{name: "dirty", sources: []string{"dirty.c", "pattern.c", "records.c", "line.c"}},
	{name: "tally", sources: []string{"tally.c", "resp.c", "line.c"}},
	{name: "jacobi", sources: []string{"jacobi.c", "line.c"}, mpi: true},
}

// toolName is the program of ours that guests of users have, too.
const toolName = "fermata-guest"

// buildTool builds it, the same every time.
func buildTool(ctx context.Context, module, dir string) (string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	out := filepath.Join(dir, toolName)
	_, err := deb.Output(ctx, module, "env", "CGO_ENABLED=0", "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o", out, "./cmd/"+toolName)
	if err != nil {
		return "", fmt.Errorf("build %s: %w", toolName, err)
	}
	return out, nil
}

// compile writes the programs and scripts to dir and returns it.
func compile(ctx context.Context, dir, root, tool string) (string, error) {
	src := filepath.Join(dir, "src")
	if err := os.RemoveAll(dir); err != nil {
		return "", err
	}
	sources, err := programs.Sources()
	if err != nil {
		return "", err
	}
	if err := os.CopyFS(src, sources); err != nil {
		return "", fmt.Errorf("lay out sources: %w", err)
	}
	for _, p := range compiled {
		if _, err := deb.Output(ctx, src, "gcc", p.arguments(root, filepath.Join(dir, p.name))...); err != nil {
			return "", fmt.Errorf("compile %s: %w", p.name, err)
		}
	}
	if err := copyFile(tool, filepath.Join(dir, toolName), 0o755); err != nil {
		return "", err
	}
	for _, script := range []string{"init", "rsh"} {
		text, err := fs.ReadFile(sources, script)
		if err != nil {
			return "", err
		}
		if err := os.WriteFile(filepath.Join(dir, script), text, 0o755); err != nil {
			return "", err
		}
	}
	return dir, nil
}

func (p program) arguments(root, out string) []string {
	args := []string{"-O2", "-s", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE", "-o", out}
	lib := filepath.Join(root, libDir)
	if p.mpi {
		// No fused multiply-add: the checksum must not depend on the processor.
		args = append(args, "-ffp-contract=off", "-I"+filepath.Join(lib, "openmpi", "include"))
	} else {
		args = append(args, "-static", "-pthread")
	}
	args = append(args, p.sources...)
	if p.mpi {
		args = append(args, "-L"+lib, "-l:libmpi.so.40",
			"-Wl,-rpath-link,"+lib+":"+filepath.Join(root, coreLibDir)+":/"+coreLibDir)
	}
	return args
}
