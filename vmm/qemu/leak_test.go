package qemu

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// probeEnv makes the test binary probe the binary that it names.
const probeEnv = "FERMATA_QEMU_PROBE"

// launchEnv makes the test binary launch the machine of the configuration that it holds,
// print its state, and wait to be killed.
const launchEnv = "FERMATA_QEMU_LAUNCH"

func launchAndWait(config string) error {
	var c Config
	if err := json.Unmarshal([]byte(config), &c); err != nil {
		return err
	}
	m, err := Launch(context.Background(), c)
	if err != nil {
		return err
	}
	if err := m.closeMonitor(); err != nil { // it serves one connection
		return err
	}
	if err := json.NewEncoder(os.Stdout).Encode(m.State()); err != nil {
		return err
	}
	select {}
}

func TestMain(m *testing.M) {
	if binary := os.Getenv(probeEnv); binary != "" {
		_, err := Probe(context.Background(), binary)
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(3)
	}
	if config := os.Getenv(launchEnv); config != "" {
		fmt.Fprintln(os.Stderr, "launch:", launchAndWait(config))
		os.Exit(3)
	}
	goleak.VerifyTestMain(m)
}

// Who is killed while it probes a binary leaves no process behind.
func TestProbe_EndsWithItsOwner(t *testing.T) {
	dir := t.TempDir()
	binary, fifo := filepath.Join(dir, "binary"), filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	script := fmt.Sprintf("#!/bin/sh\nexec >%s\necho $$\nexec sleep 600\n", fifo)
	if err := os.WriteFile(binary, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	said, err := os.OpenFile(fifo, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer said.Close()
	early, err := os.OpenFile(fifo, os.O_WRONLY, 0) // no end of it before the probe has begun
	if err != nil {
		t.Fatal(err)
	}
	defer early.Close()
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
	if err := said.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fscanln(said, &pid); err != nil {
		t.Fatalf("no probe: %v", err)
	}
	early.Close()
	kill()
	if err := said.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, said); err != nil { // else it has ended, and its output with it
		t.Errorf("the probe runs on: %v", err)
		_ = unix.Kill(pid, unix.SIGKILL)
	}
}
