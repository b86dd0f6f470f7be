// Package labrun runs a fermata lab from outside, as an operator would: it
// starts the binary, gives it commands, reads guests' consoles, kills what the
// trial wants dead, and checks that nothing is left.
package labrun

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	startBudget   = 60 * time.Second // until the coordinator answers and all nodes are alive
	endBudget     = 60 * time.Second
	commandBudget = 10 * time.Minute // of one command
	pollEvery     = 200 * time.Millisecond
)

// Setpriv is setpriv(1), of util-linux.
const Setpriv = "setpriv"

// Tied is the Prefix of a lab that ends when this process does, however that ends.
func Tied() []string { return []string{Setpriv, "--pdeathsig", "INT", "--"} }

// Lab is one lab and the processes that belong to it.
//
// Concurrency: Command may be called beside itself; the rest by one goroutine.
type Lab struct {
	Fermata string   // absolute path of the binary
	Dir     string   // absolute path of the lab's directory; must exist
	Nodes   int      // how many
	Args    []string // further arguments of `fermata lab`
	Prefix  []string // command that is given the lab's command line and executes it; none by default

	cmd  *exec.Cmd
	done chan error // buffered 1; the lab's end
}

func (l *Lab) log() string { return filepath.Join(l.Dir, "lab.log") }

// Start runs `fermata lab` and waits until all nodes are registered.
func (l *Lab) Start(ctx context.Context) error {
	log, err := os.OpenFile(l.log(), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	defer log.Close()
	line := slices.Concat(l.Prefix, []string{l.Fermata, "lab", "--dir", l.Dir, "--nodes", strconv.Itoa(l.Nodes)}, l.Args)
	l.cmd = exec.Command(line[0], line[1:]...)
	l.cmd.Stdout, l.cmd.Stderr = log, log
	l.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := l.cmd.Start(); err != nil {
		return fmt.Errorf("start lab: %w", err)
	}
	l.done = make(chan error, 1)
	go func(cmd *exec.Cmd, done chan<- error) { done <- cmd.Wait() }(l.cmd, l.done)
	return Poll(ctx, startBudget, "the lab to be ready", func() (bool, error) {
		select {
		case err := <-l.done:
			l.cmd = nil
			return false, fmt.Errorf("lab ended: %w\n%s", err, tail(l.log()))
		default:
		}
		var nodes struct {
			Nodes []struct {
				Alive bool `json:"alive"`
			} `json:"nodes"`
		}
		if err := l.Command(ctx, io.Discard, &nodes, "node", "list", "-o", "json"); err != nil {
			return false, nil // not yet
		}
		live := 0
		for _, n := range nodes.Nodes {
			if n.Alive {
				live++
			}
		}
		return live == l.Nodes, nil
	})
}

// Failed is a command that ended with another status than 0.
type Failed struct {
	Args   []string
	Status int
	Line   string // the last it said
	Said   string // all of it
}

func (f *Failed) Error() string {
	return fmt.Sprintf("fermata %s: exit status %d: %s", strings.Join(f.Args, " "), f.Status, f.Line)
}

// Command runs one operator command, with its messages on progress. With into
// set it decodes the JSON the command prints, else that goes to progress, too.
//
// On error: *Failed when the command ran and failed.
func (l *Lab) Command(ctx context.Context, progress io.Writer, into any, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, commandBudget)
	defer cancel()
	cmd := exec.CommandContext(ctx, l.Fermata, append([]string{"--lab", l.Dir}, args...)...)
	// Ctrl-C's way of ending a command, which leaves guests running.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 20 * time.Second
	var out, complaints bytes.Buffer
	cmd.Stdout = &out
	cmd.Stderr = io.MultiWriter(&complaints, progress)
	if into == nil {
		cmd.Stdout = progress
	}
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return &Failed{Args: args, Status: exit.ExitCode(), Line: lastLine(complaints.String()), Said: complaints.String()}
	}
	if err != nil {
		return fmt.Errorf("fermata %s: %w", strings.Join(args, " "), err)
	}
	if into == nil {
		return nil
	}
	if err := json.Unmarshal(out.Bytes(), into); err != nil {
		return fmt.Errorf("fermata %s: decode its output: %w", strings.Join(args, " "), err)
	}
	return nil
}

