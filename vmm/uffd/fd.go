// Package uffd protects memory of another process against writes, and serves the
// writes that meet the protection, by userfaultfd (userfaultfd(2),
// ioctl_userfaultfd(2), Linux 5.19 for shared memory).
//
// The descriptor is made by the process itself (Take, package inject) and then
// held by the caller alone: when the caller dies, the kernel drops all
// protection and wakes every thread that waits, so nobody hangs for want of us.
//
// The package has no policy: what a fault means is its caller's business.
//
// Lock order: FD.mu is the only lock; it is held for reading during an ioctl.
package uffd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"fermata/vmm/inject"
)

// Errors, always wrapped.
var (
	// ErrGone: the protected process has ended.
	ErrGone = errors.New("protected process is gone")
	// ErrRevoked: the range is not registered, or not any more.
	ErrRevoked = errors.New("userfaultfd has lost the memory")
	// ErrClosed: the FD was closed.
	ErrClosed = errors.New("userfaultfd is closed")
)

// Range is a range of addresses in the protected process, whole pages of its
// mapping.
type Range struct{ Addr, Len uint64 }

func (r Range) String() string { return fmt.Sprintf("[%#x,+%#x)", r.Addr, r.Len) }

// FD is a userfaultfd for write protection.
//
// Concurrency: all methods from any goroutine; Serve by one.
type FD struct {
	process int // pidfd of the protected process; -1: our own

	mu     sync.RWMutex // held for reading during an ioctl, so that its number is not another file's
	file   int          // guarded by mu; -1 once closed
	wakeFD int          // guarded by mu; an eventfd that ends Serve

	stop    sync.Once
	serving sync.Mutex // held by Serve
}

// Process is a process whose memory is to be protected.
type Process struct {
	PID int

	// Lend gives the process a descriptor and returns its number there; done takes
	// it back. nil: it cannot be given one. It is for a process that may not make
	// a userfaultfd that serves faults of the kernel, as QEMU under libvirt is.
	Lend func(context.Context, *os.File) (number int, done func() error, err error)
}

// Take makes a process create a userfaultfd for its memory, takes it out of the
// process and closes the process's own copy.
//
// The process needs the right to have its kernel's faults served, too
// (CAP_SYS_PTRACE, or vm.unprivileged_userfaultfd=1), or we that to open
// /dev/userfaultfd (Linux 6.1), which is then lent to it.
func Take(ctx context.Context, p Process) (*FD, error) {
	process, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil, fmt.Errorf("take userfaultfd of process %d: %w", p.PID, ErrGone)
	}
	if err != nil {
		return nil, fmt.Errorf("take userfaultfd of process %d: pidfd_open: %w", p.PID, err)
	}
	file, err := takeFrom(ctx, p.PID, process, unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK)
	if errors.Is(err, unix.EPERM) && p.Lend != nil {
		file, err = takeByDevice(ctx, p, process)
	}
	switch {
	case err == nil:
		return newFD(file, process)
	case errors.Is(err, unix.EPERM):
		err = fmt.Errorf("the process may not create a userfaultfd that serves faults of the kernel:"+
			" set vm.unprivileged_userfaultfd to 1, run it with CAP_SYS_PTRACE, or use Linux 6.1 with /dev/userfaultfd: %w", err)
	case errors.Is(err, inject.ErrGone):
		err = fmt.Errorf("%w: %w", ErrGone, err)
	}
	return nil, errors.Join(fmt.Errorf("take userfaultfd of process %d: %w", p.PID, err), unix.Close(process))
}

// takeByDevice is takeFrom by way of /dev/userfaultfd, whose file's mode alone
// decides who may (fs/userfaultfd.c): we open it and the process uses it.
func takeByDevice(ctx context.Context, p Process, process int) (file int, err error) {
	device, err := os.OpenFile("/dev/userfaultfd", os.O_RDWR, 0)
	if err != nil {
		return -1, errors.Join(unix.EPERM, err)
	}
	defer device.Close()
	number, done, err := p.Lend(ctx, device)
	if err != nil {
		return -1, err
	}
	file, err = takeFrom(ctx, p.PID, process, unix.SYS_IOCTL, uintptr(number), ioctlNew, unix.O_CLOEXEC|unix.O_NONBLOCK)
	return file, errors.Join(err, done())
}

// takeFrom has the process make a userfaultfd by a system call.
func takeFrom(ctx context.Context, pid, process int, call uintptr, args ...uintptr) (file int, err error) {
	file = -1
	err = inject.With(ctx, pid, func(t *inject.Thread) (err error) {
		theirs, err := t.Syscall(call, args...)
		if err != nil {
			return fmt.Errorf("userfaultfd: %w", err)
		}
		if file, err = unix.PidfdGetfd(process, int(theirs), 0); err != nil {
			err = os.NewSyscallError("pidfd_getfd", err)
		}
		if _, closeErr := t.Syscall(unix.SYS_CLOSE, theirs); closeErr != nil {
			err = errors.Join(err, fmt.Errorf("close the process's copy: %w", closeErr))
		}
		return err
	})
	if err != nil && file >= 0 {
		err = errors.Join(err, unix.Close(file))
		file = -1
	}
	return file, err
}

