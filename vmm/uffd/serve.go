package uffd

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Fault is a write that waits for Unprotect. One write may be told more than
// once, when its thread was interrupted by a signal.
type Fault struct {
	Addr uint64 // of the page
}

// batch is how many faults are read at once: more than threads of a guest
// commonly wait at a time.
const batch = 64

// Serve hands the faults to handle, in batches, until Stop or Close (nil) or the
// end of the process (ErrGone). It allocates nothing per fault. handle must not
// keep the slice. Each fault waits until somebody calls Unprotect for it, which
// need not be handle.
//
// It occupies an operating system thread of its own. A Go program whose
// processors are all busy may make that thread wait up to 10 ms for its turn
// after a fault has come (the scheduler's preemption, runtime/proc.go); allow one
// more processor than there are busy goroutines (runtime.GOMAXPROCS).
func (u *FD) Serve(handle func([]Fault)) error {
	u.serving.Lock()
	defer u.serving.Unlock()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	u.mu.RLock()
	file, wake, process := u.file, u.wakeFD, u.process // Close waits for serving
	u.mu.RUnlock()
	if file < 0 {
		return nil
	}
	var messages [batch]message
	var faults [batch]Fault
	poll := []unix.PollFd{
		{Fd: int32(file), Events: unix.POLLIN},
		{Fd: int32(wake), Events: unix.POLLIN},
		{Fd: int32(process), Events: unix.POLLIN}, // ignored when negative (poll(2))
	}
	for {
		if _, err := unix.Poll(poll, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("poll", err)
		}
		switch {
		case poll[1].Revents != 0:
			return nil
		case poll[2].Revents != 0:
			// A userfaultfd says nothing when its process ends; a pidfd does.
			return ErrGone
		case poll[0].Revents&unix.POLLERR != 0:
			return errors.New("userfaultfd is broken")
		case poll[0].Revents&unix.POLLIN == 0:
			continue
		}
		n, err := read(file, &messages)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue // the write was interrupted, or is over
		}
		if err != nil {
			return os.NewSyscallError("read userfaultfd", err)
		}
		for i := range n {
			if faults[i], err = messages[i].fault(); err != nil {
				return err
			}
		}
		handle(faults[:n])
	}
}

// fault reads what a message tells.
func (m message) fault() (Fault, error) {
	if m.event != eventPagefault {
		return Fault{}, fmt.Errorf("userfaultfd tells of event %#x, which was not asked for", m.event)
	}
	if m.flags&flagWriteProtect == 0 {
		return Fault{}, fmt.Errorf("userfaultfd tells of a fault with flags %#x at %#x, which is no write to a protected page", m.flags, m.address)
	}
	return Fault{Addr: m.address}, nil
}
