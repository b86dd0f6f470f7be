package guard

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fermata/protocol/mustrun"
	"fermata/vmm/uffd"
)

// TestMain lets the test binary play the guard process: it prints what it resumes.
func TestMain(m *testing.M) {
	if os.Getenv("GUARD_TEST_SERVE") == "1" {
		err := Serve(context.Background(), os.Stdin, Rescue{
			Resume: func(_ context.Context, socket string) error {
				say("resume", socket)
				return nil
			},
			Revoke: uffd.Revoke,
		})
		if err != nil {
			say("error", err)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// say goes to standard output where a shell has redirected it, and to standard
// error, which is all that an agent gives its guard.
func say(args ...any) {
	out := os.Stderr
	if os.Getenv("GUARD_TEST_STDOUT") == "1" {
		out = os.Stdout
	}
	fmt.Fprintln(out, args...)
}

// serve runs Serve on a pipe and returns what it resumed, sorted.
func serve(t *testing.T, script func(w io.Writer, resumed <-chan string)) []string {
	t.Helper()
	r, w := io.Pipe()
	resumed := make(chan string, 16)
	done := make(chan error, 1)
	go func() {
		done <- Serve(t.Context(), r, Rescue{Resume: func(_ context.Context, s string) error { resumed <- s; return nil }})
	}()
	script(w, resumed)
	w.Close()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	close(resumed)
	var got []string
	for s := range resumed {
		got = append(got, s)
	}
	slices.Sort(got)
	return got
}

func TestServe_ResumesHeldGuestsWhenAgentDies(t *testing.T) {
	got := serve(t, func(w io.Writer, _ <-chan string) {
		fmt.Fprint(w, "hold 60000 -1 /run/a b.sock\nhold 60000 -1 /run/c.sock\nrelease /run/c.sock\n")
	})
	if want := []string{"/run/a b.sock"}; !slices.Equal(got, want) {
		t.Errorf("resumed %q, want %q", got, want)
	}
}

func TestServe_ResumesAtDeadlineWhenAgentHangs(t *testing.T) {
	serve(t, func(w io.Writer, resumed <-chan string) {
		fmt.Fprint(w, "hold 10 -1 /run/a.sock\n")
		select {
		case s := <-resumed:
			if s != "/run/a.sock" {
				t.Errorf("resumed %q", s)
			}
		case <-time.After(10 * time.Second):
			t.Error("not resumed though its deadline passed")
		}
	})
}

// TestServe_ResumesAgainUntilReleased has an agent that hung past its deadline
// go on and stop its guest then, and a monitor that fails at first.
func TestServe_ResumesAgainUntilReleased(t *testing.T) {
	r, w := io.Pipe()
	calls := make(chan int)
	n := 0 // of one goroutine at a time: there is one socket
	done := make(chan error, 1)
	go func() {
		done <- Serve(t.Context(), r, Rescue{Resume: func(context.Context, string) error {
			n++
			calls <- n
			if n == 1 {
				return errors.New("monitor is busy")
			}
			return nil
		}})
	}()
	fmt.Fprint(w, "hold 0 -1 /run/a.sock\n")
	for want := 1; want <= 3; want++ {
		select {
		case got := <-calls:
			if got != want {
				t.Fatalf("attempt %d, want %d", got, want)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("no attempt %d", want)
		}
	}
	fmt.Fprint(w, "release /run/a.sock\n")
	w.Close()
	for {
		select {
		case <-calls: // one may have been under way
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
			return
		}
	}
}

// TestServe_HangingMonitorHoldsUpNobody resumes one guest while another's
// monitor does not answer.
func TestServe_HangingMonitorHoldsUpNobody(t *testing.T) {
	r, w := io.Pipe()
	free := make(chan struct{})
	resumed := make(chan string, 1)
	done := make(chan error, 1)
	go func() {
		done <- Serve(t.Context(), r, Rescue{Resume: func(_ context.Context, socket string) error {
			if socket == "/run/hangs.sock" {
				<-free
				return nil
			}
			resumed <- socket
			return nil
		}})
	}()
	fmt.Fprint(w, "hold 60000 -1 /run/hangs.sock\nhold 60000 -1 /run/a.sock\n")
	w.Close()
	select {
	case <-resumed:
	case <-time.After(10 * time.Second):
		t.Error("not resumed")
	}
	close(free)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestGuard_IsReplacedWhenItDies kills the guard process and expects the next
// one to be told what is held.
func TestGuard_IsReplacedWhenItDies(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("GUARD_TEST_SERVE", "1")
	out, log, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	g, err := Start([]string{exe}, log)
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Hold("/run/a.sock", nil, time.Hour); err != nil {
		t.Fatal(err)
	}
	if err := g.proc.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := g.proc.Process.Wait(); err != nil {
		t.Fatal(err)
	}
	if err := g.Hold("/run/b.sock", nil, time.Hour); err != nil {
		t.Fatalf("hold after the guard died: %v", err)
	}
	if err := g.Release("/run/b.sock"); err != nil {
		t.Fatal(err)
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	log.Close()
	if b, _ := io.ReadAll(out); string(b) != "resume /run/a.sock\n" {
		t.Errorf("the second guard said %q", b)
	}
}

// TestGuard_SpeaksThroughTheAgentsConnection plays an agent that hangs while it
// is connected to a monitor that serves nobody else.
func TestGuard_SpeaksThroughTheAgentsConnection(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("GUARD_TEST_SERVE", "1")
	log, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	g, err := Start([]string{exe}, log)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	monitor, conn := os.NewFile(uintptr(ends[0]), "monitor"), os.NewFile(uintptr(ends[1]), "agent")
	defer monitor.Close()
	if err := g.Hold("/run/a.sock", conn, time.Millisecond); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewReader(monitor)
	for range 2 { // again and again, while nothing is heard of the agent
		if err := monitor.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if line, err := in.ReadString('\n'); err != nil || line != `{"execute":"cont","id":0}`+"\n" {
			t.Fatalf("the monitor hears %q, %v", line, err)
		}
	}
	if err := g.Release("/run/a.sock"); err != nil {
		t.Fatal(err)
	}
	if err := monitor.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if rest, err := io.ReadAll(in); err != nil { // ends when both copies are closed
		t.Errorf("after the release the monitor hears %q, %v; want the end", rest, err)
	}
}

// TestGuard_RevokesWhatAHangingAgentTracks plays an agent that says nothing any
// more while writes are tracked.
func TestGuard_RevokesWhatAHangingAgentTracks(t *testing.T) {
	mustrun.Need(t, mustrun.UFFD)
	if testing.Short() {
		t.Skip("waits for the guard's patience")
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("GUARD_TEST_SERVE", "1")
	g, err := Start([]string{exe}, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	memory, err := unix.Mmap(-1, 0, 64<<10, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(memory)
	whole := uffd.Range{Addr: addressOf(memory), Len: uint64(len(memory))}
	var fds [2]*uffd.FD
	for i := range fds {
		if fds[i], err = uffd.New(); err != nil {
			t.Fatal(err)
		}
		defer fds[i].Close()
	}
	if err := fds[0].Register(whole); err != nil {
		t.Fatal(err)
	}
	if err := fds[0].Protect(whole); err != nil {
		t.Fatal(err)
	}
	id, err := g.Watch(fds[0].Number(), []uffd.Range{whole})
	if err != nil {
		t.Fatal(err)
	}
	// While the agent speaks, nothing happens to it.
	time.Sleep((misses + 1) * beatEvery)
	if err := fds[0].Protect(whole); err != nil {
		t.Fatalf("with an agent that lives: %v", err)
	}
	g.mu.Lock() // and so keeps silent
	written := make(chan struct{})
	go func() {
		memory[5] = 1 // waits, as nobody serves it
		close(written)
	}()
	select {
	case <-written:
	case <-time.After(4 * misses * beatEvery):
		t.Error("a write still waits for the agent that hangs")
	}
	g.mu.Unlock()
	if err := fds[0].Protect(whole); !errors.Is(err, uffd.ErrRevoked) {
		t.Errorf("the agent is told %v, want ErrRevoked", err)
	}
	if err := g.Unwatch(id); err != nil {
		t.Error(err)
	}
}

// TestGuard_OutlivesItsAgent kills the process that holds the pipe.
func TestGuard_OutlivesItsAgent(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// The shell is the agent: it starts the guard in its own session, holds a guest and is killed.
	out, stdout, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	agent := exec.Command("sh", "-c", `{ echo hold 60000 -1 /run/a.sock; echo ready >&2; exec sleep 60; } | setsid "$0"`, exe)
	agent.Env = append(os.Environ(), "GUARD_TEST_SERVE=1", "GUARD_TEST_STDOUT=1")
	agent.Stdout = stdout
	ready, err := agent.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	stdout.Close()
	if line, _ := bufio.NewReader(ready).ReadString('\n'); strings.TrimSpace(line) != "ready" {
		t.Fatalf("agent said %q", line)
	}
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", agent.Process.Pid, agent.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	writer := strings.Fields(string(children))[0] // the left side of the pipe
	if err := exec.Command("kill", "-9", writer).Run(); err != nil {
		t.Fatal(err)
	}
	if line, _ := bufio.NewReader(out).ReadString('\n'); line != "resume /run/a.sock\n" {
		t.Errorf("guard said %q after the agent's death", line)
	}
	_ = agent.Wait()
}
