package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"fermata/experiments/guests"
	"fermata/experiments/labrun"
	"fermata/experiments/result"
	"fermata/protocol/mustrun"
)

// TestRun_Quick runs the whole experiment, and decodes what it prints strictly.
func TestRun_Quick(t *testing.T) {
	if testing.Short() {
		t.Skip("boots three guests")
	}
	mustrun.Need(t, mustrun.QEMU, mustrun.UFFD, mustrun.NetNS, mustrun.GuestImage)
	image, err := mustrun.GuestDir()
	if err != nil {
		t.Fatal(err)
	}
	scratch := t.TempDir()
	drawing := filepath.Join(t.TempDir(), "pause.svg")
	var out bytes.Buffer
	err = run(t.Context(), []string{"--quick", "--n", "2", "--boots", "1", "--qemu-newer", "none", "-o", "json", "--svg", drawing, "--dir", scratch, "--guest-dir", image}, &out, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	doc, err := result.Decode[row](&out)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range doc.Rows {
		got = append(got, r.Method)
	}
	for _, method := range []string{stopAndCopy, background, fermataStop} {
		if !slices.Contains(got, method) {
			t.Errorf("no row of %s in %v", method, got)
		}
	}
	for _, r := range doc.Rows {
		t.Logf("%s: pause %s, silence %s, durable %s, parts %s", r.Method, r.PauseMS, r.SilenceMS, r.DurableMS, parts(r))
		if len(r.PauseMS) != 2 {
			t.Errorf("%s with n=%d", r.Method, len(r.PauseMS))
		}
		for n := range r.PauseMS {
			// Whoever reports a pause, the console is silent meanwhile. Not quite so
			// long: the guest speaks before the answer of cont has been read.
			if r.PauseMS[n] <= 0 || r.DurableMS[n] < r.PauseMS[n] {
				t.Errorf("%s: paused %v ms, durable after %v ms", r.Method, r.PauseMS[n], r.DurableMS[n])
			}
			if r.Method != fermataIdle && r.SilenceMS[n] < r.PauseMS[n]/2 {
				t.Errorf("%s: paused %v ms, silent %v ms", r.Method, r.PauseMS[n], r.SilenceMS[n])
			}
			if r.NonZeroBytes[n] < float64(r.BallastBytes+r.LoadBytes) {
				t.Errorf("%s: %v bytes are not zero, less than ballast and load", r.Method, r.NonZeroBytes[n])
			}
			// Neither ballast nor load can be made smaller. What builds on an earlier
			// checkpoint stores no ballast, and at most all that the load rewrites.
			all := float64(r.BallastBytes + r.LoadBytes)
			switch r.Method {
			case fermataNext, fermataIdle:
				if r.StoredBytes[n] > all {
					t.Errorf("%s: stored %v bytes, ballast and load are %v", r.Method, r.StoredBytes[n], all)
				}
			case fermataStop: // has what the checkpoints before it stored
			default:
				if r.StoredBytes[n] < all {
					t.Errorf("%s: stored %v bytes, ballast and load are %v", r.Method, r.StoredBytes[n], all)
				}
			}
		}
	}
	if fi, err := os.Stat(drawing); err != nil || fi.Size() == 0 {
		t.Errorf("drawing: %v", err)
	}
	nothingLeft(t, scratch)
}

// TestTrial_Interrupted ends trials in the middle, as Ctrl-C does.
func TestTrial_Interrupted(t *testing.T) {
	if testing.Short() {
		t.Skip("boots guests")
	}
	mustrun.Need(t, mustrun.QEMU, mustrun.NetNS, mustrun.GuestImage)
	image, err := mustrun.GuestDir()
	if err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(t.TempDir(), "fermata")
	if err := labrun.Build(t.Context(), binary); err != nil {
		t.Fatal(err)
	}
	x := &experiment{dir: t.TempDir(), fermata: binary, qemu: emulator{program: result.QEMU}}
	kernel, initrd := guests.ImageFiles(image)
	g, err := newGuest(minSize, kernel, initrd, false)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range x.subjects() {
		t.Run(s.name, func(t *testing.T) {
			ctx, interrupt := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() {
				_, err := s.trial(ctx, g, 1)
				done <- err
			}()
			var memory string
			err := labrun.Poll(t.Context(), time.Minute, "a guest to run", func() (bool, error) {
				select {
				case err := <-done:
					done <- err
					return false, errors.Join(errors.New("the trial ended"), err)
				default:
				}
				processes, err := labrun.Using(x.dir)
				for _, p := range processes {
					if p.Name() == result.QEMU {
						memory = regexp.MustCompile(`/dev/shm/fermata-lab-[0-9a-f]+`).FindString(strings.Join(p.Files, " "))
						return true, nil
					}
				}
				return false, err
			})
			interrupt()
			ended := <-done
			if err != nil {
				t.Fatal(err)
			}
			if ended == nil {
				t.Error("the trial ended well")
			}
			nothingLeft(t, x.dir)
			if _, err := os.Stat(memory); memory != "" && !errors.Is(err, os.ErrNotExist) {
				t.Errorf("guest's memory is left: %v", err)
			}
		})
	}
}

// nothingLeft looks for files in scratch and for processes that know it.
func nothingLeft(t *testing.T, scratch string) {
	t.Helper()
	entries, err := os.ReadDir(scratch)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		t.Errorf("left behind: %s", e.Name())
	}
	processes, err := labrun.Using(scratch)
	if err != nil {
		t.Error(err)
	}
	for _, p := range processes {
		t.Errorf("left behind: %s", p)
	}
}
