package nbd_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"fermata/protocol/mustrun"
	"fermata/vmm/nbd"
)

// TestClient_QEMU speaks to the server that QEMU has, as its own program.
func TestClient_QEMU(t *testing.T) {
	mustrun.Need(t, mustrun.QEMU)
	dir := t.TempDir()
	disk, socket := filepath.Join(dir, "disk"), filepath.Join(dir, "socket")
	if err := os.WriteFile(disk, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	server := exec.Command("qemu-nbd", "--persistent", "--format=raw", "--export-name=d", "--socket="+socket, disk)
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		server.Process.Kill()
		server.Wait()
	})
	dial := func() net.Conn {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) { // polls, with a deadline
			conn, err := net.Dial("unix", socket)
			if err == nil {
				return conn
			}
			if time.Now().After(deadline) {
				t.Fatal(err)
			}
		}
	}
	c, err := nbd.New(t.Context(), dial(), "d")
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := c.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if c, err := nbd.New(t.Context(), dial(), "another"); !errors.Is(err, nbd.ErrProtocol) {
		if err == nil {
			c.Close()
		}
		t.Errorf("an export that there is not: %v, want ErrProtocol", err)
	}
}

// TestClient_BadServers: whatever a server says, the client ends, with its reason.
func TestClient_BadServers(t *testing.T) {
	for name, says := range map[string]string{
		"ends":       "NBD",
		"other":      "220 mail.example ESMTP Postfix",
		"old_style":  "NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53\x00\x00",
		"long_reply": "NBDMAGICIHAVEOPT\x00\x03\x00\x03\xe8\x89\x04\x55\x65\xa9\x00\x00\x00\x07\x00\x00\x00\x03\xff\xff\xff\xff",
	} {
		t.Run(name, func(t *testing.T) {
			ours, theirs := net.Pipe()
			go func() {
				go io.Copy(io.Discard, theirs)
				io.WriteString(theirs, says)
				theirs.Close()
			}()
			if _, err := nbd.New(t.Context(), ours, "d"); err == nil {
				t.Error("no error")
			}
		})
	}
	t.Run("hangs", func(t *testing.T) {
		ours, theirs := net.Pipe()
		defer theirs.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		if _, err := nbd.New(ctx, ours, "d"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v, want the deadline", err)
		}
	})
}
