package coordinator

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"fermata/imageio/repository"
	"fermata/protocol/fault"
)

func TestOperations_DeletionAndPacksExcludeEachOther(t *testing.T) {
	o := newOperations()
	endA, err := o.usePacks("checkpoint of cluster a")
	if err != nil {
		t.Fatal(err)
	}
	endB, err := o.usePacks("checkpoint of cluster a")
	if err != nil {
		t.Fatal("two users exclude each other:", err)
	}
	if _, err := o.beginDeletion("x@1"); fault.ClassOf(err) != fault.Busy || !strings.Contains(err.Error(), "checkpoint of cluster a") {
		t.Errorf("deletion beside a checkpoint: %v", err)
	}
	endA()
	endA() // ending twice ends once
	if _, err := o.beginDeletion("x@1"); fault.ClassOf(err) != fault.Busy {
		t.Errorf("deletion beside the second user: %v", err)
	}
	endB()
	endDelete, err := o.beginDeletion("x@1")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := o.usePacks("restart of cluster b"); fault.ClassOf(err) != fault.Busy || !strings.Contains(err.Error(), "x@1") {
		t.Errorf("restart beside a deletion: %v", err)
	}
	if _, err := o.beginDeletion("y@1"); fault.ClassOf(err) != fault.Busy {
		t.Errorf("second deletion: %v", err)
	}
	endDelete()
	if end, err := o.usePacks("restart of cluster b"); err != nil {
		t.Error(err)
	} else {
		end()
	}
}

func TestParseFrom(t *testing.T) {
	for _, tc := range []struct {
		from string
		want uint64
		ok   bool
	}{
		{"", 0, true}, {"latest", 0, true}, {"7", 7, true}, {"web@7", 7, true}, {"18446744073709551615", 1<<64 - 1, true},
		{"0", 0, false}, {"07", 0, false}, {"-1", 0, false}, {"+7", 0, false}, {"web@", 0, false}, {"web@07", 0, false},
		{"db@7", 0, false}, {"@7", 0, false}, {"we b@7", 0, false}, {"18446744073709551616", 0, false}, {"newest", 0, false},
	} {
		got, err := parseFrom("web", tc.from)
		if got != tc.want || (err == nil) != tc.ok || !tc.ok && fault.ClassOf(err) != fault.Invalid {
			t.Errorf("parseFrom(%q) = %d, %v, want %d, ok %v", tc.from, got, err, tc.want, tc.ok)
		}
	}
}

func TestClip(t *testing.T) {
	for in, want := range map[string]string{"short": "short", "exactly10!": "exactly10!", "longer than ten": "longer …", "ééééééé": "ééé…"} {
		if got := clip(in, 10); got != want || len(got) > 10 {
			t.Errorf("clip(%q) = %q, want %q", in, got, want)
		}
	}
}

func TestListen_ReplacesOnlyADeadSocket(t *testing.T) {
	dir, err := os.MkdirTemp("", "sock") // socket paths are short (unix(7))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "s")
	first, err := listen("unix:" + path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v, want mode 0600", info.Mode(), err)
	}
	if _, err := listen("unix:" + path); err == nil || !strings.Contains(err.Error(), "served by another process") {
		t.Errorf("second listener: %v", err)
	}
	first.(*net.UnixListener).SetUnlinkOnClose(false) // as after a kill
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	second, err := listen("unix:" + path)
	if err != nil {
		t.Fatalf("over the socket of a dead process: %v", err)
	}
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "f")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listen("unix:" + file); err == nil {
		t.Error("a file was replaced by a socket")
	}
}

func TestConfig_ReportsEveryProblem(t *testing.T) {
	_, err := New(Config{
		Listen: []string{"nonsense", "192.0.2.1:7410"}, Plaintext: true, NodeLeaseTTL: time.Millisecond,
		Timeouts: Timeouts{Cut: -1}, Etcd: Etcd{LeaderTTL: time.Millisecond}, ShutdownGrace: -1,
	})
	if err == nil {
		t.Fatal("New accepts nonsense")
	}
	for _, want := range []string{"nonsense", "192.0.2.1", "etcd: missing", "dir: missing", "node_lease_ttl", "cut: negative", "leader_ttl", "shutdown_grace"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error does not say %q:\n%v", want, err)
		}
	}
	if _, err := New(Config{Listen: []string{"unix:/x"}, Repository: repository.Config{Dir: "/r"}, Etcd: Etcd{Endpoints: []string{"http://127.0.0.1:1"}}}); err == nil ||
		!strings.Contains(err.Error(), "certificate: missing") {
		t.Errorf("New without a certificate: %v", err)
	}
}
