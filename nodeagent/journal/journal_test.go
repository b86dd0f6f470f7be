package journal

import (
	"encoding/json"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
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
