package inject

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// targetEnv makes the test binary a target.
const targetEnv = "FERMATA_INJECT_TARGET"

func TestMain(m *testing.M) {
	switch os.Getenv(targetEnv) {
	case "":
		os.Exit(m.Run())
	case "dying":
		dieAt()
	case "tracer":
		pid, _ := strconv.Atoi(os.Args[1])
		for {
			if err := With(bg, pid, func(t *Thread) error { _, err := t.Syscall(unix.SYS_GETPPID); return err }); err != nil {
				fmt.Fprintln(os.Stderr, "tracer:", err)
				os.Exit(1)
			}
		}
	default:
		if err := beTarget(); err != nil {
			fmt.Fprintln(os.Stderr, "target:", err)
			os.Exit(3)
		}
		os.Exit(0)
	}
}

// beTarget does, in a thread each, what injection could disturb, and ends with an
// error when it is: waits with a time-out that must neither end early nor be
// interrupted, computation in registers, system calls with results to check. It
// says how many real-time signals it got when its standard input ends.
func beTarget() error {
	failed := make(chan error, 8)
	watch := func(f func() error) {
		go func() {
			runtime.LockOSThread()
			for {
				if err := f(); err != nil {
					failed <- err
					return
				}
			}
		}()
	}
	watch(func() error {
		return lasts("nanosleep", func() error { return unix.Nanosleep(&unix.Timespec{Nsec: int64(waitTime)}, nil) })
	})
	watch(func() error {
		return lasts("ppoll", func() error {
			_, err := unix.Ppoll(nil, &unix.Timespec{Nsec: int64(waitTime)}, nil)
			return err
		})
	})
	var word uint32
	watch(func() error {
		return lasts("futex", func() error {
			ts := unix.Timespec{Nsec: int64(waitTime)}
			const futexWaitPrivate = 128
			_, _, errno := unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(&word)), futexWaitPrivate, 0, uintptr(unsafe.Pointer(&ts)), 0, 0)
			if errno == unix.ETIMEDOUT {
				return nil
			}
			return errno
		})
	})
	watch(func() error {
		x, y := uint64(1), 1.0
		for range 1_000_000 {
			x = x*6364136223846793005 + 1442695040888963407
			y = y*1.0000001 + 0.5
		}
		if x != wantX || y != wantY {
			return fmt.Errorf("computed %#x and %v, want %#x and %v", x, y, wantX, wantY)
		}
		return nil
	})
	pid := os.Getpid()
	watch(func() error {
		if got := unix.Getpid(); got != pid {
			return fmt.Errorf("getpid says %d, am %d", got, pid)
		}
		return nil
	})
	var got atomic.Int64
	signals, err := unix.Signalfd(-1, realTimeSet(), unix.SFD_CLOEXEC)
	if err != nil {
		return err
	}
	watch(func() error {
		var info unix.SignalfdSiginfo
		if _, err := unix.Read(signals, (*[unsafe.Sizeof(info)]byte)(unsafe.Pointer(&info))[:]); err != nil {
			return err
		}
		got.Add(1)
		return nil
	})
	fmt.Println("ready")
	ended := make(chan error, 1)
	go func() {
		_, err := os.Stdin.Read(make([]byte, 1)) // until our starter closes it
		ended <- err
	}()
	select {
	case err := <-failed:
		return err
	case <-ended:
	}
	want, _ := strconv.ParseInt(os.Getenv(targetEnv), 10, 64)
	for deadline := time.Now().Add(5 * time.Second); got.Load() < want && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond) // polls, with a deadline
	}
	if n := got.Load(); n != want {
		return fmt.Errorf("got %d signals, want %d", n, want)
	}
	return nil
}

const (
	waitTime = 20 * time.Millisecond
	realTime = 40 // a real-time signal: those are counted, not merged (signal(7))
)

func realTimeSet() *unix.Sigset_t {
	var set unix.Sigset_t
	set.Val[(realTime-1)/64] = 1 << ((realTime - 1) % 64)
	return &set
}

// What the computation gives where nobody disturbs it.
var wantX, wantY = func() (uint64, float64) {
	x, y := uint64(1), 1.0
	for range 1_000_000 {
		x = x*6364136223846793005 + 1442695040888963407
		y = y*1.0000001 + 0.5
	}
	return x, y
}()

