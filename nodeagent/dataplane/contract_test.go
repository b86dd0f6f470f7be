package dataplane

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fermata/nodeagent/fabric"
)

// TestPlane holds every kind of plane to one contract.
func TestPlane(t *testing.T) {
	for kind, newNode := range kinds {
		t.Run(kind, func(t *testing.T) {
			for name, test := range map[string]func(*testing.T, func(testing.TB, string) *planeNode){
				"carries frames in order":            carriesFrames,
				"tells errors apart":                 tellsErrorsApart,
				"keeps injected frames at the front": keepsInjectedFrames,
				"records what a cut crosses":         recordsChannels,
				"gate opens by itself":               gateOpensByItself,
				"counts NICs that do not drain":      countsUndrained,
				"a wait ends with its context":       waitEnds,
				"holds frames to the outside":        holdsFramesToOutside,
				"traces":                             traces,
				"forgets what is removed":            forgets,
			} {
				t.Run(name, func(t *testing.T) { test(t, newNode) })
			}
		})
	}
}

func carriesFrames(t *testing.T, newNode func(testing.TB, string) *planeNode) {
	n1, n2 := newNode(t, "n1"), newNode(t, "n2")
	cards := cluster(t, n1, n2)
	const count = 300
	var want []uint64
	for i := range uint64(count) {
		cards[0].send(2)
		want = append(want, i+1)
	}
	await(t, "all frames", func() bool { return len(cards[1].got()) >= count })
	if got := cards[1].got(); !slices.Equal(got, want) {
		t.Errorf("received %v", got)
	}
	if p := portOf(t, n1, 1); p.Received != count {
		t.Errorf("the sender's port has received %d frames, want %d", p.Received, count)
	}
	lives, err := n1.plane.Lives()
	if err != nil || len(lives) != 1 || lives[testCluster] != 1 {
		t.Errorf("lives %v, %v", lives, err)
	}
	s, err := n1.plane.ClusterStats(testCluster)
	must(t, err)
	if len(s.Links) != 1 || s.Links[0].Node != "n2" || !s.Links[0].Connected {
		t.Errorf("links %+v", s.Links)
	}
}

func tellsErrorsApart(t *testing.T, newNode func(testing.TB, string) *planeNode) {
	n := newNode(t, "n1")
	ctx := t.Context()
	_, err := n.plane.ClusterStats("none")
	mustBe(t, err, fabric.ErrUnknownCluster)
	mustBe(t, n.plane.BeginCut("none", 2, nil, time.Second), fabric.ErrUnknownCluster)
	cards := cluster(t, n)
	mustBe(t, n.plane.ContinueCluster(testCluster, 2, 2), fabric.ErrExists)
	mustBe(t, cards[0].join(n, false), fabric.ErrExists)
	mustBe(t, n.plane.Inject(testCluster, nicOf(1), [][]byte{frameTo(9, 1, 1)}), fabric.ErrNotGated)
	mustBe(t, n.plane.Inject(testCluster, nicOf(7), nil), fabric.ErrUnknownNIC)
	must(t, n.plane.BeginCut(testCluster, 2, []string{"n1"}, time.Second))
	mustBe(t, n.plane.BeginCut(testCluster, 1, []string{"n1"}, time.Second), fabric.ErrStale)
	mustBe(t, n.plane.PassCut(ctx, testCluster, 2, guestName(1)), fabric.ErrNotGated)
	mustBe(t, n.plane.SendMarkers(testCluster, 2), fabric.ErrNotCut)
	_, err = n.plane.ChannelState(testCluster, 2)
	mustBe(t, err, fabric.ErrChannelsOpen)
	mustBe(t, n.plane.Trace(ctx, testCluster, "none", nil), fabric.ErrUnknownNetwork)
	if err := n.plane.SetPeers(testCluster, []fabric.Peer{{Node: "x"}}); err == nil {
		t.Error("a peer without an address was taken")
	}
	// Nothing to do is no error.
	must(t, n.plane.Leave("none", "g"))
	must(t, n.plane.Ungate("none", "g"))
	must(t, n.plane.RemoveCluster("none"))
	n.plane.EndCut("none", 1)
	n.plane.Durable("none", 1)
}

