package uffd

import (
	"context"
	"errors"
	"os"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fermata/protocol/mustrun"
)

var bg = context.Background()

func TestFD_AWriteWaitsForUnprotect(t *testing.T) {
	mustrun.Need(t, mustrun.UFFD)
	for _, verb := range []string{"w", "k"} { // by the process, by its kernel
		w := startWriter(t)
		if _, err := w.file.WriteAt([]byte{7}, 3*pageSize); err != nil {
			t.Fatal(err)
		}
		u, s := w.protected()
		for _, page := range []int{3, 100} { // one that exists, a hole
			before := w.holds(page)
			w.write(verb, page, 42)
			f := s.next(t)
			if f.Addr != w.at(page).Addr {
				t.Fatalf("fault at %#x, want %#x", f.Addr, w.at(page).Addr)
			}
			if got := w.holds(page); got != before {
				t.Fatalf("page %d holds %d while its writer waits, want %d", page, got, before)
			}
			if err := u.Unprotect(w.at(page)); err != nil {
				t.Fatal(err)
			}
			w.line()
			if got := w.holds(page); got != 42 {
				t.Errorf("page %d holds %d after the write, want 42", page, got)
			}
		}
		// Not protected any more, until it is again.
		w.write(verb, 3, 43)
		w.line()
		if err := u.Protect(w.at(3)); err != nil {
			t.Fatal(err)
		}
		w.write(verb, 3, 44)
		s.next(t)
		if err := u.Unprotect(Range{w.addr, fileBytes}); err != nil {
			t.Fatal(err)
		}
		w.line()
		if n := s.count.Load(); n != 3 {
			t.Errorf("%d faults, want 3", n)
		}
	}
}

func TestFD_CloseLetsEverybodyGoOn(t *testing.T) {
	mustrun.Need(t, mustrun.UFFD)
	w := startWriter(t)
	u, s := w.protected()
	for page := range 20 {
		w.write("w", page, 1)
	}
	s.next(t)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				if err := u.Protect(w.at(500)); err != nil {
					if !errors.Is(err, ErrClosed) {
						t.Error(err)
					}
					return
				}
			}
		})
	}
	if err := errors.Join(u.Close(), u.Close()); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	for range 20 {
		w.line()
	}
	if err := <-s.end; err != nil {
		t.Errorf("Serve ended with %v", err)
	}
	u.Stop()
	if err := u.Unprotect(w.at(0)); !errors.Is(err, ErrClosed) {
		t.Errorf("Unprotect after Close: %v, want ErrClosed", err)
	}
}

func TestFD_UnregisterLetsEverybodyGoOn(t *testing.T) {
	mustrun.Need(t, mustrun.UFFD)
	w := startWriter(t)
	u, s := w.protected()
	w.write("w", 5, 1)
	s.next(t)
	if err := u.Unregister(Range{w.addr, fileBytes}); err != nil {
		t.Fatal(err)
	}
	w.line()
	if err := u.Protect(w.at(5)); !errors.Is(err, ErrRevoked) {
		t.Errorf("Protect of what is not registered: %v, want ErrRevoked", err)
	}
}

func TestFD_EndsWithTheProcess(t *testing.T) {
	mustrun.Need(t, mustrun.UFFD)
	w := startWriter(t)
	u, s := w.protected()
	w.write("w", 5, 1)
	s.next(t)
	if err := w.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-s.end:
		if !errors.Is(err, ErrGone) {
			t.Errorf("Serve ended with %v, want ErrGone", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("Serve did not notice that the process ended")
	}
	_ = w.cmd.Wait()
	if err := u.Protect(w.at(5)); !errors.Is(err, ErrGone) {
		t.Errorf("Protect of a process that ended: %v, want ErrGone", err)
	}
	if _, err := Take(bg, Process{PID: w.cmd.Process.Pid}); !errors.Is(err, ErrGone) {
		t.Errorf("Take from a process that ended: %v, want ErrGone", err)
	}
}

// TestTake_ADeadHolderHangsNobody kills who holds the userfaultfd while writes
// wait: the promise that makes protection from outside bearable.
func TestTake_ADeadHolderHangsNobody(t *testing.T) {
	mustrun.Need(t, mustrun.UFFD)
	w := startWriter(t)
	said := make(chan string, 1)
	holder, _ := startChild(t, "pid:"+strconv.Itoa(w.cmd.Process.Pid)+","+w.path, said)
	select {
	case <-said:
	case <-time.After(10 * time.Second):
		t.Fatal("the holder does not protect")
	}
	w.write("w", 5, 1)
	select {
	case s := <-w.out:
		t.Fatalf("a protected page was written: %s", s)
	case <-time.After(50 * time.Millisecond):
	}
	if err := holder.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	w.line()
}

func TestMappings(t *testing.T) {
	mustrun.Need(t, mustrun.UFFD)
	w := startWriter(t)
	fi, err := w.file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	got, err := Mappings(w.cmd.Process.Pid, fi)
	if err != nil {
		t.Fatal(err)
	}
	st := fi.Sys().(*syscall.Stat_t)
	want := Mapping{
		Range: Range{w.addr, fileBytes}, Readable: true, Writable: true, Shared: true,
		Device: st.Dev, Inode: st.Ino, PageBytes: pageSize, Name: w.file.Name(),
	}
	if len(got) != 1 || got[0] != want {
		t.Errorf("mappings are %+v, want %+v", got, want)
	}
	if got, err := Mappings(os.Getpid(), fi); err != nil || len(got) != 0 {
		t.Errorf("mappings of another process: %+v, %v", got, err)
	}
}

func TestProbe(t *testing.T) {
	mustrun.Need(t, mustrun.UFFD)
	if err := Probe(); err != nil {
		t.Error(err)
	}
}

// BenchmarkFault is the round trip of one write that is served, seen by who
// serves: the process is told, writes, waits, is let go on and answers.
func BenchmarkFault(b *testing.B) {
	w := startWriter(b)
	u, s := w.protected()
	for b.Loop() {
		w.write("w", 1, 1)
		s.next(b)
		if err := u.Unprotect(w.at(1)); err != nil {
			b.Fatal(err)
		}
		w.line()
		if err := u.Protect(w.at(1)); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkProtect arms 1 GiB of memory that nobody has touched.
func BenchmarkProtect(b *testing.B) {
	const size = 1 << 30
	mem, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		b.Fatal(err)
	}
	defer unix.Munmap(mem)
	u, err := New()
	if err != nil {
		b.Fatal(err)
	}
	defer u.Close()
	r := Range{addressOf(mem), size}
	if err := u.Register(r); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(size)
	for b.Loop() {
		if err := errors.Join(u.Protect(r), u.Unprotect(r)); err != nil {
			b.Fatal(err)
		}
	}
}
