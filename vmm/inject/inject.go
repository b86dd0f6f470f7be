// Package inject has another process make system calls: it stops one of its
// threads with ptrace(2), has it execute a system call instruction that is there
// already, and lets it go on as if nothing had been.
//
// It is how Fermata gets a userfaultfd of an unmodified QEMU: such a descriptor
// acts on the memory of the process that made it.
//
// The process is disturbed for some hundred microseconds. A system call in which
// the thread was, is restarted by the kernel as after any stop (signal(7),
// "Interruption of system calls by stop signals"); signals that arrive meanwhile
// are delivered afterwards; a process that was stopped stays stopped. Registers of
// floating point and vectors are not touched by a system call.
//
// A caller may die at any moment. What it has set up by then is such that the
// thread goes on by itself, by way of a frame of a signal on its stack; see
// frame_unsafe.go. A call that was not yet made may then still be made. Some
// processes have no such frame, and are in danger for some 100 µs a call: those
// without a C library, with a shadow stack, or with small stacks (Go).
package inject

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Errors of With, always wrapped.
var (
	// ErrGone: the process has ended.
	ErrGone = errors.New("process is gone")
	// ErrForbidden: ptrace(2) is not permitted, for a reason that the error tells.
	ErrForbidden = errors.New("tracing is not permitted")
	// ErrUnsupported: not a process of this machine's 64-bit kind.
	ErrUnsupported = errors.New("process is not supported")
	// ErrStuck: no thread of the process stops; all hang in the kernel.
	ErrStuck = errors.New("no thread of the process stops")
)

// stopBudget bounds the wait for one thread to stop. One that waits for a disk
// in the kernel does not, and another is tried.
const stopBudget = 200 * time.Millisecond

// maxThreads bounds how many threads are tried.
const maxThreads = 16

// With stops one thread of process pid, calls f with it and lets it go on. f
// should do nothing but make calls.
//
// On error: the process goes on as before. ctx is looked at before anything is
// done; what has begun takes no longer than maxThreads times stopBudget.
func With(ctx context.Context, pid int, f func(*Thread) error) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	done := make(chan error, 1)
	go func() {
		// All requests for a tracee must come from the thread that traces it (ptrace(2)).
		runtime.LockOSThread()
		left, err := with(pid, f)
		if !left {
			runtime.UnlockOSThread()
		} // else our thread ends with this goroutine, and the kernel detaches for us
		done <- err
	}()
	if err := <-done; err != nil {
		return fmt.Errorf("inject into process %d: %w", pid, err)
	}
	return nil
}

// with is With on a locked thread. left: a thread of the process could not be
// detached from, as it has not stopped.
func with(pid int, f func(*Thread) error) (left bool, err error) {
	code, err := findCode(pid)
	if err != nil {
		return false, err
	}
	tids, err := threads(pid)
	if err != nil {
		return false, err
	}
	for _, tid := range tids[:min(len(tids), maxThreads)] {
		t := &Thread{pid: pid, tid: tid, code: code}
		switch err := t.seize(); {
		case errors.Is(err, errNotStopped):
			left = true // it hangs in the kernel
			continue
		case errors.Is(err, unix.ESRCH):
			continue // it has ended
		case err != nil:
			return left, err
		}
		return left, errors.Join(f(t), t.release())
	}
	if !left {
		return false, ErrGone
	}
	return true, ErrStuck
}

// threads lists the threads of a process, the first one first: QEMU's, which
// waits for events nearly always.
func threads(pid int) ([]int, error) {
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return nil, ErrGone
	}
	if err != nil {
		return nil, err
	}
	tids := []int{pid}
	for _, e := range entries {
		if tid, err := strconv.Atoi(e.Name()); err == nil && tid != pid {
			tids = append(tids, tid)
		}
	}
	return tids, nil
}

// forbidden explains why the kernel refuses to trace a process. One that is just
// ending is refused in the same way.
func forbidden(pid int) error {
	if ends(pid) {
		return ErrGone
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return ErrGone
	}
	for line := range strings.Lines(string(status)) {
		tracer, ok := strings.CutPrefix(line, "TracerPid:")
		if tracer = strings.TrimSpace(tracer); ok && tracer != "0" {
			return fmt.Errorf("%w: process %s traces it already; end that (a debugger, strace)", ErrForbidden, tracer)
		}
	}
	scope, err := os.ReadFile("/proc/sys/kernel/yama/ptrace_scope")
	if s := strings.TrimSpace(string(scope)); err == nil && s == "3" {
		return fmt.Errorf("%w: kernel.yama.ptrace_scope is 3; it can only be lowered by a reboot", ErrForbidden)
	}
	return fmt.Errorf("%w: run as root or with CAP_SYS_PTRACE", ErrForbidden)
}

// ends waits a moment for a process to end.
func ends(pid int) bool {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return errors.Is(err, unix.ESRCH)
	}
	defer unix.Close(fd)
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(stopBudget.Milliseconds()))
	return err == nil && n > 0
}