func keepsInjectedFrames(t *testing.T, newNode func(testing.TB, string) *planeNode) {
	n := newNode(t, "n1")
	cards := cluster(t, n)
	late := newCard(t, 2, false)
	must(t, late.join(n, true))
	cards[0].send(2) // number 1
	await(t, "the frame at the gate", func() bool { return portOf(t, n, 2).Waiting == 1 })
	must(t, n.plane.Inject(testCluster, nicOf(2), [][]byte{frameTo(9, 2, 101), frameTo(9, 2, 102)}))
	if p := portOf(t, n, 2); !p.Gated || p.Injected != 2 || p.Waiting != 3 {
		t.Errorf("port %+v", p)
	}
	must(t, n.plane.Ungate(testCluster, guestName(2)))
	await(t, "three frames", func() bool { return len(late.got()) == 3 })
	if got := late.got(); !slices.Equal(got, []uint64{101, 102, 1}) {
		t.Errorf("received %v", got)
	}
}

// recordsChannels takes one cut of two nodes, with a frame on its way.
func recordsChannels(t *testing.T, newNode func(testing.TB, string) *planeNode) {
	nodes := []*planeNode{newNode(t, "n1"), newNode(t, "n2")}
	cards := cluster(t, nodes...)
	ctx, cancel := context.WithTimeout(t.Context(), testBudget)
	defer cancel()
	cards[0].send(2)
	await(t, "the first frame", func() bool { return len(cards[1].got()) == 1 })
	for _, n := range nodes {
		must(t, n.plane.BeginCut(testCluster, 2, namesOf(nodes), testBudget))
	}
	pass := func(i int) {
		t.Helper()
		undrained, err := nodes[i].plane.Drain(ctx, testCluster, guestName(i+1), time.Second)
		if err != nil || undrained != 0 {
			t.Fatalf("drain: %d, %v", undrained, err)
		}
		must(t, nodes[i].plane.PassCut(ctx, testCluster, 2, guestName(i+1)))
		must(t, nodes[i].plane.SendMarkers(testCluster, 2))
	}
	gate(t, nodes[1].plane, testCluster, guestName(2), testBudget)
	pass(1)
	cards[0].send(2) // before its sender's point, and after the receiver's
	await(t, "the frame at the gate", func() bool { return portOf(t, nodes[1], 2).Waiting == 1 })
	gate(t, nodes[0].plane, testCluster, guestName(1), testBudget)
	pass(0)
	cards[0].send(2) // after both
	for i, n := range nodes {
		must(t, n.plane.WaitMarkers(ctx, testCluster, 2))
		state, err := n.plane.ChannelState(testCluster, 2)
		must(t, err)
		want := map[fabric.PortKey][][]byte{}
		if i == 1 {
			want[nicOf(2)] = [][]byte{frameTo(1, 2, 2)}
		}
		if fmt.Sprint(state) != fmt.Sprint(want) {
			t.Errorf("channel state of %s is %v", n.name, state)
		}
		must(t, n.plane.Ungate(testCluster, guestName(i+1)))
		n.plane.EndCut(testCluster, 2)
	}
	await(t, "all frames", func() bool { return len(cards[1].got()) == 3 })
	if s, err := nodes[0].plane.ClusterStats(testCluster); err != nil || s.Epoch != 2 {
		t.Errorf("epoch %d, %v", s.Epoch, err)
	}
}

func gateOpensByItself(t *testing.T, newNode func(testing.TB, string) *planeNode) {
	n := newNode(t, "n1")
	cluster(t, n)
	other := newCard(t, 2, false)
	must(t, other.join(n, true)) // closed from the beginning, until its release
	gate(t, n.plane, testCluster, guestName(1), time.Minute)
	gate(t, n.plane, testCluster, guestName(1), 20*time.Millisecond)
	await(t, "the gate to open", func() bool { return !portOf(t, n, 1).Gated })
	if !portOf(t, n, 2).Gated {
		t.Error("the gate of a guest that was not released is open")
	}
}

func countsUndrained(t *testing.T, newNode func(testing.TB, string) *planeNode) {
	n := newNode(t, "n1")
	cards := cluster(t, n)
	deaf := newCard(t, 2, true)
	must(t, deaf.join(n, false))
	cards[0].send(2)
	await(t, "the frame in the socket", func() bool { return portOf(t, n, 2).Sent == 1 })
	must(t, n.plane.BeginCut(testCluster, 2, []string{"n1"}, time.Second))
	gate(t, n.plane, testCluster, guestName(2), time.Minute)
	undrained, err := n.plane.Drain(t.Context(), testCluster, guestName(2), 20*time.Millisecond)
	if err != nil || undrained != 1 {
		t.Errorf("undrained %d, %v, want 1", undrained, err)
	}
	must(t, n.plane.PassCut(t.Context(), testCluster, 2, guestName(2)))
	if p := portOf(t, n, 2); p.Reclaimed != 1 || p.Waiting != 1 {
		t.Errorf("reclaimed %d, waiting %d, want one of each", p.Reclaimed, p.Waiting)
	}
}

