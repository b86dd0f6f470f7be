package fabric_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"fermata/nodeagent/fabric"
)

// Sizes of the frames that show that a trace has begun, and that it has told all.
const (
	first = 58
	last  = 59
)

// follow traces a node's network until the returned function is called, which gives
// what was told, but for the frames of first and last that the guest sends to peer.
func (n *node) follow(t *testing.T, peer int) (end func() string) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var (
		mu    sync.Mutex
		told  string
		sizes = map[int]int{}
	)
	ended := make(chan error, 1)
	go func() {
		ended <- n.fabric.Trace(ctx, clusterName, "net", func(events []fabric.Traced, lost uint64) error {
			mu.Lock()
			defer mu.Unlock()
			for _, e := range events {
				sizes[len(e.Data)]++
				switch {
				case e.Point:
					told += fmt.Sprintf("[%s %d]", e.NIC, e.Epoch)
				case len(e.Data) != first && len(e.Data) != last:
					told += fmt.Sprintf("(%s %d %d)", e.NIC, len(e.Data), e.Epoch)
				}
			}
			if lost != 0 {
				return fmt.Errorf("%d events lost", lost)
			}
			return nil
		})
	}()
	until := func(size int) {
		awaitTrue(t, "traced frame", func() bool {
			n.guests[0].send(peer, size)
			mu.Lock()
			defer mu.Unlock()
			return sizes[size] > 0
		})
	}
	until(first)
	return func() string {
		until(last)
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		return told
	}
}

// Each frame is told once, at its sender's node, in order, with its colour, and the
// points of the guests between the frames of before and behind.
func TestTrace_TellsFramesAndPoints(t *testing.T) {
	w := newWorld(t, 2, 1, 0, nil)
	a, b := w.nodes[0], w.nodes[1]
	endA, endB := a.follow(t, b.guests[0].id), b.follow(t, a.guests[0].id)
	a.guests[0].send(b.guests[0].id, 60)
	for _, n := range w.nodes {
		must(t, n.fabric.BeginCut(clusterName, 2, w.members(), patience))
	}
	a.cutGuest(t, 2)
	b.cutGuest(t, 2)
	a.guests[0].send(b.guests[0].id, 61)
	b.guests[0].send(a.guests[0].id, 62)
	if got, want := endA(), "(g1/nic0 60 1)[g1/nic0 2](g1/nic0 61 2)"; got != want {
		t.Errorf("at a: %s, want %s", got, want)
	}
	if got, want := endB(), "[g2/nic0 2](g2/nic0 62 2)"; got != want {
		t.Errorf("at b: %s, want %s", got, want)
	}
	for _, n := range w.nodes {
		n.fabric.EndCut(clusterName, 2)
	}
	w.awaitAll()
}

func TestTrace_Refuses(t *testing.T) {
	w := newWorld(t, 1, 1, 0, nil)
	f := w.nodes[0].fabric
	none := func([]fabric.Traced, uint64) error { return nil }
	if err := f.Trace(t.Context(), "nope", "net", none); !errors.Is(err, fabric.ErrUnknownCluster) {
		t.Errorf("unknown cluster: %v", err)
	}
	if err := f.Trace(t.Context(), clusterName, "nope", none); !errors.Is(err, fabric.ErrUnknownNetwork) {
		t.Errorf("unknown network: %v", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- f.Trace(context.Background(), clusterName, "net", none) }()
	must(t, f.RemoveCluster(clusterName))
	if err := <-ended; !errors.Is(err, fabric.ErrClosed) && !errors.Is(err, fabric.ErrUnknownCluster) {
		t.Errorf("trace of a cluster that ends: %v", err)
	}
}
