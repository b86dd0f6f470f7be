package guard

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestMain lets the test binary play the guard process: it prints what it resumes.
func TestMain(m *testing.M) {
	if os.Getenv("GUARD_TEST_SERVE") == "1" {
		err := Serve(context.Background(), os.Stdin, func(_ context.Context, socket string) error {
			fmt.Println("resume", socket)
			return nil
		})
		if err != nil {
			fmt.Println("error", err)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// serve runs Serve on a pipe and returns what it resumed, sorted.
func serve(t *testing.T, script func(w io.Writer, resumed <-chan string)) []string {
	t.Helper()
	r, w := io.Pipe()
	resumed := make(chan string, 16)
	done := make(chan error, 1)
	go func() {
		done <- Serve(t.Context(), r, func(_ context.Context, s string) error { resumed <- s; return nil })
	}()
	script(w, resumed)
	w.Close()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	close(resumed)
	var got []string
	for s := range resumed {
		got = append(got, s)
	}
	slices.Sort(got)
	return got
}

func TestServe_ResumesHeldGuestsWhenAgentDies(t *testing.T) {
	got := serve(t, func(w io.Writer, _ <-chan string) {
		fmt.Fprint(w, "hold 60000 /run/a b.sock\nhold 60000 /run/c.sock\nrelease /run/c.sock\n")
	})
	if want := []string{"/run/a b.sock"}; !slices.Equal(got, want) {
		t.Errorf("resumed %q, want %q", got, want)
	}
}

func TestServe_ResumesAtDeadlineWhenAgentHangs(t *testing.T) {
	serve(t, func(w io.Writer, resumed <-chan string) {
		fmt.Fprint(w, "hold 10 /run/a.sock\n")
		select {
		case s := <-resumed:
			if s != "/run/a.sock" {
				t.Errorf("resumed %q", s)
			}
		case <-time.After(10 * time.Second):
			t.Error("not resumed though its deadline passed")
		}
	})
}

// TestGuard_OutlivesItsAgent kills the process that holds the pipe.
func TestGuard_OutlivesItsAgent(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// The shell is the agent: it starts the guard in its own session, holds a guest and is killed.
	out, stdout, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	agent := exec.Command("sh", "-c", `{ echo hold 60000 /run/a.sock; echo ready >&2; exec sleep 60; } | setsid "$0"`, exe)
	agent.Env = append(os.Environ(), "GUARD_TEST_SERVE=1")
	agent.Stdout = stdout
	ready, err := agent.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := agent.Start(); err != nil {
		t.Fatal(err)
	}
	stdout.Close()
	if line, _ := bufio.NewReader(ready).ReadString('\n'); strings.TrimSpace(line) != "ready" {
		t.Fatalf("agent said %q", line)
	}
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", agent.Process.Pid, agent.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	writer := strings.Fields(string(children))[0] // the left side of the pipe
	if err := exec.Command("kill", "-9", writer).Run(); err != nil {
		t.Fatal(err)
	}
	if line, _ := bufio.NewReader(out).ReadString('\n'); line != "resume /run/a.sock\n" {
		t.Errorf("guard said %q after the agent's death", line)
	}
	_ = agent.Wait()
}
