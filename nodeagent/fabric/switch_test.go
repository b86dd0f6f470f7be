package fabric_test

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"sync"
	"testing"

	"fermata/nodeagent/fabric"
)

// chatter has every guest send count frames to random others at once.
func (w *world) chatter(count int) {
	all := w.guests()
	var senders sync.WaitGroup
	for _, g := range all {
		senders.Go(func() {
			for range count {
				g.send(pickReceiver(all, g), pickSize())
			}
		})
	}
	senders.Wait()
}

// pickReceiver is another guest, or now and then everybody.
func pickReceiver(all []*guest, self *guest) int {
	if rand.IntN(20) == 0 {
		return everybody
	}
	for {
		if g := all[rand.IntN(len(all))]; g != self {
			return g.id
		}
	}
}

// pickSize is mostly small, often full, seldom jumbo.
func pickSize() int {
	switch k := rand.IntN(1000); {
	case k < 2:
		return 9000 + rand.IntN(20000)
	case k < 100:
		return 1514
	default:
		return 60 + rand.IntN(100)
	}
}

func TestSwitch_NothingLostDoubledOrReordered(t *testing.T) {
	t.Run("plaintext", func(t *testing.T) {
		w := newWorld(t, 3, 2, 64, nil)
		w.chatter(400)
		w.awaitAll()
	})
	t.Run("tls", func(t *testing.T) {
		ca := newAuthority(t)
		w := newWorld(t, 3, 1, 0, func(cfg *fabric.Config) { ca.withTLS(cfg, cfg.Node) })
		w.chatter(400)
		w.awaitAll()
	})
}

// Queues of a few frames make every sender wait for every receiver.
func TestSwitch_BackPressureInsteadOfLoss(t *testing.T) {
	w := newWorld(t, 2, 2, 8, func(cfg *fabric.Config) {
		cfg.QueueBytes, cfg.LinkBytes = 4096, 4096
	})
	w.chatter(500)
	w.awaitAll()
}

func TestSwitch_LearnsAddresses(t *testing.T) {
	w := newWorld(t, 2, 2, 0, nil)
	a, far := w.guests()[0], w.guests()[2]

	// Nobody has seen far's address on this node: the frame goes to all.
	a.send(far.id, 60)
	far.await("first frame", func(r []stamp) bool { return len(r) == 1 })
	bystander := w.nodes[0].ports[1]
	awaitTrue(t, "flooded frame at the bystander", func() bool { return bystander.Stats().Sent == 1 })

	// The answer teaches a's node where far is; the next frame goes there alone.
	far.send(a.id, 60)
	a.await("answer", func(r []stamp) bool { return len(r) == 1 })
	a.send(far.id, 60)
	far.await("second frame", func(r []stamp) bool { return len(r) == 2 })
	if got := bystander.Stats().Sent; got != 1 {
		t.Errorf("bystander got %d frames, want only the flooded one", got)
	}
	// The bystander on far's side never saw a's unicast: far's address is its NIC's.
	if got := w.nodes[1].ports[1].Stats().Sent; got != 0 {
		t.Errorf("bystander beside the receiver got %d frames, want none", got)
	}
}

func TestSwitch_KeepsNetworksAndClustersApart(t *testing.T) {
	n := newNode(t, "n1", nil)
	n.create(1, nil)
	a, _ := n.attach(1, 0, false)
	n.attach(2, 0, false)

	other := attachTo(t, n, "c1", "other-net", 3)
	if err := n.fabric.CreateCluster("c2", 1); err != nil {
		t.Fatal(err)
	}
	foreign := attachTo(t, n, "c2", "net", 4)

	a.send(everybody, 60)
	n.guests[1].await("broadcast", func(r []stamp) bool { return len(r) == 1 })
	for _, p := range []*fabric.Port{other, foreign} {
		if s := p.Stats(); s.Sent+s.Waiting != 0 {
			t.Errorf("nic %s got a frame of another domain", p.Key())
		}
	}
}

// attachTo attaches a NIC of a guest that never looks.
func attachTo(t *testing.T, n *node, cluster, network string, id int) *fabric.Port {
	t.Helper()
	fabricEnd, guestEnd, err := fabric.NewPair()
	if err != nil {
		t.Fatal(err)
	}
	p, err := n.fabric.Attach(fabric.PortConfig{
		Cluster: cluster, Network: network, Guest: "x", NIC: "nic0",
		MAC: guestMAC(id), FabricEnd: fabricEnd, GuestEnd: guestEnd,
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// Tags, odd types and every legal size pass as they are.
func TestSwitch_LeavesFramesAlone(t *testing.T) {
	n := newNode(t, "n1", nil)
	n.create(1, nil)
	aFabric, aGuest := mustPair(t)
	bFabric, bGuest := mustPair(t)
	// The test plays both guests itself on descriptors of its own.
	for i, ends := range [][2]endFile{{aFabric, aGuest}, {bFabric, bGuest}} {
		if _, err := n.fabric.Attach(fabric.PortConfig{
			Cluster: clusterName, Network: "net", Guest: string(rune('a' + i)), NIC: "nic0",
			MAC: guestMAC(i + 1), FabricEnd: ends[0], GuestEnd: ends[1],
		}); err != nil {
			t.Fatal(err)
		}
	}
	tagged := append(append(guestMAC(2), guestMAC(1)...), 0x81, 0x00, 0x20, 0x07, 0x88, 0xa8)
	for _, payload := range [][]byte{{}, []byte("q"), bytes.Repeat([]byte("jumbo"), 13000)} {
		want := append(bytes.Clone(tagged), payload...)
		if _, err := aGuest.Write(want); err != nil {
			t.Fatal(err)
		}
		got := make([]byte, fabric.MaxFrame+1)
		k, err := bGuest.Read(got) // blocking descriptor: waits
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got[:k], want) {
			t.Errorf("frame of %d bytes came as %d bytes, or changed", len(want), k)
		}
	}
}

func TestSwitch_RefusesRuntsAndGiants(t *testing.T) {
	n := newNode(t, "n1", nil)
	n.create(1, nil)
	fabricEnd, guestEnd := mustPair(t)
	p, err := n.fabric.Attach(fabric.PortConfig{
		Cluster: clusterName, Network: "net", Guest: "g", NIC: "nic0",
		MAC: guestMAC(1), FabricEnd: fabricEnd, GuestEnd: guestEnd,
	})
	if err != nil {
		t.Fatal(err)
	}
	_, peer := n.attach(2, 0, false)
	giant := append(append(guestMAC(2), guestMAC(1)...), make([]byte, fabric.MaxFrame)...)
	binary.BigEndian.PutUint16(giant[12:], etherTypeTest)
	for _, b := range [][]byte{giant[:fabric.MinFrame-1], giant} {
		if _, err := guestEnd.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	awaitTrue(t, "both frames counted", func() bool { return p.Stats().Received == 2 && p.Stats().Dropped.Total() == 2 })
	if d := p.Stats().Dropped; d.Runt != 1 || d.Giant != 1 {
		t.Errorf("dropped %+v, want a runt and a giant", d)
	}
	if s := peer.Stats(); s.Sent != 0 {
		t.Errorf("receiver got %d frames, want none", s.Sent)
	}
}
