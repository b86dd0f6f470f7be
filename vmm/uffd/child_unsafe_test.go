package uffd

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

const (
	childEnv  = "FERMATA_UFFD_CHILD" // PATH: be a writer on that file; pid:N: protect process N and wait
	pageSize  = 4096
	fileBytes = 8 << 20
)

func TestMain(m *testing.M) {
	switch arg := os.Getenv(childEnv); {
	case arg == "":
		goleak.VerifyTestMain(m)
	case strings.HasPrefix(arg, "pid:"):
		exit(beProtector(strings.TrimPrefix(arg, "pid:")))
	default:
		exit(beWriter(arg))
	}
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "child:", err)
		os.Exit(3)
	}
	os.Exit(0)
}

// beWriter obeys lines of its standard input on a mapping of the file: "w PAGE
// BYTE" writes, "k PAGE BYTE" has the kernel write. It answers each line once it
// is done, each in a thread of its own.
func beWriter(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, fileBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	fmt.Printf("at %d\n", uintptr(unsafe.Pointer(unsafe.SliceData(mem))))
	for s := bufio.NewScanner(os.Stdin); s.Scan(); {
		var verb string
		var page int
		var value byte
		if _, err := fmt.Sscan(s.Text(), &verb, &page, &value); err != nil {
			return err
		}
		go func() {
			at := mem[page*pageSize:]
			if verb == "w" {
				at[0] = value
			} else {
				var p [2]int
				_ = unix.Pipe(p[:])
				_, _ = unix.Write(p[1], []byte{value})
				_, _ = unix.Read(p[0], at[:1])
			}
			fmt.Printf("done %d\n", page)
		}()
	}
	return nil
}

// beProtector protects the memory file of a writer and serves nobody.
func beProtector(arg string) error {
	pidText, path, _ := strings.Cut(arg, ",")
	pid, err := strconv.Atoi(pidText)
	if err != nil {
		return err
	}
	fi, err := os.Stat(path)
	if err != nil {
		return err
	}
	u, err := Take(bg, Process{PID: pid})
	if err != nil {
		return err
	}
	maps, err := Mappings(pid, fi)
	if err != nil || len(maps) != 1 {
		return fmt.Errorf("%d mappings, %w", len(maps), err)
	}
	if err := errors.Join(u.Register(maps[0].Range), u.Protect(maps[0].Range)); err != nil {
		return err
	}
	fmt.Println("protected")
	_, err = os.Stdin.Read(make([]byte, 1)) // until our starter ends
	return err
}

// writer is a process whose memory is protected.
type writer struct {
	t    testing.TB
	cmd  *exec.Cmd
	path string
	file *os.File
	in   *os.File
	out  chan string
	addr uint64
}

func startWriter(t testing.TB) *writer {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "fermata-uffd-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	w := &writer{t: t, path: filepath.Join(dir, "memory"), out: make(chan string, 1024)}
	if w.file, err = os.Create(w.path); err != nil {
		t.Fatal(err)
	}
	if err := w.file.Truncate(fileBytes); err != nil {
		t.Fatal(err)
	}
	w.cmd, w.in = startChild(t, w.path, w.out)
	if _, err := fmt.Sscanf(w.line(), "at %d", &w.addr); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.file.Close() })
	return w
}

func startChild(t testing.TB, arg string, out chan<- string) (*exec.Cmd, *os.File) {
	t.Helper()
	r, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childEnv+"="+arg)
	cmd.Stdin, cmd.Stderr = r, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		for s := bufio.NewScanner(pipe); s.Scan(); {
			out <- s.Text()
		}
	}()
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Process.Kill()
		<-read
		_ = cmd.Wait() // says that it was killed
	})
	return cmd, in
}

// line returns the next line of the writer, within a budget.
func (w *writer) line() string {
	w.t.Helper()
	select {
	case s := <-w.out:
		return s
	case <-time.After(10 * time.Second):
		w.t.Fatal("the writer says nothing")
		return ""
	}
}

func (w *writer) write(verb string, page int, value byte) {
	w.t.Helper()
	if _, err := fmt.Fprintf(w.in, "%s %d %d\n", verb, page, value); err != nil {
		w.t.Fatal(err)
	}
}

func (w *writer) at(page int) Range {
	return Range{Addr: w.addr + uint64(page)*pageSize, Len: pageSize}
}

func (w *writer) holds(page int) byte {
	w.t.Helper()
	var b [1]byte
	if _, err := w.file.ReadAt(b[:], int64(page)*pageSize); err != nil {
		w.t.Fatal(err)
	}
	return b[0]
}

// protected takes the writer's userfaultfd and protects all of its memory.
func (w *writer) protected() (*FD, *served) {
	w.t.Helper()
	u, err := Take(bg, Process{PID: w.cmd.Process.Pid})
	if err != nil {
		w.t.Fatal(err)
	}
	all := Range{w.addr, fileBytes}
	if err := errors.Join(u.Register(all), u.Protect(all)); err != nil {
		w.t.Fatal(err)
	}
	s := &served{faults: make(chan Fault, 1024), end: make(chan error, 1)}
	go func() {
		s.end <- u.Serve(func(faults []Fault) {
			s.count.Add(int64(len(faults)))
			for _, f := range faults {
				s.faults <- f
			}
		})
	}()
	w.t.Cleanup(func() {
		if err := u.Close(); err != nil {
			w.t.Error(err)
		}
	})
	return u, s
}

type served struct {
	faults chan Fault
	end    chan error
	count  atomic.Int64
}

func (s *served) next(t testing.TB) Fault {
	t.Helper()
	select {
	case f := <-s.faults:
		return f
	case <-time.After(10 * time.Second):
		t.Fatal("no fault")
		return Fault{}
	}
}
