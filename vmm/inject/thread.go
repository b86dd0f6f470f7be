package inject

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// Thread is a thread that stands still.
//
// Concurrency: for the function that With calls, on its goroutine.
type Thread struct {
	pid, tid int
	code     code
	saved    unix.PtraceRegs // as it was stopped
	frame    uint64          // where the frame lies that puts saved back; 0: there is none
	signals  []unix.Signal   // that came meanwhile, for after the release
	gone     bool
}

// maxArgs is how many arguments a system call has (syscall(2)).
const maxArgs = 6

var errNotStopped = errors.New("thread does not stop")

// seize attaches to the thread, stops it and makes its frame.
//
// On error it is not attached to.
func (t *Thread) seize() error {
	switch err := unix.PtraceSeize(t.tid); {
	case errors.Is(err, unix.ESRCH):
		return unix.ESRCH
	case errors.Is(err, unix.EPERM):
		return forbidden(t.pid)
	case err != nil:
		return fmt.Errorf("PTRACE_SEIZE: %w", err)
	}
	err := t.interrupt()
	if err == nil {
		err = t.regs(&t.saved)
	}
	if err == nil && t.saved.Cs != userCS64 {
		err = fmt.Errorf("%w: runs in 32-bit mode", ErrUnsupported)
	}
	if err == nil {
		err = t.request("PTRACE_SETOPTIONS", unix.PtraceSetOptions(t.tid, unix.PTRACE_O_TRACESYSGOOD))
	}
	if err == nil {
		err = t.writeFrame()
	}
	if err != nil {
		return errors.Join(err, t.detach())
	}
	return nil
}

// userCS64 is the code segment of 64-bit programs on x86-64 (__USER_CS in
// arch/x86/include/asm/segment.h).
const userCS64 = 0x33

// interrupt makes the thread stop and waits until it has.
func (t *Thread) interrupt() error {
	if err := unix.PtraceInterrupt(t.tid); err != nil {
		return fmt.Errorf("PTRACE_INTERRUPT: %w", err)
	}
	deadline := time.Now().Add(stopBudget)
	for {
		ws, err := t.wait(deadline)
		if err != nil {
			return err
		}
		if isEventStop(ws) {
			return nil // ours, or the group stop of a stopped process
		}
		// A signal was about to be delivered: let it, afterwards. The stop that
		// was asked for is still to come.
		if err := t.request("PTRACE_CONT", unix.PtraceCont(t.tid, int(ws.StopSignal()))); err != nil {
			return err
		}
	}
}

// isEventStop tells a stop that PTRACE_INTERRUPT asked for, or one of the whole
// process, from the delivery of a signal (ptrace(2), "PTRACE_EVENT stops").
func isEventStop(ws unix.WaitStatus) bool { return uint32(ws)>>16 == unix.PTRACE_EVENT_STOP }

// isSyscallStop tells the begin or end of a system call (PTRACE_O_TRACESYSGOOD).
func isSyscallStop(ws unix.WaitStatus) bool { return ws.StopSignal() == unix.SIGTRAP|0x80 }

// wait waits for the next stop of the thread.
func (t *Thread) wait(deadline time.Time) (unix.WaitStatus, error) {
	for nap := 5 * time.Microsecond; ; nap = min(2*nap, time.Millisecond) {
		var ws unix.WaitStatus
		tid, err := unix.Wait4(t.tid, &ws, unix.WALL|unix.WNOHANG, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ECHILD):
			t.gone = true
			return 0, unix.ESRCH
		case err != nil:
			return 0, fmt.Errorf("wait4: %w", err)
		case tid == t.tid && ws.Stopped():
			return ws, nil
		case tid == t.tid:
			t.gone = true // it has ended, and was reaped by this wait if it was the process
			return 0, unix.ESRCH
		case time.Now().After(deadline):
			return 0, errNotStopped
		}
		time.Sleep(nap) // polls: wait4 has no deadline
	}
}

