package memstore_test

import (
	"testing"
	"time"

	"fermata/coordinator/store/memstore"
	"fermata/coordinator/store/storetest"
	"fermata/protocol/api"
)

func TestMemStore(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Environment {
		s := memstore.New(memstore.Config{})
		return storetest.Environment{Store: s, Elect: s.Elect, Expire: s.Expire}
	})
}

func TestMemStore_LeaseRunsOutByTheClock(t *testing.T) {
	now := time.Unix(1000, 0)
	s := memstore.New(memstore.Config{Now: func() time.Time { return now }})
	f := s.Elect()
	if err := s.PutNode(t.Context(), f, &api.NodeInfo{Name: "n"}, time.Minute); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		after time.Duration
		alive bool
	}{{0, true}, {59 * time.Second, true}, {time.Second, false}} {
		now = now.Add(step.after)
		nodes, err := s.Nodes(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if nodes[0].GetAlive() != step.alive {
			t.Errorf("at %v: alive %v, want %v", now, nodes[0].GetAlive(), step.alive)
		}
	}
}
