package journal

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"fermata/protocol/mustrun"
)

func TestJournal_SurvivesReopen(t *testing.T) {
	dir := t.TempDir()
	j, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	cluster := Cluster{Name: "c", Fence: 7, Epoch: 3, Released: true, Peers: map[string]string{"n2": "a:1"}}
	guest := Guest{Cluster: "c", Name: "g1", Spec: json.RawMessage(`{"name":"g1"}`), Created: true}
	gone := Guest{Cluster: "c", Name: "g2", Spec: json.RawMessage(`{}`)}
	for _, err := range []error{
		j.PutCluster(cluster), j.PutGuest(guest), j.PutGuest(gone),
		j.DeleteGuest("c", "g2"), j.PutRound("c", []byte("record")),
		j.PutRound("ended", []byte("record")), j.DeleteRound("ended"), j.Close(),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}

	j, err = Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	clusters, err := j.Clusters()
	if err != nil {
		t.Fatal(err)
	}
	guests, err := j.Guests()
	if err != nil {
		t.Fatal(err)
	}
	rounds, err := j.Rounds()
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(map[string]Cluster{"c": cluster}, clusters); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]Guest{guest}, guests); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(map[string][]byte{"c": []byte("record")}, rounds); d != "" {
		t.Error(d)
	}
}

func TestOpen_RefusesSecondOwner(t *testing.T) {
	dir := t.TempDir()
	j, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	if _, err := Open(dir); !errors.Is(err, ErrLocked) {
		t.Errorf("second open = %v, want ErrLocked", err)
	}
}

// A full file system does not keep the journal from being written.
func TestJournal_HasItsRoom(t *testing.T) {
	mustrun.Need(t, mustrun.NetNS) // mounting takes root, too
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=16m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	j, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer j.Close()
	if err := os.WriteFile(filepath.Join(dir, "filler"), make([]byte, 16<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("the file system is not full: %v", err)
	}
	for i := range 1000 {
		if err := j.PutGuest(Guest{Cluster: "c", Name: fmt.Sprintf("g%d", i%100), Spec: []byte(`"` + strings.Repeat("x", 4096) + `"`)}); err != nil {
			t.Fatalf("record %d on a full file system: %v", i, err)
		}
	}
}
