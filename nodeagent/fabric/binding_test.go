package fabric_test

import (
	"errors"
	"testing"

	"fermata/nodeagent/fabric"
)

// bind gives every node the NICs of the others' guests, as a specification does.
func (w *world) bind() {
	w.t.Helper()
	peers := w.peers()
	for i, n := range w.nodes {
		for _, g := range n.guests {
			peers[i].Cards = append(peers[i].Cards, fabric.Card{Network: "net", MAC: g.mac})
		}
	}
	for _, n := range w.nodes {
		if err := n.fabric.SetPeers(clusterName, peers); err != nil {
			w.t.Fatal(err)
		}
	}
}

// claim sends one frame to dst with the address of somebody else.
func (g *guest) claim(src, dst int, seq uint64) {
	g.t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.writeOne(testFrame(src, dst, seq, 100)); err != nil {
		g.t.Fatal(err)
	}
}

// wantAll has one guest send frames to another, which must get all of them: none is
// diverted to who claimed its address before.
func (w *world) wantAll(from, to *guest) {
	w.t.Helper()
	before := len(to.now().received)
	for range 10 {
		from.send(to.id, 100)
	}
	to.await("all frames that were sent to it", func(r []stamp) bool { return len(r) == before+10 })
}

// Somebody outside claims the address of a guest, of this node or of another one.
func TestBinding_OutsiderTakesNoGuestsTraffic(t *testing.T) {
	for id, place := range map[int]string{2: "guest beside the uplink", 3: "guest of another node"} {
		t.Run(place, func(t *testing.T) {
			w := newWorld(t, 2, 2, 0, nil)
			w.bind()
			all := w.guests()
			reader, victim := all[0], all[id-1]
			victim.send(reader.id, 100)
			reader.await("frame of the victim", func(r []stamp) bool { return len(r) == 1 })
			o := w.nodes[0].outside(id, fabric.OutsideAllow) // its frames have the victim's address
			o.send(reader.id)
			reader.await("spoofed frame", func(r []stamp) bool { return len(r) == 2 })
			w.wantAll(reader, victim)
			if saw := o.saw(); len(saw) != 0 {
				t.Errorf("%d frames for the victim went out of the uplink", len(saw))
			}
			stats, err := w.nodes[0].fabric.ClusterStats(clusterName)
			if err != nil || stats.Uplinks[0].Spoofed != 1 {
				t.Errorf("uplink counts %d spoofed frames, %v; want 1", stats.Uplinks[0].Spoofed, err)
			}
		})
	}
}

// A guest claims the address of another one: wherever thief, victim and sender are, the
// victim keeps its traffic.
func TestBinding_GuestTakesNoOthersTraffic(t *testing.T) {
	w := newWorld(t, 3, 2, 0, nil)
	w.bind()
	all := w.guests()
	seq := uint64(1 << 32)
	for _, thief := range all {
		for _, victim := range all {
			if thief == victim {
				continue
			}
			for _, sender := range all {
				if sender == thief || sender == victim {
					continue
				}
				seq++
				before := len(sender.now().received)
				thief.claim(victim.id, sender.id, seq)
				sender.await("spoofed frame", func(r []stamp) bool { return len(r) == before+1 })
				w.wantAll(sender, victim)
			}
		}
	}
	if s := w.nodes[0].ports[0].Stats(); s.Spoofed == 0 {
		t.Error("the thief's port counts no spoofed frame")
	}
	if s, err := w.nodes[0].fabric.ClusterStats(clusterName); err != nil || s.Spoofed == 0 {
		t.Errorf("no frame counted whose address is not on the node that it came from: %v", err)
	}
}

// A guest may use further addresses: of machines inside it, or one that its
// administrator has set. They are learnt, and they move.
func TestBinding_FurtherAddressesAreLearntAndMove(t *testing.T) {
	const nested = 77
	w := newWorld(t, 2, 2, 0, nil)
	w.bind()
	all := w.guests()
	for round, at := range []int{0, 2, 1} { // the machine moves from host to host
		host, sender, bystander := all[at], all[3], w.nodes[0].ports[0]
		before := len(sender.now().received)
		host.claim(nested, sender.id, uint64(round+1)<<32)
		sender.await("frame of the machine inside", func(r []stamp) bool { return len(r) == before+1 })
		sent := hostPort(w, at).Stats().Sent
		still := bystander.Stats().Sent
		for range 10 {
			sender.send(nested, 100)
		}
		awaitTrue(t, "frames for the machine inside at its host", func() bool { return hostPort(w, at).Stats().Sent == sent+10 })
		if at != 0 && bystander.Stats().Sent != still {
			t.Errorf("round %d: frames for a learnt address were flooded", round)
		}
		w.wantAll(sender, host) // by its own address, too
	}
}

func hostPort(w *world, guest int) *fabric.Port { return w.nodes[guest/2].ports[guest%2] }

// With all NICs known, the first frame already goes to its receiver alone.
func TestBinding_NothingIsFlooded(t *testing.T) {
	w := newWorld(t, 2, 2, 0, nil)
	w.bind()
	all := w.guests()
	w.wantAll(all[0], all[2])
	for _, p := range []*fabric.Port{w.nodes[0].ports[1], w.nodes[1].ports[1]} {
		if n := p.Stats().Sent; n != 0 {
			t.Errorf("bystander %s got %d frames, want none", p.Key(), n)
		}
	}
}

func TestBinding_OneAddressHasOneNIC(t *testing.T) {
	n := newNode(t, "n1", nil)
	n.create(1, nil)
	card := func(id int) []fabric.Card { return []fabric.Card{{Network: "net", MAC: guestMAC(id)}} }
	err := n.fabric.SetPeers(clusterName, []fabric.Peer{
		{Node: "n2", Address: "127.0.0.1:1", Cards: card(7)}, {Node: "n3", Address: "127.0.0.1:1", Cards: card(7)},
	})
	if !errors.Is(err, fabric.ErrExists) {
		t.Errorf("two peers with one address: %v, want %v", err, fabric.ErrExists)
	}
	if err := n.fabric.SetPeers(clusterName, []fabric.Peer{{Node: "n2", Address: "127.0.0.1:1", Cards: card(7)}}); err != nil {
		t.Fatal(err)
	}
	fabricEnd, guestEnd := mustPair(t)
	_, err = n.fabric.Attach(fabric.PortConfig{
		Cluster: clusterName, Network: "net", Guest: "g", NIC: "nic0", MAC: guestMAC(7), FabricEnd: fabricEnd, GuestEnd: guestEnd,
	})
	if !errors.Is(err, fabric.ErrExists) {
		t.Errorf("NIC with the address of another node's: %v, want %v", err, fabric.ErrExists)
	}
	// The guest has moved here.
	if err := n.fabric.SetPeers(clusterName, nil); err != nil {
		t.Fatal(err)
	}
	n.attach(7, 0, false)
}