// Processes returns the process ids of the lab, its daemons, their data planes and the
// guests of the cluster.
func (l *Lab) Processes(ctx context.Context, clusterName string) ([]int, error) {
	var pids []int
	if l.cmd != nil {
		pids = append(pids, l.cmd.Process.Pid)
	}
	files, err := filepath.Glob(filepath.Join(l.Dir, "nodes", "*", "agent.pid"))
	if err != nil {
		return nil, err
	}
	// etcd is inside the coordinator.
	for _, f := range append(files, filepath.Join(l.Dir, "coordinator", "coordinator.pid")) {
		b, err := os.ReadFile(f)
		if err != nil {
			return nil, fmt.Errorf("find daemons: %w", err)
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
		if err != nil {
			return nil, fmt.Errorf("find daemons: %w", err)
		}
		pids = append(pids, pid)
	}
	planes, err := l.dataPlanes()
	if err != nil {
		return nil, err
	}
	pids = append(pids, planes...)
	var cluster struct {
		Guests []struct {
			PID int `json:"pid"`
		} `json:"guests"`
	}
	if err := l.Command(ctx, io.Discard, &cluster, "cluster", "show", clusterName, "-o", "json"); err != nil {
		return nil, err
	}
	for _, g := range cluster.Guests {
		if g.PID > 0 {
			pids = append(pids, g.PID)
		}
	}
	return pids, nil
}

// dataPlanes returns the process ids of the nodes' data planes.
func (l *Lab) dataPlanes() (pids []int, err error) {
	processes, err := Using(l.Dir)
	for _, p := range processes {
		if strings.Contains(p.Command, " data-plane ") {
			pids = append(pids, p.PID)
		}
	}
	return pids, err
}

// KillAll ends every process of the lab and of the cluster's guests with
// SIGKILL, at once, and returns how many there were.
func (l *Lab) KillAll(ctx context.Context, clusterName string) (int, error) {
	pids, err := l.Processes(ctx, clusterName)
	if err != nil {
		return 0, err
	}
	var errs []error
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			errs = append(errs, fmt.Errorf("kill process %d: %w", pid, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return 0, err
	}
	<-l.done
	l.cmd = nil
	err = Poll(ctx, endBudget, "the killed processes to be gone", func() (bool, error) {
		for _, pid := range pids {
			if alive(pid) {
				return false, nil
			}
		}
		return true, nil
	})
	return len(pids), err
}

// End stops the lab as an operator would and waits for it.
func (l *Lab) End() error {
	if l.cmd == nil {
		return nil
	}
	if err := l.cmd.Process.Signal(os.Interrupt); err != nil {
		return fmt.Errorf("stop lab: %w", err)
	}
	select {
	case err := <-l.done:
		l.cmd = nil
		if err != nil {
			return fmt.Errorf("lab ended badly: %w\n%s", err, tail(l.log()))
		}
		return nil
	case <-time.After(endBudget):
		_ = l.cmd.Process.Kill()
		return fmt.Errorf("lab did not end within %s\n%s", endBudget, tail(l.log()))
	}
}

// CheckNothingLeft stops the lab and looks for what it should have taken along.
func (l *Lab) CheckNothingLeft() error {
	if err := l.End(); err != nil {
		return err
	}
	var left []string
	processes, err := Using(l.Dir)
	if err != nil {
		return err
	}
	for _, p := range processes {
		left = append(left, p.String())
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return fmt.Errorf("look for mounts: %w", err)
	}
	if bytes.Contains(mounts, []byte(l.Dir)) {
		left = append(left, "a mount below "+l.Dir)
	}
	// Where a lab keeps guests' memory: cmd/internal/lab, layout.memory.
	sum := sha256.Sum256([]byte(l.Dir))
	memory := "/dev/shm/fermata-lab-" + hex.EncodeToString(sum[:6])
	if _, err := os.Stat(memory); !errors.Is(err, os.ErrNotExist) {
		left = append(left, memory)
	}
	if len(left) > 0 {
		return fmt.Errorf("left behind: %s", strings.Join(left, ", "))
	}
	return nil
}

// alive tells whether a process exists and is not a zombie.
func alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	return !strings.HasPrefix(rest, "Z")
}

// Sleep waits unless ctx ends.
func Sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Poll asks until done says yes, or the budget ends.
func Poll(ctx context.Context, budget time.Duration, what string, done func() (bool, error)) error {
	return pollEach(ctx, pollEvery, budget, what, done)
}

func pollEach(ctx context.Context, every, budget time.Duration, what string, done func() (bool, error)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, budget, fmt.Errorf("waited %s for %s", budget, what))
	defer cancel()
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		ok, err := done()
		if ok || err != nil {
			return err
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// tailBytes is how much of a log goes into an error.
const tailBytes = 6 << 10

// Logs returns the ends of the daemons' logs, each below its path. Ask before End of a
// Scratch, which removes them.
func (l *Lab) Logs() string {
	var b strings.Builder
	files, _ := filepath.Glob(filepath.Join(l.Dir, "nodes", "*", "agent.log"))
	for _, f := range append(files, filepath.Join(l.Dir, "coordinator", "coordinator.log"), l.log()) {
		fmt.Fprintf(&b, "%s:\n%s\n", f, tail(f))
	}
	return b.String()
}

func tail(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-tailBytes):])
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndex(s, "\n")+1:]
}
