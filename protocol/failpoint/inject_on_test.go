//go:build failpoints

package failpoint

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"testing"
	"time"
)

func mustArm(t *testing.T, p Point, action string) (disarm func()) {
	t.Helper()
	disarm, err := Arm(p, action)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(disarm)
	return disarm
}

// TestInject_ArmedWhileItRuns arms points of a running process by a file.
func TestInject_ArmedWhileItRuns(t *testing.T) {
	dir := t.TempDir()
	t.Setenv(DirEnv, dir)
	file := filepath.Join(dir, strconv.Itoa(os.Getpid()))
	for _, p := range []Point{AgentAfterStop, AgentAfterGate} {
		if err := os.WriteFile(file, []byte(string(p)+"=error@1"), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, other := range []Point{AgentAfterStop, AgentAfterGate} {
			if err := Inject(t.Context(), other); (err != nil) != (other == p) {
				t.Errorf("%s armed: %s: %v", p, other, err)
			}
		}
		if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the file is still there: %v", err)
		}
	}
	disarmPoint(AgentAfterGate)
}

func TestInject_Error(t *testing.T) {
	disarm := mustArm(t, AgentAfterStop, "error(disk on fire)@2")
	for i, want := range []bool{false, true, false} {
		if err := Inject(t.Context(), AgentAfterStop); (err != nil) != want {
			t.Errorf("time %d: %v, want an error: %v", i+1, err, want)
		}
	}
	if _, err := Arm(AgentAfterStop, "kill"); err == nil {
		t.Error("arming twice must fail")
	}
	disarm()
	mustArm(t, AgentAfterStop, "error")
	if err := Inject(t.Context(), AgentAfterStop); err == nil {
		t.Error("armed with error: no error")
	}
	if err := Inject(t.Context(), AgentAfterMark); err != nil {
		t.Errorf("another point: %v", err)
	}
}

func TestInject_HangEndsWithContextOrDisarm(t *testing.T) {
	disarm := mustArm(t, AgentAfterStop, "hang")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- Inject(ctx, AgentAfterStop) }()
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	go func() { ended <- Inject(t.Context(), AgentAfterStop) }()
	for {
		armed.mu.Lock()
		reached := armed.points[AgentAfterStop].reached
		armed.mu.Unlock()
		if reached == 2 {
			break
		}
		runtime.Gosched()
	}
	disarm()
	if err := <-ended; err != nil {
		t.Errorf("disarmed: %v", err)
	}
}

func TestInject_Delay(t *testing.T) {
	mustArm(t, AgentAfterStop, "delay(20ms)")
	begun := time.Now()
	if err := Inject(t.Context(), AgentAfterStop); err != nil || time.Since(begun) < 20*time.Millisecond {
		t.Errorf("error %v after %s", err, time.Since(begun))
	}
}

// TestInject_Signals runs this test in a process of its own, armed as cmd
// would arm it.
func TestInject_Signals(t *testing.T) {
	if spec := os.Getenv(Env); spec != "" {
		if err := ArmAll(spec); err != nil {
			t.Fatal(err)
		}
		_ = Inject(t.Context(), AgentAfterStop)
		os.Exit(3)
	}
	run := func(action string) *exec.Cmd {
		c := exec.Command(os.Args[0], "-test.run=^TestInject_Signals$")
		c.Env = append(os.Environ(), Env+"=nodeagent/after-stop="+action)
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		return c
	}
	c := run("kill")
	var exit *exec.ExitError
	if err := c.Wait(); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Errorf("kill: %v", err)
	}

	c = run("stop")
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(c.Process.Pid, &status, syscall.WUNTRACED, nil); err != nil || !status.Stopped() {
		t.Errorf("stop: status %v, error %v", status, err)
	}
	if err := c.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := c.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 3 {
		t.Errorf("continued: %v, want to end behind the point", err)
	}
}