// Syscall has the thread make system call nr and returns its result. The error
// of the call is a unix.Errno.
//
// Pointers are addresses in the process.
func (t *Thread) Syscall(nr uintptr, args ...uintptr) (uintptr, error) {
	if len(args) > maxArgs {
		return 0, fmt.Errorf("system call %d with %d arguments", nr, len(args))
	}
	r := t.saved
	r.Rip, r.Rax = t.code.call, uint64(nr)
	if t.frame != 0 {
		r.Rsp = t.frame
	}
	// Not in a system call: the kernel must not take this for one to restart.
	r.Orig_rax = ^uint64(0)
	for i, a := range args {
		// The order of arguments is that of syscall(2) for x86-64.
		*[maxArgs]*uint64{&r.Rdi, &r.Rsi, &r.Rdx, &r.R10, &r.R8, &r.R9}[i] = uint64(a)
	}
	result, err := t.run(&r)
	if err != nil {
		return 0, fmt.Errorf("system call %d: %w", nr, err)
	}
	const maxErrno = 4095 // MAX_ERRNO of linux/err.h
	if n := int64(result); n < 0 && n >= -maxErrno {
		return 0, unix.Errno(-n)
	}
	return uintptr(result), nil
}

// callBudget bounds one call. Those that are worth injecting do not wait.
const callBudget = 10 * time.Second

// run has the thread go on with r, which is about to make a system call, stops it
// behind the call and gives it its own registers back.
//
// It never asks for a single step: should we die, the kernel would let go of the
// thread and leave the trap flag set, and the trap would end the process
// (__ptrace_unlink in kernel/ptrace.c). A stop at a system call goes with us.
func (t *Thread) run(r *unix.PtraceRegs) (result uint64, err error) {
	deadline := time.Now().Add(callBudget)
	if err := t.setRegs(r); err != nil {
		return 0, err
	}
	for range 2 { // its begin, its end
		if err := t.next(unix.PtraceSyscall, deadline, isSyscallStop); err != nil {
			return 0, err
		}
	}
	var after unix.PtraceRegs
	if err := t.regs(&after); err != nil {
		return 0, err
	}
	// A call that was interrupted when we came is restarted only by a thread that
	// comes out of such a stop (arch_do_signal_or_restart in arch/x86/kernel/signal.c).
	if err := t.request("PTRACE_INTERRUPT", unix.PtraceInterrupt(t.tid)); err != nil {
		return 0, err
	}
	if err := t.next(unix.PtraceCont, deadline, isEventStop); err != nil {
		return 0, err
	}
	return after.Rax, t.setRegs(&t.saved)
}

// next lets the thread run to a stop of a kind. Signals on the way are kept for
// later.
func (t *Thread) next(resume func(pid, signal int) error, deadline time.Time, is func(unix.WaitStatus) bool) error {
	for {
		if err := t.request("resume thread", resume(t.tid, 0)); err != nil {
			return err
		}
		reached("resumed")
		ws, err := t.wait(deadline)
		switch {
		case err != nil:
			return t.ended(err)
		case is(ws):
			return nil
		case isEventStop(ws), isSyscallStop(ws):
			// A stop signal reached the process: it stays stopped, as release sees to it.
		default:
			t.signals = append(t.signals, ws.StopSignal())
		}
	}
}

// reached is for tests: it is told where a death of ours would be worst.
var reached = func(where string) {}

func (t *Thread) setRegs(r *unix.PtraceRegs) error {
	err := t.request("PTRACE_SETREGS", unix.PtraceSetRegs(t.tid, r))
	reached("set")
	return err
}

func (t *Thread) regs(r *unix.PtraceRegs) error {
	return t.request("PTRACE_GETREGS", unix.PtraceGetRegs(t.tid, r))
}

// request names the error of a request to the thread.
func (t *Thread) request(name string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", name, t.ended(err))
}

// ended makes an error of a thread that is no more ErrGone.
func (t *Thread) ended(err error) error {
	if errors.Is(err, unix.ESRCH) {
		t.gone = true
		return ErrGone
	}
	return err
}

// release lets the thread go on. Signals that came meanwhile are sent to it
// anew.
func (t *Thread) release() error {
	if t.gone {
		return nil
	}
	err := t.detach()
	for _, s := range t.signals {
		if killErr := unix.Tgkill(t.pid, t.tid, s); killErr != nil && !errors.Is(killErr, unix.ESRCH) {
			err = errors.Join(err, fmt.Errorf("pass signal %s on: %w", s, killErr))
		}
	}
	return err
}

func (t *Thread) detach() error {
	if t.gone {
		return nil
	}
	err := unix.PtraceDetach(t.tid)
	if errors.Is(err, unix.ESRCH) {
		// Not stopped, and so not to be detached from: it is let go of when this
		// operating system thread ends, or stops late and is then.
		return nil
	}
	if err != nil {
		return fmt.Errorf("PTRACE_DETACH: %w", err)
	}
	return nil
}
