package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	startBudget = 60 * time.Second // until the coordinator answers and all nodes are alive
	endBudget   = 60 * time.Second
	cliBudget   = 5 * time.Minute // of one command
	pollEvery   = 200 * time.Millisecond
)

// labRun is one lab and the processes that belong to it.
type labRun struct {
	fermata, dir, log string

	cmd  *exec.Cmd
	done chan error // buffered 1; the lab's end
}

// start runs `fermata lab` and waits until all nodes are registered.
func (l *labRun) start(ctx context.Context) error {
	log, err := os.OpenFile(l.log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	defer log.Close()
	l.cmd = exec.Command(l.fermata, "lab", "--dir", l.dir, "--nodes", strconv.Itoa(nodeCount))
	l.cmd.Stdout, l.cmd.Stderr = log, log
	l.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := l.cmd.Start(); err != nil {
		return fmt.Errorf("start lab: %w", err)
	}
	l.done = make(chan error, 1)
	go func(cmd *exec.Cmd, done chan<- error) { done <- cmd.Wait() }(l.cmd, l.done)
	return poll(ctx, startBudget, "the lab to be ready", func() (bool, error) {
		select {
		case err := <-l.done:
			l.cmd = nil
			return false, fmt.Errorf("lab ended: %w\n%s", err, tail(l.log))
		default:
		}
		var nodes struct {
			Nodes []struct {
				Alive bool `json:"alive"`
			} `json:"nodes"`
		}
		if err := l.cli(ctx, io.Discard, &nodes, "node", "list", "-o", "json"); err != nil {
			return false, nil // not yet
		}
		alive := 0
		for _, n := range nodes.Nodes {
			if n.Alive {
				alive++
			}
		}
		return alive == nodeCount, nil
	})
}

// cli runs one operator command; with into set it decodes the JSON it prints.
func (l *labRun) cli(ctx context.Context, progress io.Writer, into any, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, cliBudget)
	defer cancel()
	cmd := exec.CommandContext(ctx, l.fermata, append([]string{"--lab", l.dir}, args...)...)
	// Ctrl-C's way of ending a command, which leaves guests running.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 20 * time.Second
	var out, complaints bytes.Buffer
	cmd.Stdout = &out
	cmd.Stderr = io.MultiWriter(&complaints, progress)
	if into == nil {
		cmd.Stdout = progress
	}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("fermata %s: %w: %s", strings.Join(args, " "), err, lastLine(complaints.String()))
	}
	if into == nil {
		return nil
	}
	if err := json.Unmarshal(out.Bytes(), into); err != nil {
		return fmt.Errorf("fermata %s: decode its output: %w", strings.Join(args, " "), err)
	}
	return nil
}

// processes returns the process ids of the lab, its daemons and their guests.
func (l *labRun) processes(ctx context.Context) ([]int, error) {
	var pids []int
	if l.cmd != nil {
		pids = append(pids, l.cmd.Process.Pid)
	}
	files, err := filepath.Glob(filepath.Join(l.dir, "nodes", "*", "agent.pid"))
	if err != nil {
		return nil, err
	}
	// etcd is inside the coordinator.
	for _, f := range append(files, filepath.Join(l.dir, "coordinator", "coordinator.pid")) {
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
	var cluster struct {
		Guests []struct {
			PID int `json:"pid"`
		} `json:"guests"`
	}
	if err := l.cli(ctx, io.Discard, &cluster, "cluster", "show", clusterName, "-o", "json"); err != nil {
		return nil, err
	}
	for _, g := range cluster.Guests {
		if g.PID > 0 {
			pids = append(pids, g.PID)
		}
	}
	return pids, nil
}

// killAll ends every process of the lab with SIGKILL, at once, and returns how
// many there were.
func (l *labRun) killAll(ctx context.Context) (int, error) {
	pids, err := l.processes(ctx)
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
	err = poll(ctx, endBudget, "the killed processes to be gone", func() (bool, error) {
		for _, pid := range pids {
			if alive(pid) {
				return false, nil
			}
		}
		return true, nil
	})
	return len(pids), err
}

// end stops the lab as an operator would and waits for it.
func (l *labRun) end() error {
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
			return fmt.Errorf("lab ended badly: %w\n%s", err, tail(l.log))
		}
		return nil
	case <-time.After(endBudget):
		_ = l.cmd.Process.Kill()
		return fmt.Errorf("lab did not end within %s\n%s", endBudget, tail(l.log))
	}
}

// checkNothingLeft stops the lab and looks for what it should have taken along.
func (l *labRun) checkNothingLeft() error {
	if err := l.end(); err != nil {
		return err
	}
	var left []string
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return fmt.Errorf("look for processes: %w", err)
	}
	for _, e := range entries {
		cmdline, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err == nil && e.Name() != "self" && e.Name() != strconv.Itoa(os.Getpid()) && bytes.Contains(cmdline, []byte(l.dir+"/")) {
			left = append(left, "process "+e.Name())
		}
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return fmt.Errorf("look for mounts: %w", err)
	}
	if bytes.Contains(mounts, []byte(l.dir)) {
		left = append(left, "a mount below "+l.dir)
	}
	shm, err := filepath.Glob("/dev/shm/fermata-lab-*")
	if err != nil {
		return err
	}
	left = append(left, shm...)
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

// poll asks until done says yes, or the budget ends.
func poll(ctx context.Context, budget time.Duration, what string, done func() (bool, error)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, budget, fmt.Errorf("waited %s for %s", budget, what))
	defer cancel()
	ticker := time.NewTicker(pollEvery)
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
const tailBytes = 4 << 10

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
