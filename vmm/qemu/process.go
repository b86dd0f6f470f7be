package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"fermata/vmm"
)

// process watches and ends one process, our child or not, by a pidfd: a number
// that the kernel gives to somebody else later is never signalled.
//
// Concurrency: all methods may be called from any goroutine.
type process struct {
	pid    int           // immutable
	pidfd  *os.File      // non-blocking, waited for by the runtime's poller
	exited chan struct{} // closed by watch when the process has ended
	watch  sync.WaitGroup

	mu     sync.Mutex
	reason string // guarded by mu; how the process ended, empty while it lives
}

// startProcess runs path with exactly the given files, in order from 0. attr should
// ask for a session of its own, so that the process outlives us and our terminal.
//
// os/exec is of no use here: it would switch the files to blocking mode, also
// for the caller, because the mode belongs to the open file and not to the
// descriptor.
func startProcess(path string, args []string, files []*os.File, attr *syscall.SysProcAttr) (*process, error) {
	fds := make([]uintptr, 0, len(files))
	defer func() {
		for _, fd := range fds {
			unix.Close(int(fd))
		}
	}()
	for _, f := range files {
		fd, err := duplicate(f)
		if err != nil {
			return nil, fmt.Errorf("duplicate %s: %w", f.Name(), err)
		}
		fds = append(fds, uintptr(fd))
	}
	pidfd := -1
	attr.PidFD = &pidfd
	pid, err := syscall.ForkExec(path, append([]string{path}, args...), &syscall.ProcAttr{
		Env:   os.Environ(),
		Files: fds,
		Sys:   attr,
	})
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", path, err)
	}
	p, err := newProcess(pid, pidfd)
	if err != nil { // unwatched it must not live: our child still, so the number is its own
		syscall.Kill(pid, syscall.SIGKILL)
		syscall.Wait4(pid, nil, 0, nil)
		return nil, err
	}
	return p, nil
}

// openProcess watches a running process that was recorded earlier. It reports
// vmm.ErrGone when pid is another process by now, or none.
func openProcess(pid int, started uint64) (*process, error) {
	pidfd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("process %d: %w: %w", pid, vmm.ErrGone, err)
	}
	// Only after the pidfd holds the process does its start time prove anything.
	now, err := readStat(pid)
	if err == nil && (now.started != started || now.zombie) {
		err = errors.New("another process has its number, or it has ended")
	}
	if err != nil {
		unix.Close(pidfd)
		return nil, fmt.Errorf("process %d: %w: %w", pid, vmm.ErrGone, err)
	}
	return newProcess(pid, pidfd)
}

// newProcess takes over pidfd and begins to watch it.
func newProcess(pid, pidfd int) (*process, error) {
	if pidfd < 0 {
		return nil, fmt.Errorf("process %d: no pidfd: %w", pid, unix.ENOSYS)
	}
	if err := unix.SetNonblock(pidfd, true); err != nil {
		unix.Close(pidfd)
		return nil, fmt.Errorf("process %d: %w", pid, err)
	}
	p := &process{
		pid:    pid,
		pidfd:  os.NewFile(uintptr(pidfd), fmt.Sprintf("pidfd of %d", pid)),
		exited: make(chan struct{}),
	}
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return nil, errors.Join(err, p.pidfd.Close())
	}
	p.watch.Go(func() { p.wait(raw) })
	return p, nil
}

// wait returns when the process has ended or the pidfd was closed.
func (p *process) wait(raw syscall.RawConn) {
	err := raw.Read(func(fd uintptr) bool {
		ready := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(ready, 0)
		return err == nil && n == 1
	})
	if err != nil {
		return // released
	}
	reason := p.reap()
	p.mu.Lock()
	p.reason = reason
	p.mu.Unlock()
	close(p.exited)
}

// reap collects our child's exit status; another's child is collected by its
// parent.
func (p *process) reap() string {
	var ws syscall.WaitStatus
	for {
		pid, err := syscall.Wait4(p.pid, &ws, syscall.WNOHANG, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case err != nil || pid != p.pid:
			return "exit status unknown"
		case ws.Signaled():
			return "killed by " + unix.SignalName(ws.Signal())
		default:
			return "exit status " + strconv.Itoa(ws.ExitStatus())
		}
	}
}

// hasExited reports whether the process has ended, and how.
func (p *process) hasExited() (reason string, ended bool) {
	select {
	case <-p.exited:
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.reason, true
	default:
		return "", false
	}
}

// kill ends the process and returns when it is gone.
func (p *process) kill(ctx context.Context) error {
	if _, ended := p.hasExited(); ended {
		return nil
	}
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return fmt.Errorf("kill process %d: %w", p.pid, err)
	}
	var inner error
	if err := raw.Control(func(fd uintptr) {
		inner = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0)
	}); err != nil {
		return fmt.Errorf("kill process %d: %w", p.pid, err)
	}
	if inner != nil && !errors.Is(inner, unix.ESRCH) {
		return fmt.Errorf("kill process %d: %w", p.pid, inner)
	}
	select {
	case <-p.exited:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the end of process %d: %w", p.pid, context.Cause(ctx))
	}
}

// takeFile copies descriptor number fd out of the process.
func (p *process) takeFile(fd int, name string) (*os.File, error) {
	raw, err := p.pidfd.SyscallConn()
	if err != nil {
		return nil, err
	}
	var taken int
	var inner error
	if err := raw.Control(func(pidfd uintptr) {
		taken, inner = unix.PidfdGetfd(int(pidfd), fd, 0)
	}); err != nil {
		return nil, err
	}
	if inner != nil {
		return nil, os.NewSyscallError("pidfd_getfd", inner)
	}
	return os.NewFile(uintptr(taken), name), nil
}

// release stops watching and leaves the process alone.
func (p *process) release() error {
	err := p.pidfd.Close()
	p.watch.Wait()
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

// duplicate returns a close-on-exec copy of a file's descriptor. The open file
// behind it, with its modes, stays untouched.
func duplicate(f *os.File) (int, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	var fd int
	var inner error
	if err := raw.Control(func(old uintptr) {
		fd, inner = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0)
	}); err != nil {
		return -1, err
	}
	return fd, inner
}

// processStat is what tells one process from the next of the same number.
type processStat struct {
	started uint64 // in clock ticks since boot
	zombie  bool
}

func readStat(pid int) (processStat, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return processStat{}, err
	}
	return parseStat(string(b))
}

// parseStat reads /proc/PID/stat (proc_pid_stat(5)): field 3 is the state,
// field 22 the start time. Field 2, the name, may hold blanks and parentheses,
// so counting begins after its last one.
func parseStat(line string) (processStat, error) {
	end := strings.LastIndexByte(line, ')')
	if end < 0 {
		return processStat{}, fmt.Errorf("process state %.40q: no name", line)
	}
	fields := strings.Fields(line[end+1:])
	if len(fields) < 20 {
		return processStat{}, fmt.Errorf("process state: %d fields", len(fields)+2)
	}
	started, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return processStat{}, fmt.Errorf("process start time: %w", err)
	}
	return processStat{started: started, zombie: fields[0] == "Z" || fields[0] == "X"}, nil
}

// bootID tells one boot of the host from the next.
func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(string(b)), nil
}