// lasts checks that a wait of waitTime was one.
func lasts(name string, wait func() error) error {
	begun := time.Now()
	if err := wait(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if d := time.Since(begun); d < waitTime {
		return fmt.Errorf("%s ended after %s, want %s", name, d, waitTime)
	}
	return nil
}

// target is a process to inject into.
type target struct {
	t   testing.TB
	cmd *exec.Cmd
	in  *os.File
}

func startTarget(t testing.TB, signals int) *target {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := exec.Command("/proc/self/exe")
	// The runtime's own signals would interrupt the waits.
	cmd.Env = append(os.Environ(), targetEnv+"="+strconv.Itoa(signals), "GODEBUG=asyncpreemptoff=1")
	cmd.Stdin, cmd.Stderr = r, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	// Blocked in all threads of the target, which counts it by signalfd(2): the
	// runtime merges signals that it handles.
	runtime.LockOSThread()
	err = unix.PthreadSigmask(unix.SIG_BLOCK, realTimeSet(), nil)
	if err == nil {
		err = cmd.Start()
	}
	err = errors.Join(err, unix.PthreadSigmask(unix.SIG_UNBLOCK, realTimeSet(), nil))
	runtime.UnlockOSThread()
	if err != nil {
		t.Fatal(err)
	}
	tg := &target{t: t, cmd: cmd, in: w}
	t.Cleanup(tg.kill)
	b := make([]byte, 16)
	if n, err := out.Read(b); err != nil || !strings.HasPrefix(string(b[:n]), "ready") {
		t.Fatalf("target says %q, %v", b[:n], err)
	}
	return tg
}

func (tg *target) pid() int { return tg.cmd.Process.Pid }

func (tg *target) kill() {
	_ = tg.in.Close()
	_ = tg.cmd.Process.Kill() // it may have ended
	_ = tg.cmd.Wait()         // says so
}

// end has the target judge itself.
func (tg *target) end() {
	tg.t.Helper()
	if err := errors.Join(tg.in.Close(), tg.cmd.Wait()); err != nil {
		tg.t.Fatalf("the target was disturbed: %v", err)
	}
}

// The upper halves of the vector registers ymm8 to ymm15 in the state of XSAVE
// (Intel SDM volume 1, 13.4.3 and 13.4.4: AVX state is component 2, at 576).
const (
	upperAt   = 576 + 8*16
	upperEnd  = 576 + 16*16
	avxState  = 1 << 2
	testValue = 0x5a
)

// setVectors puts a value into registers of a thread that waits.
func setVectors(t *testing.T, pid int) {
	t.Helper()
	tracing(t, pid, func(th *Thread) {
		b := make([]byte, maxXState)
		v := unix.Iovec{Base: &b[0]}
		v.SetLen(len(b))
		if _, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_GETREGSET, uintptr(pid), noteXState, uintptr(unsafe.Pointer(&v)), 0, 0); errno != 0 {
			t.Fatal(errno)
		}
		if v.Len < upperEnd {
			t.Skip("this processor has no AVX")
		}
		for i := upperAt; i < upperEnd; i++ {
			b[i] = testValue
		}
		b[legacyBytes] |= avxState | 3 // x87 and SSE, too
		if _, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SETREGSET, uintptr(pid), noteXState, uintptr(unsafe.Pointer(&v)), 0, 0); errno != 0 {
			t.Fatal(errno)
		}
	})
}

// hasVectors tells whether the value is still there.
func hasVectors(t *testing.T, pid int) (yes bool) {
	t.Helper()
	tracing(t, pid, func(th *Thread) {
		b, err := th.extendedState()
		if err != nil {
			t.Fatal(err)
		}
		yes = b[legacyBytes]&avxState != 0
		for _, x := range b[upperAt:upperEnd] {
			yes = yes && x == testValue
		}
	})
	return yes
}

func tracing(t *testing.T, pid int, f func(*Thread)) {
	t.Helper()
	if err := With(t.Context(), pid, func(th *Thread) error { f(th); return nil }); err != nil {
		t.Fatal(err)
	}
}
