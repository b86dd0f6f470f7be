package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// tool is something that images are kept in.
type tool struct {
	name    string
	measure func(ctx context.Context, in images, place string) ([]measurement, error)
}

const (
	fermataS2   = "fermata s2"
	fermataZstd = "fermata zstd"
	fermataKey  = "fermata s2, encrypted" // as restic always is
)

func allTools() []tool {
	return []tool{
		{fermataS2, fermata("s2")},
		{fermataZstd, fermata("zstd")},
		{fermataKey, fermata("s2" + encryptedSuffix)},
		{"restic", restic},
		{"borg", borg},
		{"zstd -1", zstd},
		{"qcow2 -c", qcow2},
	}
}

// command runs a program to its end and measures it.
func command(ctx context.Context, s step, bytesOf int64, dir string, env []string, args ...string) (measurement, []byte, error) {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	begun := time.Now()
	err := cmd.Run()
	m := measurement{Step: s, Bytes: bytesOf, Wall: time.Since(begun).Seconds()}
	if err != nil {
		return m, nil, fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, stderr.Bytes())
	}
	m.CPU = (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()
	if u, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		m.PeakKiB = u.Maxrss
	}
	return m, stdout.Bytes(), nil
}

// size is what the files of a directory take.
func size(dir string) (n int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			n += info.Size()
		}
		return err
	})
	return n, err
}

// current makes place/current the generation g, so that a tool sees the same names
// change.
func current(in images, place string, g int) error {
	dir := filepath.Join(place, "current")
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	for _, file := range in.names {
		if err := os.Link(filepath.Join(in.generation(g), file), filepath.Join(dir, file)); err != nil {
			return err
		}
	}
	return nil
}

// sum adds measurements of one step.
func sum(all ...measurement) measurement {
	total := all[0]
	for _, m := range all[1:] {
		total.Bytes += m.Bytes
		total.Wall += m.Wall
		total.CPU += m.CPU
		total.PeakKiB = max(total.PeakKiB, m.PeakKiB)
		total.Stored = m.Stored
	}
	return total
}

// same checks that dir holds the last generation.
func same(ctx context.Context, in images, dir string) error {
	for _, file := range in.names {
		if out, err := exec.CommandContext(ctx, "cmp", filepath.Join(in.generation(generations), file), filepath.Join(dir, file)).CombinedOutput(); err != nil {
			return fmt.Errorf("restored %s differs: %w\n%s", file, err, out)
		}
	}
	return nil
}

// backup measures a tool that keeps generations in a repository of its own.
type backup struct {
	env             []string
	repo            string
	create          []string
	store           func(g int) []string // in place
	restore, forget [][]string           // in place/back, and in place
	restoredBelow   string               // place/back
}

func (b backup) measure(ctx context.Context, in images, place string) ([]measurement, error) {
	if _, _, err := command(ctx, full, 0, place, b.env, b.create...); err != nil {
		return nil, err
	}
	var out, later []measurement
	for g := 1; g <= generations; g++ {
		if err := current(in, place, g); err != nil {
			return nil, err
		}
		m, _, err := command(ctx, next, in.bytes, place, b.env, b.store(g)...)
		if err != nil {
			return nil, err
		}
		if m.Stored, err = size(b.repo); err != nil {
			return nil, err
		}
		if g == 1 {
			m.Step = full
			out = append(out, m)
		} else {
			later = append(later, m)
		}
	}
	out = append(out, sum(later...))
	back := filepath.Join(place, "back")
	if err := os.Mkdir(back, 0o700); err != nil {
		return nil, err
	}
	run := func(s step, n int64, dir string, commands [][]string) (measurement, error) {
		var all []measurement
		for _, c := range commands {
			m, _, err := command(ctx, s, 0, dir, b.env, c...)
			if err != nil {
				return m, err
			}
			all = append(all, m)
		}
		m := sum(all...)
		m.Bytes = n
		var err error
		m.Stored, err = size(b.repo)
		return m, err
	}
	m, err := run(restore, in.bytes, back, b.restore)
	if err == nil {
		err = same(ctx, in, filepath.Join(back, b.restoredBelow))
	}
	if err != nil {
		return nil, err
	}
	out = append(out, m)
	if m, err = run(prune, 0, place, b.forget); err != nil {
		return nil, err
	}
	return append(out, m), nil
}

