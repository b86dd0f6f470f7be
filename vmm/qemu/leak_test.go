package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// probeEnv makes the test binary probe the binary that it names.
const probeEnv = "FERMATA_QEMU_PROBE"

func TestMain(m *testing.M) {
	if binary := os.Getenv(probeEnv); binary != "" {
		_, err := Probe(context.Background(), binary)
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(3)
	}
	goleak.VerifyTestMain(m)
}

// Who is killed while it probes a binary leaves no process behind.
func TestProbe_EndsWithItsOwner(t *testing.T) {
	dir := t.TempDir()
	binary, told := filepath.Join(dir, "binary"), filepath.Join(dir, "pid")
	script := fmt.Sprintf("#!/bin/sh\necho $$ >%[1]s.new && mv %[1]s.new %[1]s\nexec sleep 600\n", told)
	if err := os.WriteFile(binary, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	owner := exec.Command("/proc/self/exe")
	owner.Env = append(os.Environ(), probeEnv+"="+binary)
	owner.Stderr = os.Stderr
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	kill := func() {
		_ = owner.Process.Kill()
		_ = owner.Wait() // says that it was killed
	}
	defer kill()

	var pid int
	for deadline := time.Now().Add(20 * time.Second); pid == 0; {
		b, err := os.ReadFile(told)
		if err == nil {
			pid, err = strconv.Atoi(strings.TrimSpace(string(b)))
		}
		if err != nil && time.Now().After(deadline) {
			t.Fatalf("no probe: %v", err)
		}
		time.Sleep(time.Millisecond) // polls, with the deadline above
	}
	probe, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(probe)
	defer func() { _ = unix.PidfdSendSignal(probe, unix.SIGKILL, nil, 0) }() // of a probe that was left

	kill()
	over := []unix.PollFd{{Fd: int32(probe), Events: unix.POLLIN}}
	n, err := unix.Poll(over, 10_000)
	for errors.Is(err, unix.EINTR) {
		n, err = unix.Poll(over, 10_000)
	}
	if err != nil || n != 1 {
		t.Errorf("the probe runs on: %d, %v", n, err)
	}
}
