package labrun

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"fermata/protocol/failpoint"
)

// serveBudget is how long an agent may take to serve again.
const serveBudget = time.Minute

// AgentPID returns the process id of a node's agent.
func (l *Lab) AgentPID(node string) (int, error) {
	return readPID("agent of "+node, filepath.Join(l.Dir, "nodes", node, "agent.pid"))
}

// CoordinatorPID returns the process id of the coordinator.
func (l *Lab) CoordinatorPID() (int, error) {
	return readPID("coordinator", filepath.Join(l.Dir, "coordinator", "coordinator.pid"))
}

func readPID(what, path string) (int, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("find %s: %w", what, err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return 0, fmt.Errorf("find %s: %w", what, err)
	}
	return pid, nil
}

// ProcessState is the letter of a process's state (proc(5)); 0: it does not exist.
func ProcessState(pid int) byte {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	_, rest, _ := strings.Cut(string(b), ") ")
	if rest == "" {
		return 0
	}
	return rest[0]
}

// RenewAgent kills a node's agent, which the lab replaces, and waits until the new
// one serves its guests of the cluster, of which there are count. The new one meets
// the failpoints of plan, if that is not empty; only a binary with the tag failpoints
// knows of any.
func (l *Lab) RenewAgent(ctx context.Context, node, plan, clusterName string, count int) error {
	file := filepath.Join(l.Dir, "nodes", node, "state", failpoint.FileName)
	if plan != "" {
		if err := os.WriteFile(file, []byte(plan), 0o600); err != nil {
			return fmt.Errorf("arm agent: %w", err)
		}
	}
	pid, err := l.AgentPID(node)
	if err != nil {
		return err
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		return fmt.Errorf("kill agent of %s: %w", node, err)
	}
	err = Poll(ctx, serveBudget, "the new agent of "+node, func() (bool, error) {
		now, err := l.AgentPID(node)
		return err == nil && now != pid, nil
	})
	if err != nil {
		return err
	}
	if err := l.AwaitRunning(ctx, clusterName, count); err != nil {
		return err
	}
	if _, err := os.Stat(file); plan != "" && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("the agent of %s has not read its failpoints: %w", node, err)
	}
	return nil
}

// AwaitRunning waits until count guests of a cluster run: the agents of all serve.
func (l *Lab) AwaitRunning(ctx context.Context, clusterName string, count int) error {
	return Poll(ctx, serveBudget, "all agents to serve", func() (bool, error) {
		var c struct {
			Guests []struct {
				State string `json:"state"`
			} `json:"guests"`
		}
		if l.Command(ctx, io.Discard, &c, "cluster", "show", clusterName, "-o", "json") != nil {
			return false, nil
		}
		running := 0
		for _, g := range c.Guests {
			if g.State == "running" {
				running++
			}
		}
		return running == count, nil
	})
}
