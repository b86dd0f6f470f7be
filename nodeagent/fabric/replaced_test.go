package fabric_test

import (
	"fmt"
	"os"
	"testing"

	"fermata/nodeagent/fabric"

	"golang.org/x/sys/unix"
)

// copyOf is a second descriptor of f, such as QEMU holds.
func copyOf(t testing.TB, f *os.File) *os.File {
	t.Helper()
	raw, err := f.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var fd int
	var derr error
	if err := raw.Control(func(orig uintptr) { fd, derr = unix.FcntlInt(orig, unix.F_DUPFD_CLOEXEC, 0) }); err != nil || derr != nil {
		t.Fatal(err, derr)
	}
	return os.NewFile(uintptr(fd), f.Name())
}

// survivor is a guest whose socket outlives the fabric of its node.
type survivor struct {
	*guest
	card              fabric.PortConfig
	fabricEnd, guest2 *os.File
}

func newSurvivor(t testing.TB, id int) *survivor {
	t.Helper()
	fabricEnd, guestEnd, err := fabric.NewPair()
	if err != nil {
		t.Fatal(err)
	}
	s := &survivor{fabricEnd: fabricEnd, guest2: guestEnd, guest: newGuest(t, id, guestEnd, 0)}
	t.Cleanup(func() { fabricEnd.Close(); guestEnd.Close() })
	s.card = fabric.PortConfig{Cluster: clusterName, Network: "net", Guest: fmt.Sprintf("g%d", id), NIC: "nic0", MAC: guestMAC(id)}
	return s
}

// join attaches the guest to a fabric, by copies of its socket.
func (s *survivor) join(t testing.TB, n *node, gated bool) *fabric.Port {
	t.Helper()
	card := s.card
	card.Gated, card.FabricEnd, card.GuestEnd = gated, copyOf(t, s.fabricEnd), copyOf(t, s.guest2)
	p, err := n.fabric.Attach(card)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// replace ends the fabric of a node and runs another in its place, with the cluster in
// the epoch that it has come to.
func (n *node) replace(t testing.TB, epoch uint64, peers []fabric.Peer) *node {
	t.Helper()
	n.stop()
	next := newNode(t, n.name, func(c *fabric.Config) { c.Incarnation = "n-next-" + n.addr })
	if err := next.fabric.ContinueCluster(clusterName, 1, epoch); err != nil {
		t.Fatal(err)
	}
	for i := range peers {
		if peers[i].Node == n.name {
			peers[i].Address = next.addr
		}
	}
	if err := next.fabric.SetPeers(clusterName, peers); err != nil {
		t.Fatal(err)
	}
	return next
}

// TestReplaced_ReceiverTakesNoFrameTwice replaces the fabric of a receiver under
// traffic. What it had acknowledged, and what the sender has never sent, arrives.
func TestReplaced_ReceiverTakesNoFrameTwice(t *testing.T) {
	n1, n2 := newNode(t, "n1", nil), newNode(t, "n2", nil)
	peers := []fabric.Peer{{Node: "n1", Address: n1.addr}, {Node: "n2", Address: n2.addr}}
	n1.create(1, peers)
	n2.create(1, peers)
	g1, _ := n1.attach(1, 0, false)
	g2 := newSurvivor(t, 2)
	g2.join(t, n2, false)

	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-stop:
				return
			default:
				g1.send(2, 100)
			}
		}
	}()
	const times = 10
	var doubtful uint64
	for range times {
		before := len(g2.now().received)
		g2.await("traffic", func(r []stamp) bool { return len(r) > before+500 })
		doubtful += doubtfulAt(t, n2)
		n2 = n2.replace(t, 1, peers)
		g2.join(t, n2, false)
		if err := n1.fabric.SetPeers(clusterName, peers); err != nil {
			t.Fatal(err)
		}
	}
	before := len(g2.now().received)
	g2.await("traffic after the last", func(r []stamp) bool { return len(r) > before+500 })
	close(stop)
	<-ended
	last := uint64(len(g1.now().sent))
	g2.await("the last frame", func(r []stamp) bool { return r[len(r)-1].seq == last })

	doubtful += doubtfulAt(t, n2)

	var newest uint64
	missing := 0
	for _, s := range g2.now().received {
		if s.seq <= newest {
			t.Fatalf("frame %d came after frame %d: doubled or reordered", s.seq, newest)
		}
		missing += int(s.seq - newest - 1)
		newest = s.seq
	}
	t.Logf("%d frames sent, %d lost by %d replacements, of which %d were on a link", last, missing, times, doubtful)
	// The rest was in the queue of the card, or in the hands of who filled it.
	const cost = 100 + 64
	if limit := int(doubtful) + times*(fabric.DefaultQueueBytes/cost+1); missing > limit {
		t.Errorf("%d frames lost, of which %d are accounted for", missing, limit)
	}
}

// TestReplaced_SenderShowsNothingThatIsUndone replaces the fabric of a sender after a
// committed round: what its guest sends from then on waits for the next one.
func TestReplaced_SenderShowsNothingThatIsUndone(t *testing.T) {
	w := newWorld(t, 2, 1, 0, nil)
	o := w.nodes[0].outside(outsiderID, fabric.OutsideHold)
	if _, err := w.cut(2, true, -1); err != nil {
		t.Fatal(err)
	}
	for _, n := range w.nodes {
		n.fabric.Durable(clusterName, 2)
	}
	w.nodes[1] = w.nodes[1].replace(t, 2, w.peers())
	if err := w.nodes[0].fabric.SetPeers(clusterName, w.peers()); err != nil {
		t.Fatal(err)
	}
	g, _ := w.nodes[1].attach(2, 0, false)
	for range 5 {
		g.send(outsiderID, 100)
	}
	awaitTrue(t, "the frames at the uplink", func() bool { return uplinkOf(t, w.nodes[0]).Waiting == 5 })
	if n := len(o.saw()); n != 0 {
		t.Fatalf("%d of 5 frames left before a checkpoint", n)
	}
	if err := w.nodes[1].fabric.BeginCut(clusterName, 2, []string{"n1", "n2"}, testBudget); err == nil {
		t.Error("a cut that the guest may have passed was begun again")
	}
	if _, err := w.cut(3, true, -1); err != nil {
		t.Fatal(err)
	}
	for _, n := range w.nodes {
		n.fabric.Durable(clusterName, 3)
	}
	awaitTrue(t, "the frames outside", func() bool { return len(o.saw()) == 5 })
}

func doubtfulAt(t *testing.T, n *node) uint64 {
	t.Helper()
	s, err := n.fabric.ClusterStats(clusterName)
	if err != nil {
		t.Fatal(err)
	}
	return s.Doubtful
}

func uplinkOf(t *testing.T, n *node) fabric.UplinkStats {
	t.Helper()
	s, err := n.fabric.ClusterStats(clusterName)
	if err != nil {
		t.Fatal(err)
	}
	return s.Uplinks[0]
}
