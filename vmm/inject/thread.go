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
	at       uint64          // address of a syscall instruction
	saved    unix.PtraceRegs // as it was stopped
	signals  []unix.Signal   // that came meanwhile, for after the release
	gone     bool
}

// maxArgs is how many arguments a system call has (syscall(2)).
const maxArgs = 6

var errNotStopped = errors.New("thread does not stop")

// seize attaches to the thread and stops it.
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
	if err != nil {
		return errors.Join(err, t.detach())
	}
	return nil
}

// userCS64 is the code segment of 64-bit programs on x86-64 (__USER_CS in
// arch/x86/include/asm/segment.h).
const userCS64 = 0x33

// interrupt waits until the thread has stopped.
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
		if err := t.resume(unix.PtraceCont, ws.StopSignal()); err != nil {
			return err
		}
	}
}

// isEventStop tells a stop that PTRACE_INTERRUPT asked for, or one of the whole
// process, from the delivery of a signal (ptrace(2), "PTRACE_EVENT stops").
func isEventStop(ws unix.WaitStatus) bool { return uint32(ws)>>16 == unix.PTRACE_EVENT_STOP }

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

// resume lets the thread run on with a signal, by PTRACE_CONT or another request.
func (t *Thread) resume(request func(int, int) error, signal unix.Signal) error {
	if err := request(t.tid, int(signal)); err != nil {
		return fmt.Errorf("resume thread: %w", err)
	}
	return nil
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
	r.Rip = t.at
	r.Rax = uint64(nr)
	// Not in a system call: the kernel must not take this for one to restart.
	r.Orig_rax = ^uint64(0)
	for i, a := range args {
		// The order of arguments is that of syscall(2) for x86-64.
		*[maxArgs]*uint64{&r.Rdi, &r.Rsi, &r.Rdx, &r.R10, &r.R8, &r.R9}[i] = uint64(a)
	}
	if err := unix.PtraceSetRegs(t.tid, &r); err != nil {
		return 0, fmt.Errorf("PTRACE_SETREGS: %w", t.ended(err))
	}
	err := t.ended(t.step())
	if err == nil {
		err = t.regs(&r)
	}
	if restoreErr := unix.PtraceSetRegs(t.tid, &t.saved); restoreErr != nil && !t.gone {
		err = errors.Join(err, fmt.Errorf("restore registers: %w", t.ended(restoreErr)))
	}
	if err != nil {
		return 0, fmt.Errorf("system call %d: %w", nr, err)
	}
	const maxErrno = 4095 // MAX_ERRNO of linux/err.h
	if result := int64(r.Rax); result < 0 && result >= -maxErrno {
		return 0, unix.Errno(-result)
	}
	return uintptr(r.Rax), nil
}

// callBudget bounds one call. Those that are worth injecting do not wait.
const callBudget = 10 * time.Second

// step executes the one instruction at hand.
func (t *Thread) step() error {
	deadline := time.Now().Add(callBudget)
	if err := unix.PtraceSingleStep(t.tid); err != nil {
		return fmt.Errorf("PTRACE_SINGLESTEP: %w", t.ended(err))
	}
	for {
		ws, err := t.wait(deadline)
		if err != nil {
			return err
		}
		switch {
		case isEventStop(ws):
			// A stop signal reached the process. The step is still to be made; the
			// process stays stopped, as release sees to it.
		case ws.StopSignal() == unix.SIGTRAP:
			return nil
		default:
			t.signals = append(t.signals, ws.StopSignal())
		}
		if err := unix.PtraceSingleStep(t.tid); err != nil {
			return fmt.Errorf("PTRACE_SINGLESTEP: %w", t.ended(err))
		}
	}
}

func (t *Thread) regs(r *unix.PtraceRegs) error {
	if err := unix.PtraceGetRegs(t.tid, r); err != nil {
		return fmt.Errorf("PTRACE_GETREGS: %w", t.ended(err))
	}
	return nil
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