// New creates one for this process's own memory: for tests and probes.
func New() (*FD, error) {
	file, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK, 0, 0)
	if errno != 0 {
		return nil, os.NewSyscallError("userfaultfd", errno)
	}
	return newFD(int(file), -1)
}

// newFD takes over file and process.
func newFD(file, process int) (*FD, error) {
	u := &FD{process: process, file: file, wakeFD: -1}
	err := enable(file)
	if err == nil {
		if u.wakeFD, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
			err = os.NewSyscallError("eventfd", err)
		}
	}
	if err != nil {
		return nil, errors.Join(err, u.closeFiles())
	}
	return u, nil
}

// Register makes the range one that can be protected. It must lie in one or more
// mappings of anonymous, shared (tmpfs) or huge-page memory, else EINVAL; EBUSY
// when another userfaultfd has it.
func (u *FD) Register(r Range) error { return u.do("register", r, register) }

// Unregister drops all protection of the range and wakes who waits in it.
func (u *FD) Unregister(r Range) error { return u.do("unregister", r, unregister) }

// Number is the descriptor's number in this process, for Revoke; -1 once closed.
func (u *FD) Number() int {
	u.mu.RLock()
	defer u.mu.RUnlock()
	return u.file
}

// Revoke drops all protection that another process, which hangs, holds by its
// descriptor number fd, and wakes who waits in the ranges. To its holder it is
// then as if the ranges had never been registered: ErrRevoked.
func Revoke(holder, fd int, ranges []Range) error {
	process, err := unix.PidfdOpen(holder, 0)
	if err != nil {
		return fmt.Errorf("revoke userfaultfd of process %d: pidfd_open: %w", holder, err)
	}
	defer unix.Close(process)
	file, err := unix.PidfdGetfd(process, fd, 0)
	if err != nil {
		return fmt.Errorf("revoke userfaultfd of process %d: pidfd_getfd: %w", holder, err)
	}
	defer unix.Close(file)
	if link, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", file)); err != nil || link != "anon_inode:[userfaultfd]" {
		return fmt.Errorf("revoke userfaultfd of process %d: its descriptor %d is %q, %w", holder, fd, link, err)
	}
	copied := &FD{process: -1, file: file, wakeFD: -1}
	var errs []error
	for _, r := range ranges {
		errs = append(errs, copied.Unregister(r))
	}
	return errors.Join(errs...)
}

// Protect makes every write to the range a fault. It returns when no write that
// passes unseen is under way. Pages that do not exist yet are protected, too.
func (u *FD) Protect(r Range) error {
	return u.do("protect", r, func(file int, r Range) error { return writeProtect(file, r, true) })
}

// Unprotect lets writes to the range pass, and wakes who waits in it. It is
// idempotent.
func (u *FD) Unprotect(r Range) error {
	return u.do("unprotect", r, func(file int, r Range) error { return writeProtect(file, r, false) })
}

// do runs one ioctl.
func (u *FD) do(what string, r Range, ioctl func(int, Range) error) error {
	u.mu.RLock()
	defer u.mu.RUnlock()
	if u.file < 0 {
		return fmt.Errorf("%s %s: %w", what, r, ErrClosed)
	}
	for {
		err := ioctl(u.file, r)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EAGAIN):
			// The process is changing its mappings at this moment (ioctl_userfaultfd(2)).
		case errors.Is(err, unix.ESRCH):
			return fmt.Errorf("%s %s: %w", what, r, ErrGone)
		case errors.Is(err, unix.ENOENT):
			return fmt.Errorf("%s %s: %w", what, r, ErrRevoked)
		default:
			return fmt.Errorf("%s %s: %w", what, r, err)
		}
	}
}

// Stop makes Serve return. It is idempotent.
func (u *FD) Stop() {
	u.stop.Do(func() {
		u.mu.RLock()
		defer u.mu.RUnlock()
		if u.wakeFD >= 0 {
			_, _ = unix.Write(u.wakeFD, []byte{1, 0, 0, 0, 0, 0, 0, 0}) // fails on overflow only
		}
	})
}

// Close stops Serve, waits for it, drops all protection and wakes everybody who
// waits. It is idempotent. It must not be called by Serve's handle.
func (u *FD) Close() error {
	u.Stop()
	u.serving.Lock()
	defer u.serving.Unlock()
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.closeFiles()
}

// closeFiles closes what is open.
//
// Preconditions: nobody else uses u.
func (u *FD) closeFiles() error {
	var errs []error
	for _, fd := range []*int{&u.file, &u.wakeFD, &u.process} {
		if *fd >= 0 {
			errs = append(errs, unix.Close(*fd))
		}
		*fd = -1
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close userfaultfd: %w", err)
	}
	return nil
}
