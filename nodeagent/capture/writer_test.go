package capture

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// writerEnv makes the test binary a writer: FILE:BYTES.
const writerEnv = "FERMATA_CAPTURE_WRITER"

func TestMain(m *testing.M) {
	if file := os.Getenv(writerEnv); file != "" {
		if err := writeForEver(file); err != nil {
			fmt.Fprintln(os.Stderr, "writer:", err)
			os.Exit(3)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

const writerThreads = 2

// writeForEver stands for a guest: it rewrites the pages of a shared mapping in
// random order, and checks before each that it still holds what it wrote last.
// Only what was written survives in memory, so a write that was lost, or was
// made before its pre-image was taken and undone, is found.
//
// The first page counts the writes, so that others see that it runs.
func writeForEver(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, int(fi.Size()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	words := asWords(mem)
	failed := make(chan error, writerThreads)
	for thread := range writerThreads {
		go func() {
			rng := rand.New(rand.NewPCG(uint64(thread), 1))
			pages := len(mem)/pageBytes - 1
			wrote := map[int]uint64{}
			for {
				// Mostly near each other, as programs write.
				page := 1 + rng.IntN(pages)/writerThreads*writerThreads + thread
				for range 1 + rng.IntN(32) {
					if page > pages {
						break
					}
					if err := rewrite(words[page*pageBytes/8:][:pageBytes/8], uint64(page), wrote[page]); err != nil {
						failed <- err
						return
					}
					wrote[page]++
					atomic.AddUint64(&words[0], 1)
					page += writerThreads
				}
				time.Sleep(time.Duration(rng.IntN(200)) * time.Microsecond) // the load, not a wait
			}
		}()
	}
	return <-failed
}

// rewrite checks that a page holds its last generation and writes the next.
func rewrite(page []uint64, number, generation uint64) error {
	for i := range page {
		want := uint64(0)
		if generation > 0 {
			want = pattern(number, generation, i)
		}
		if page[i] != want {
			return fmt.Errorf("page %d, word %d: %#x, want %#x of generation %d", number, i, page[i], want, generation)
		}
		page[i] = pattern(number, generation+1, i)
	}
	return nil
}

func pattern(page, generation uint64, word int) uint64 {
	return (page<<32 ^ generation<<8 ^ uint64(word)) * 0x9e3779b97f4a7c15
}

// writer is the process that stands for a guest, with its memory file.
type writer struct {
	t    testing.TB
	cmd  *exec.Cmd
	file *os.File
	size int64
}

// startWriter starts a writer on a memory file of size bytes, of which all pages
// are holes.
func startWriter(t testing.TB, size int64) *writer {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "fermata-capture-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "ram")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), writerEnv+"="+path)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w := &writer{t: t, cmd: cmd, file: f, size: size}
	t.Cleanup(w.end)
	w.awaitWrites(100)
	return w
}

func (w *writer) end() {
	_ = w.cmd.Process.Kill()
	_ = w.cmd.Wait() // says that it was killed
	_ = w.file.Close()
}

// block returns the memory for a Tracker, with a file of its own.
func (w *writer) block() Block {
	w.t.Helper()
	f, err := os.Open(w.file.Name())
	if err != nil {
		w.t.Fatal(err)
	}
	return Block{Name: "ram" + strconv.Itoa(0), File: f, Size: w.size}
}

// writes returns how many pages were written so far.
func (w *writer) writes() uint64 {
	w.t.Helper()
	var b [8]byte
	if _, err := w.file.ReadAt(b[:], 0); err != nil {
		w.t.Fatal(err)
	}
	return binary.LittleEndian.Uint64(b[:])
}

// awaitWrites waits until n more pages were written.
func (w *writer) awaitWrites(n uint64) {
	w.t.Helper()
	from, deadline := w.writes(), time.Now().Add(20*time.Second)
	for w.writes() < from+n {
		if time.Now().After(deadline) {
			w.t.Fatalf("%d pages were written in 20 s, want %d", w.writes()-from, n)
		}
		time.Sleep(200 * time.Microsecond) // polls, with the deadline above
	}
}

// stop makes all threads stand still, as QEMU's stop does.
func (w *writer) stop() {
	w.t.Helper()
	pid := w.cmd.Process.Pid
	if err := unix.Kill(pid, unix.SIGSTOP); err != nil {
		w.t.Fatal(err)
	}
	var ws unix.WaitStatus
	for {
		_, err := unix.Wait4(pid, &ws, unix.WUNTRACED, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || !ws.Stopped() {
			w.t.Fatalf("writer does not stop: %v, status %#x", err, ws)
		}
		return
	}
}

func (w *writer) cont() {
	w.t.Helper()
	if err := unix.Kill(w.cmd.Process.Pid, unix.SIGCONT); err != nil {
		w.t.Fatal(err)
	}
}

// memory returns what the memory file holds now.
func (w *writer) memory() []byte {
	w.t.Helper()
	b := make([]byte, w.size)
	if _, err := w.file.ReadAt(b, 0); err != nil {
		w.t.Fatal(err)
	}
	return b
}
