package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"fermata/imageio/repository"
)

// TestDaemons_DropWhatTheyInherit starts each daemon with the writing end of a pipe that
// its caller forgot. The reading end sees the end of the file while the daemon runs: it
// has let go of it, and so has every process that it started.
func TestDaemons_DropWhatTheyInherit(t *testing.T) {
	dir := t.TempDir()
	if _, err := repository.Create(t.Context(), repository.Config{Dir: filepath.Join(dir, "repository")}); err != nil {
		t.Fatal(err)
	}
	config := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte("plaintext: true\nrepository: "+filepath.Join(dir, "repository")+"\n"+text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, args := range map[string][]string{
		"guard": {"guard"},
		"agent": {"agent", "--config", config("agent.yaml", "name: n1\nlisten: 127.0.0.1:0\nfabric_listen: 127.0.0.1:0\nstate_dir: "+
			filepath.Join(dir, "state")+"\nmemory_dir: "+filepath.Join(dir, "memory")+"\ncgroup: none\n")},
		"coordinator": {"coordinator", "--config", config("coordinator.yaml", "listen: [\"unix:"+filepath.Join(dir, "c.sock")+"\"]\netcd:\n  endpoints: [\"http://127.0.0.1:1\"]\n")},
	} {
		t.Run(name, func(t *testing.T) {
			forgotten, theirs, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer forgotten.Close()
			cmd := exec.Command(os.Args[0], args...)
			cmd.Env = append(os.Environ(), playProgram+"=1")
			cmd.ExtraFiles = []*os.File{theirs}
			var said bytes.Buffer
			cmd.Stderr = &said
			stdin, err := cmd.StdinPipe() // the guard ends with it
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			theirs.Close()
			if err := forgotten.SetReadDeadline(time.Now().Add(budget)); err != nil {
				t.Fatal(err)
			}
			_, readErr := forgotten.Read(make([]byte, 1))
			killErr := cmd.Process.Kill()
			stdin.Close()
			waitErr := cmd.Wait()
			if !errors.Is(readErr, io.EOF) {
				t.Errorf("reading what the daemon inherited: %v, want the end of the file; it said %s", readErr, &said)
			}
			if killErr != nil || cmd.ProcessState.Exited() {
				t.Errorf("the daemon ended by itself: %v; it said %s", waitErr, &said)
			}
		})
	}
}
