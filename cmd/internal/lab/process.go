package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// stopBudget bounds a daemon's clean end; an agent ends its guests in it.
const stopBudget = 25 * time.Second

// process is one daemon of the lab.
type process struct {
	name string
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // set before done is closed
}

// start runs the binary with args in a network namespace; ns may be the lab's
// own. What the daemon says goes to log, its process id to pidFile.
func start(name string, ns *netns.NsHandle, exe string, args []string, logPath, pidFile string) (*process, error) {
	log, err := os.OpenFile(logPath, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open log of %s: %w", name, err)
	}
	defer log.Close()
	cmd := exec.Command(exe, args...)
	cmd.Stdout, cmd.Stderr = log, log
	// A session of its own, so that Ctrl-C on the terminal reaches only the lab,
	// which ends things in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if ns == nil {
		err = cmd.Start()
	} else {
		err = startIn(*ns, cmd)
	}
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p := &process{name: name, cmd: cmd, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	if err := os.WriteFile(pidFile, []byte(strconv.Itoa(cmd.Process.Pid)+"\n"), 0o644); err != nil {
		return nil, errors.Join(fmt.Errorf("note process of %s: %w", name, err), p.stop())
	}
	return p, nil
}

// killed reports whether a signal has ended the daemon, which then did not decide that
// itself.
//
// Preconditions: done is closed.
func (p *process) killed() bool {
	status, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	return ok && status.Signaled()
}

// stop ends the daemon as an operator would, and kills it when that takes too long.
func (p *process) stop() error {
	if err := p.cmd.Process.Signal(unix.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("end %s: %w", p.name, err)
	}
	select {
	case <-p.done:
		return nil
	case <-time.After(stopBudget):
		_ = p.cmd.Process.Kill()
		<-p.done
		return fmt.Errorf("%s did not end within %s and was killed", p.name, stopBudget)
	}
}

// endEarlier ends a daemon that an earlier lab in this directory left behind,
// which happens when the lab alone is killed. config is an argument of the
// daemon by which it is told from a process that has its number by chance.
func endEarlier(pidFile, config string) error {
	b, err := os.ReadFile(pidFile)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for an earlier lab: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid <= 1 {
		return os.Remove(pidFile)
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return os.Remove(pidFile)
	}
	if err != nil {
		return fmt.Errorf("look for an earlier lab: %w", err)
	}
	defer unix.Close(pidfd)
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil || !strings.Contains(string(cmdline), config) {
		return os.Remove(pidFile)
	}
	if err := unix.PidfdSendSignal(pidfd, unix.SIGTERM, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("end process %d of an earlier lab: %w", pid, err)
	}
	// pidfd_open(2): readable once the process has ended.
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	deadline := time.Now().Add(stopBudget)
	for {
		n, err := unix.Poll(fds, int(time.Until(deadline).Milliseconds()))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("wait for process %d of an earlier lab: %w", pid, err)
		case n == 0:
			return fmt.Errorf("process %d of an earlier lab does not end", pid)
		default:
			return os.Remove(pidFile)
		}
	}
}