func waitEnds(t *testing.T, newNode func(testing.TB, string) *planeNode) {
	nodes := []*planeNode{newNode(t, "n1"), newNode(t, "n2")}
	cluster(t, nodes...)
	must(t, nodes[0].plane.BeginCut(testCluster, 2, namesOf(nodes), time.Second))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := nodes[0].plane.WaitMarkers(ctx, testCluster, 2); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v, want that of the context", err)
	}
	// The cut is still open, and the call may be repeated.
	again, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := nodes[0].plane.WaitMarkers(again, testCluster, 2); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v of the repetition, want that of the context", err)
	}
}

func holdsFramesToOutside(t *testing.T, newNode func(testing.TB, string) *planeNode) {
	n := newNode(t, "n1")
	cards := cluster(t, n)
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	must(t, err)
	outside := os.NewFile(uintptr(fds[1]), "outside")
	defer outside.Close()
	must(t, n.plane.AttachUplink(fabric.UplinkConfig{
		Cluster: testCluster, Network: "net", Outside: fabric.OutsideHold, Device: os.NewFile(uintptr(fds[0]), "uplink"),
	}))
	cards[0].send(99)
	uplink := func() fabric.UplinkStats {
		s, err := n.plane.ClusterStats(testCluster)
		must(t, err)
		return s.Uplinks[0]
	}
	await(t, "the frame at the uplink", func() bool { return uplink().Waiting == 1 })
	n.plane.Durable(testCluster, 1)
	if u := uplink(); u.Waiting != 1 || u.Sent != 0 {
		t.Errorf("uplink %+v after a checkpoint of before the frame", u)
	}
	n.plane.Durable(testCluster, 2)
	must(t, outside.SetReadDeadline(time.Now().Add(testBudget)))
	buf := make([]byte, 100)
	k, err := outside.Read(buf)
	if err != nil || !slices.Equal(buf[:k], frameTo(1, 99, 1)) {
		t.Errorf("outside: % x, %v", buf[:k], err)
	}
	if _, err := outside.Write(frameTo(99, 1, 7)); err != nil {
		t.Fatal(err)
	}
	await(t, "the frame from outside", func() bool { return slices.Equal(cards[0].got(), []uint64{7}) })
}

func traces(t *testing.T, newNode func(testing.TB, string) *planeNode) {
	n := newNode(t, "n1")
	cards := cluster(t, n)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	seen := make(chan fabric.Traced, 16)
	ended := make(chan error, 1)
	go func() {
		ended <- n.plane.Trace(ctx, testCluster, "net", func(events []fabric.Traced, _ uint64) error {
			for _, e := range events {
				seen <- e
			}
			return nil
		})
	}()
	var e fabric.Traced
	await(t, "a traced frame", func() bool {
		cards[0].send(2) // until the trace has begun
		select {
		case e = <-seen:
			return true
		default:
			return false
		}
	})
	if e.NIC != nicOf(1) || e.MAC.String() != mac(1).String() || e.Epoch != 1 || e.Point || len(e.Data) != 60 || e.At.IsZero() {
		t.Errorf("traced %+v", e)
	}
	cancel()
	must(t, <-ended)
}

func forgets(t *testing.T, newNode func(testing.TB, string) *planeNode) {
	n := newNode(t, "n1")
	cards := cluster(t, n)
	must(t, n.plane.Belongs(testCluster, guestName(1), os.Getpid()))
	must(t, n.plane.Leave(testCluster, guestName(1)))
	if s, err := n.plane.ClusterStats(testCluster); err != nil || len(s.Ports) != 0 {
		t.Errorf("ports %v, %v after the guest has left", s.Ports, err)
	}
	must(t, cards[0].join(n, true))
	must(t, n.plane.RemoveCluster(testCluster))
	if lives, err := n.plane.Lives(); err != nil || len(lives) != 0 {
		t.Errorf("lives %v, %v", lives, err)
	}
}
