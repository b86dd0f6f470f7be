package fabric_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"fermata/nodeagent/fabric"
	"fermata/protocol/identity"

	"github.com/hashicorp/go-hclog"
)

// testBudget bounds every wait for something that must happen.
const testBudget = 20 * time.Second

const clusterName = "c1"

// node is one fabric and the guests on it.
type node struct {
	t      testing.TB
	name   string
	fabric *fabric.Fabric
	addr   string
	stop   func()
	guests []*guest
	ports  []*fabric.Port // of guests, in their order
}

// newNode runs a fabric on loopback until the test ends. change may alter its
// configuration.
func newNode(t testing.TB, name string, change func(*fabric.Config)) *node {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg := fabric.Config{
		Node: name, Incarnation: name + "-1", Listener: lis, Plaintext: true,
		Logger: hclog.New(&hclog.LoggerOptions{Name: name, Level: hclog.Debug, Output: logWriter{t}}),
	}
	if change != nil {
		change(&cfg)
	}
	f, err := fabric.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- f.Run(ctx) }()
	n := &node{t: t, name: name, fabric: f, addr: lis.Addr().String()}
	n.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("node %s: %v", name, err)
		}
	})
	t.Cleanup(n.stop)
	return n
}

// logWriter sends log lines to the test.
type logWriter struct{ t testing.TB }

func (w logWriter) Write(b []byte) (int, error) {
	w.t.Logf("%s", b)
	return len(b), nil
}

// create begins a life of the test cluster.
func (n *node) create(epoch uint64, peers []fabric.Peer) {
	n.t.Helper()
	if err := n.fabric.CreateCluster(clusterName, epoch); err != nil {
		n.t.Fatal(err)
	}
	if err := n.fabric.SetPeers(clusterName, peers); err != nil {
		n.t.Fatal(err)
	}
}

// attach joins guest id's NIC to network "net".
func (n *node) attach(id int, ring int, gated bool) (*guest, *fabric.Port) {
	n.t.Helper()
	fabricEnd, guestEnd, err := fabric.NewPair()
	if err != nil {
		n.t.Fatal(err)
	}
	g := newGuest(n.t, id, guestEnd, ring)
	p, err := n.fabric.Attach(fabric.PortConfig{
		Cluster: clusterName, Network: "net", Guest: fmt.Sprintf("g%d", id), NIC: "nic0",
		MAC: guestMAC(id), FabricEnd: fabricEnd, GuestEnd: guestEnd, Gated: gated,
	})
	if err != nil {
		n.t.Fatal(err)
	}
	n.guests = append(n.guests, g)
	n.ports = append(n.ports, p)
	return g, p
}

// world is a cluster over several nodes.
type world struct {
	t     testing.TB
	nodes []*node
}

// newWorld makes a cluster of nodes × guests in epoch 1. Guests are numbered
// through from 1.
func newWorld(t testing.TB, nodes, guests, ring int, change func(*fabric.Config)) *world {
	t.Helper()
	w := &world{t: t}
	for i := range nodes {
		w.nodes = append(w.nodes, newNode(t, fmt.Sprintf("n%d", i+1), change))
	}
	id := 0
	for _, n := range w.nodes {
		n.create(1, w.peers())
		for range guests {
			id++
			n.attach(id, ring, false)
		}
	}
	return w
}

func (w *world) peers() []fabric.Peer {
	var peers []fabric.Peer
	for _, n := range w.nodes {
		peers = append(peers, fabric.Peer{Node: n.name, Address: n.addr})
	}
	return peers
}

func (w *world) members() []string {
	var m []string
	for _, n := range w.nodes {
		m = append(m, n.name)
	}
	return m
}

func (w *world) guests() []*guest {
	var gs []*guest
	for _, n := range w.nodes {
		gs = append(gs, n.guests...)
	}
	return gs
}

// pair is a sender and a receiver.
type pair struct{ src, dst int }

// dueByPair is what each guest must get from each other, in order.
func dueByPair(points map[int]point) map[pair][]stamp {
	due := make(map[pair][]stamp)
	for src, p := range points {
		for _, s := range p.sent {
			if s.dst != everybody {
				due[pair{src, s.dst}] = append(due[pair{src, s.dst}], s)
				continue
			}
			for dst := range points {
				if dst != src {
					due[pair{src, dst}] = append(due[pair{src, dst}], s)
				}
			}
		}
	}
	return due
}

// bySource sorts received frames by their sender, in order.
func bySource(frames []stamp) map[int][]stamp {
	m := make(map[int][]stamp)
	for _, s := range frames {
		m[s.src] = append(m[s.src], s)
	}
	return m
}

// awaitAll waits until each guest has received as much as was sent to it, and
// then checks that it is exactly that, in order.
func (w *world) awaitAll() {
	w.t.Helper()
	points := make(map[int]point)
	for _, g := range w.guests() {
		points[g.id] = g.now()
	}
	due := dueByPair(points)
	for _, dst := range w.guests() {
		want := 0
		for src := range points {
			want += len(due[pair{src, dst.id}])
		}
		dst.await(fmt.Sprintf("%d frames", want), func(received []stamp) bool { return len(received) >= want })
		got := bySource(dst.now().received)
		for src := range points {
			compareFrames(w.t, fmt.Sprintf("guest %d from guest %d", dst.id, src), got[src], due[pair{src, dst.id}])
		}
	}
}

// compareFrames reports the first difference. It returns whether there is none.
func compareFrames(t testing.TB, what string, got, want []stamp) bool {
	t.Helper()
	for i := range max(len(got), len(want)) {
		switch {
		case i >= len(got):
			t.Errorf("%s: frame %v and %d more are lost", what, want[i], len(want)-i-1)
		case i >= len(want):
			t.Errorf("%s: frame %v and %d more too many", what, got[i], len(got)-i-1)
		case got[i] != want[i]:
			t.Errorf("%s: frame %d is %v, want %v", what, i, got[i], want[i])
		default:
			continue
		}
		return false
	}
	return true
}

// awaitTrue polls cond.
func awaitTrue(t testing.TB, what string, cond func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	deadline := time.After(testBudget)
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not within %s: %s", testBudget, what)
		}
	}
}

func budget(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), testBudget)
	t.Cleanup(cancel)
	return ctx
}

// authority issues agent certificates, each used through withTLS.
type authority struct {
	t   testing.TB
	dir string
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{t: t, dir: filepath.Join(t.TempDir(), "ca")}
	if err := identity.CreateCA(a.dir, time.Hour); err != nil {
		t.Fatal(err)
	}
	return a
}

// withTLS makes cfg use a certificate for node name.
func (a *authority) withTLS(cfg *fabric.Config, name string) {
	a.t.Helper()
	files, err := identity.Issue(a.dir, identity.Request{Role: identity.RoleAgent, Name: name}, filepath.Join(a.t.TempDir(), name))
	if err != nil {
		a.t.Fatal(err)
	}
	id, err := identity.Load(files.Cert, files.Key, files.CA)
	if err != nil {
		a.t.Fatal(err)
	}
	cfg.Plaintext = false
	cfg.ServerTLS = id.Server(identity.RoleAgent)
	cfg.ClientTLS = func(node string) *tls.Config { return id.Client(identity.RoleAgent, node) }
	cfg.PeerName = func(cs tls.ConnectionState) (string, error) {
		p, err := identity.PeerOf(cs)
		return p.Name, err
	}
}
