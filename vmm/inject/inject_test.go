package inject

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fermata/protocol/mustrun"
	"fermata/vmm/qmp"
	"fermata/vmm/vmmtest"
)

var bg = context.Background()

// getppid injects a call whose result we know.
func getppid(t testing.TB, pid int) {
	t.Helper()
	err := With(t.Context(), pid, func(th *Thread) error {
		got, err := th.Syscall(unix.SYS_GETPPID)
		if err == nil && int(got) != os.Getpid() {
			err = fmt.Errorf("getppid says %d, want %d", got, os.Getpid())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func times(n int) int {
	if testing.Short() {
		return n / 10
	}
	return n
}

func TestWith_DisturbsNobody(t *testing.T) {
	mustrun.Need(t, mustrun.UFFD)
	tg := startTarget(t, 0)
	for range times(3000) {
		getppid(t, tg.pid())
	}
	tg.end()
}

func TestWith_LosesNoSignal(t *testing.T) {
	mustrun.Need(t, mustrun.UFFD)
	n := times(2000)
	tg := startTarget(t, n)
	for range n {
		if err := unix.Kill(tg.pid(), realTime); err != nil {
			t.Fatal(err)
		}
		getppid(t, tg.pid())
	}
	tg.end()
}

func TestSyscall_GivesTheErrorOfTheCall(t *testing.T) {
	mustrun.Need(t, mustrun.UFFD)
	tg := startTarget(t, 0)
	err := With(t.Context(), tg.pid(), func(th *Thread) error {
		if _, err := th.Syscall(unix.SYS_CLOSE, 12345); !errors.Is(err, unix.EBADF) {
			return fmt.Errorf("close of no descriptor: %v, want EBADF", err)
		}
		if _, err := th.Syscall(1, 2, 3, 4, 5, 6, 7, 8); err == nil {
			return errors.New("a call with seven arguments was made")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	tg.end()
}

func TestWith_LeavesAStoppedProcessStopped(t *testing.T) {
	mustrun.Need(t, mustrun.UFFD)
	tg := startTarget(t, 0)
	if err := unix.Kill(tg.pid(), unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	awaitState(t, tg.pid(), "T")
	for range 20 {
		getppid(t, tg.pid())
		awaitState(t, tg.pid(), "T")
	}
	if err := unix.Kill(tg.pid(), unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	getppid(t, tg.pid())
	tg.end()
}

// awaitState waits for a process to be in a state of proc_pid_stat(5).
func awaitState(t testing.TB, pid int, want string) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) { // polls, with a deadline
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			t.Fatal(err)
		}
		if state := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))[0]; state == want {
			return
		} else if time.Now().After(deadline) {
			t.Fatalf("process is in state %s, want %s", state, want)
		}
	}
}

func TestWith_SaysWhyNot(t *testing.T) {
	mustrun.Need(t, mustrun.UFFD)
	nothing := func(*Thread) error { return nil }
	tg := startTarget(t, 0)
	tracer := startTracer(t, tg.pid())
	tracer.Process.Signal(unix.SIGSTOP) // while it traces, or between two calls
	awaitState(t, tracer.Process.Pid, "T")
	if err := With(t.Context(), tg.pid(), nothing); err != nil && !errors.Is(err, ErrForbidden) {
		t.Errorf("a process that is traced: %v, want ErrForbidden", err)
	}
	tracer.Process.Kill()
	tracer.Wait()

	ended := exec.Command("true")
	if err := ended.Start(); err != nil {
		t.Fatal(err)
	}
	awaitState(t, ended.Process.Pid, "Z")
	if err := With(t.Context(), ended.Process.Pid, nothing); !errors.Is(err, ErrGone) {
		t.Errorf("a zombie: %v, want ErrGone", err)
	}
	ended.Wait()
	if err := With(t.Context(), ended.Process.Pid, nothing); !errors.Is(err, ErrGone) {
		t.Errorf("no process: %v, want ErrGone", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := With(ctx, tg.pid(), nothing); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// dieAt is a tracer that kills itself at the n-th place where that is worst. It
// exits with 0 when there is no n-th.
func dieAt() {
	pid, _ := strconv.Atoi(os.Args[1])
	n, _ := strconv.Atoi(os.Args[2])
	reached = func(string) {
		if n--; n == 0 {
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
			select {}
		}
	}
	if err := With(bg, pid, func(t *Thread) error { _, err := t.Syscall(unix.SYS_GETPPID); return err }); err != nil {
		fmt.Fprintln(os.Stderr, "tracer:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// dieTracing runs tracers that die at one place after the other, and calls check
// after each. It returns how many places there are.
func dieTracing(t *testing.T, pid int, check func(place int)) int {
	t.Helper()
	for place := 1; ; place++ {
		cmd := exec.Command("/proc/self/exe", fmt.Sprint(pid), fmt.Sprint(place))
		cmd.Env = append(os.Environ(), targetEnv+"=dying")
		cmd.Stderr = os.Stderr
		err := cmd.Run()
		check(place)
		if err == nil {
			return place - 1
		}
		if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !ws.Signaled() {
			t.Fatalf("tracer: %v", err)
		}
	}
}

// TestWith_DiesWithoutHarm_Computation has tracers die over a shell that computes
// all the time.
func TestWith_DiesWithoutHarm_Computation(t *testing.T) {
	mustrun.Need(t, mustrun.UFFD)
	const steps = 5_000_000 // more than the tracers take
	want := 0
	for i := range steps {
		want = (want*31 + i) % 1000003
	}
	shell := exec.Command("dash", "-c", fmt.Sprintf(
		`i=0 s=0; while [ $i -lt %d ]; do s=$(( (s*31+i) %% 1000003 )); i=$((i+1)); done; echo $s`, steps))
	var out strings.Builder
	shell.Stdout = &out
	if err := shell.Start(); err != nil {
		t.Fatal(err)
	}
	places := 0
	for range times(20) {
		places += dieTracing(t, shell.Process.Pid, func(int) {})
	}
	if err := shell.Wait(); err != nil || strings.TrimSpace(out.String()) != fmt.Sprint(want) {
		t.Errorf("the shell says %q, %v; want %d", out.String(), err, want)
	}
	if places < times(20)*5 {
		t.Errorf("%d deaths, too few", places)
	}
}

// TestWith_DiesWithoutHarm_Wait has tracers die over a program that waits, with
// values in its vector registers that nothing else would bring back.
func TestWith_DiesWithoutHarm_Wait(t *testing.T) {
	mustrun.Need(t, mustrun.UFFD)
	sleeper := exec.Command("sleep", "1000")
	if err := sleeper.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = sleeper.Process.Kill()
		_ = sleeper.Wait()
	}()
	pid := sleeper.Process.Pid
	awaitState(t, pid, "S")
	setVectors(t, pid)
	n := dieTracing(t, pid, func(place int) {
		awaitState(t, pid, "S")
		if !hasVectors(t, pid) {
			t.Errorf("place %d: the vector registers are not what they were", place)
		}
	})
	if n < 5 {
		t.Errorf("%d deaths, too few", n)
	}
}

// TestWith_DiesWithoutHarm_QEMU has tracers die over a QEMU whose guest counts.
func TestWith_DiesWithoutHarm_QEMU(t *testing.T) {
	mustrun.Need(t, mustrun.QEMU, mustrun.UFFD)
	dir := t.TempDir()
	program, console, monitor := filepath.Join(dir, "program"), filepath.Join(dir, "console"), filepath.Join(dir, "q")
	if err := os.WriteFile(program, vmmtest.Program(), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("qemu-system-x86_64", "-machine", "q35", "-nodefaults", "-display", "none", "-m", "16",
		"-kernel", program, "-serial", "file:"+console, "-qmp", "unix:"+monitor+",server=on,wait=off")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	client := dialMonitor(t, monitor)
	defer client.Close()
	deaths := 0
	for range times(30) {
		deaths += dieTracing(t, cmd.Process.Pid, func(place int) {
			if s, err := client.QueryStatus(t.Context()); err != nil || !s.Running {
				t.Fatalf("place %d: the guest is %+v, %v", place, s, err)
			}
		})
	}
	before, err := os.ReadFile(console)
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) { // polls, with a deadline
		now, err := os.ReadFile(console)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := vmmtest.CheckConsole(string(now), 1); err != nil {
			t.Fatal(err)
		}
		if len(now) > len(before) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the guest does not go on")
		}
	}
	t.Logf("%d deaths", deaths)
}

func dialMonitor(t *testing.T, path string) *qmp.Client {
	t.Helper()
	client, err := qmp.Dial(t.Context(), path)
	for deadline := time.Now().Add(20 * time.Second); err != nil; client, err = qmp.Dial(t.Context(), path) {
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond) // polls, with a deadline
	}
	return client
}

func startTracer(t testing.TB, pid int) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", fmt.Sprint(pid))
	cmd.Env = append(os.Environ(), targetEnv+"=tracer")
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

func TestWith_EndsWithTheProcess(t *testing.T) {
	mustrun.Need(t, mustrun.UFFD)
	for range times(30) {
		tg := startTarget(t, 0)
		time.AfterFunc(time.Millisecond, func() { _ = unix.Kill(tg.pid(), unix.SIGKILL) })
		for {
			err := With(t.Context(), tg.pid(), func(th *Thread) error { _, err := th.Syscall(unix.SYS_GETPPID); return err })
			if errors.Is(err, ErrGone) {
				break
			}
			if err != nil {
				t.Fatalf("a process that is being killed: %v, want ErrGone", err)
			}
		}
		tg.kill()
	}
}

func TestWith_QEMU(t *testing.T) {
	mustrun.Need(t, mustrun.QEMU, mustrun.UFFD)
	monitor := filepath.Join(t.TempDir(), "q")
	cmd := exec.Command("qemu-system-x86_64", "-machine", "q35", "-nodefaults", "-display", "none", "-m", "32",
		"-qmp", "unix:"+monitor+",server=on,wait=off")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cmd.Process.Kill()
		cmd.Wait()
	}()
	descriptors := func() int {
		entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	client := dialMonitor(t, monitor)
	defer client.Close()
	before := descriptors()
	for range times(500) {
		err := With(t.Context(), cmd.Process.Pid, func(th *Thread) error {
			fd, err := th.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK)
			if err != nil {
				return err
			}
			_, err = th.Syscall(unix.SYS_CLOSE, fd)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if after := descriptors(); after != before {
		t.Errorf("QEMU has %d descriptors, had %d", after, before)
	}
}

func BenchmarkWith(b *testing.B) {
	tg := startTarget(b, 0)
	for b.Loop() {
		getppid(b, tg.pid())
	}
}