func restic(ctx context.Context, in images, place string) ([]measurement, error) {
	repo := filepath.Join(place, "repo")
	return backup{
		repo: repo, env: []string{"RESTIC_REPOSITORY=" + repo, "RESTIC_PASSWORD=x", "RESTIC_CACHE_DIR=" + filepath.Join(place, "cache")},
		create:        []string{"restic", "init"},
		store:         func(int) []string { return []string{"restic", "backup", "--force", "current"} },
		restore:       [][]string{{"restic", "restore", "latest", "--target", "."}},
		restoredBelow: "current",
		forget:        [][]string{{"restic", "forget", "--keep-last", "2", "--prune"}},
	}.measure(ctx, in, place)
}

func borg(ctx context.Context, in images, place string) ([]measurement, error) {
	repo := filepath.Join(place, "repo")
	return backup{
		repo: repo, env: []string{"BORG_REPO=" + repo, "BORG_BASE_DIR=" + filepath.Join(place, "base"), "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK=yes"},
		create: []string{"borg", "init", "-e", "none"},
		store: func(g int) []string {
			return []string{"borg", "create", "-C", "zstd,1", fmt.Sprintf("::g%d", g), "current"}
		},
		restore:       [][]string{{"borg", "extract", fmt.Sprintf("::g%d", generations)}},
		restoredBelow: "current",
		forget:        [][]string{{"borg", "delete", "::g1"}, {"borg", "compact"}},
	}.measure(ctx, in, place)
}

// perFile measures a tool that makes one file of another.
func perFile(ctx context.Context, in images, place string, there, back func(from, to string) []string) ([]measurement, error) {
	stored, restored := filepath.Join(place, "stored"), filepath.Join(place, "back")
	if err := errors.Join(os.Mkdir(stored, 0o700), os.Mkdir(restored, 0o700)); err != nil {
		return nil, err
	}
	var out, later []measurement
	for g := 1; g <= generations; g++ {
		var all []measurement
		for _, file := range in.names {
			m, _, err := command(ctx, next, 0, place, nil, there(filepath.Join(in.generation(g), file), filepath.Join(stored, fmt.Sprintf("%d-%s", g, file)))...)
			if err != nil {
				return nil, err
			}
			all = append(all, m)
		}
		m := sum(all...)
		m.Bytes = in.bytes
		var err error
		if m.Stored, err = size(stored); err != nil {
			return nil, err
		}
		if g == 1 {
			m.Step = full
			out = append(out, m)
		} else {
			later = append(later, m)
		}
	}
	out = append(out, sum(later...))
	var all []measurement
	for _, file := range in.names {
		m, _, err := command(ctx, restore, 0, place, nil, back(filepath.Join(stored, fmt.Sprintf("%d-%s", generations, file)), filepath.Join(restored, file))...)
		if err != nil {
			return nil, err
		}
		all = append(all, m)
	}
	m := sum(all...)
	m.Bytes, m.Stored = in.bytes, out[1].Stored
	return append(out, m), same(ctx, in, restored)
}

func zstd(ctx context.Context, in images, place string) ([]measurement, error) {
	return perFile(ctx, in, place,
		func(from, to string) []string { return []string{"zstd", "-q", "-1", "-T0", from, "-o", to} },
		func(from, to string) []string { return []string{"zstd", "-q", "-d", from, "-o", to} })
}

func qcow2(ctx context.Context, in images, place string) ([]measurement, error) {
	return perFile(ctx, in, place,
		func(from, to string) []string {
			return []string{"qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", "-o", "compression_type=zstd", from, to}
		},
		func(from, to string) []string {
			return []string{"qemu-img", "convert", "-f", "qcow2", "-O", "raw", from, to}
		})
}

// fermata measures our own repository. One process stores all generations, as a node
// agent does; others restore and prune.
func fermata(compression string) func(context.Context, images, string) ([]measurement, error) {
	return func(ctx context.Context, in images, place string) ([]measurement, error) {
		self, err := os.Executable()
		if err != nil {
			return nil, err
		}
		repo, back := filepath.Join(place, "repo"), filepath.Join(place, "back")
		if err := os.Mkdir(back, 0o700); err != nil {
			return nil, err
		}
		var out []measurement
		for _, job := range []string{"put", "restore", "prune"} {
			_, printed, err := command(ctx, full, 0, place, nil, self, workerArg, job, repo, compression, in.dir, back)
			if err != nil {
				return nil, err
			}
			var steps []measurement
			if err := json.Unmarshal(printed, &steps); err != nil {
				return nil, err
			}
			out = append(out, steps...)
		}
		return out, same(ctx, in, back)
	}
}
