package fabric_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"fermata/nodeagent/fabric"

	"github.com/hashicorp/go-hclog"
)

// Every connection dies after a random number of bytes, in both directions.
func TestLink_ResetsLoseDoubleAndReorderNothing(t *testing.T) {
	w := newWorld(t, 2, 1, 0, nil)
	proxies := w.interpose()
	for _, p := range proxies {
		p.setLife(20_000)
		p.reset()
	}
	a, b := w.guests()[0], w.guests()[1]
	for range 1000 {
		a.send(b.id, 200)
		b.send(a.id, 1500)
	}
	w.awaitAll()
	for name, p := range proxies {
		if p.resetCount() < 10 {
			t.Errorf("link to %s was reset %d times, want many", name, p.resetCount())
		}
	}
}

// Frames for a peer that is not there yet wait; nothing is lost when nodes
// create the cluster one after the other.
func TestLink_WaitsForThePeersCluster(t *testing.T) {
	w := &world{t: t, nodes: []*node{newNode(t, "n1", nil), newNode(t, "n2", nil)}}
	w.nodes[0].create(1, w.peers())
	w.nodes[0].attach(1, 0, false)
	w.nodes[0].guests[0].send(2, 60)

	n2 := w.nodes[1]
	if err := n2.fabric.CreateCluster(clusterName, 1); err != nil {
		t.Fatal(err)
	}
	n2.attach(2, 0, true)
	if err := n2.fabric.SetPeers(clusterName, w.peers()); err != nil {
		t.Fatal(err)
	}
	n2.ports[0].Ungate()
	w.awaitAll()
}

func clusterStats(t testing.TB, n *node) fabric.ClusterStats {
	t.Helper()
	s, err := n.fabric.ClusterStats(clusterName)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// A node that still lives in the cluster's past gets nothing into its present,
// and nothing of the present gets into the past.
func TestLink_LivesDoNotMix(t *testing.T) {
	w := &world{t: t, nodes: []*node{newNode(t, "n1", nil), newNode(t, "n2", nil)}}
	past, present := w.nodes[0], w.nodes[1]
	past.create(3, w.peers())
	present.create(9, w.peers())
	old, _ := past.attach(1, 0, false)
	young, _ := present.attach(2, 0, false)
	old.send(young.id, 60)
	young.send(old.id, 60)
	awaitTrue(t, "link from the past refused", func() bool { return clusterStats(t, present).Stale > 0 })
	if s := clusterStats(t, past); s.Links[0].Connects != 0 {
		t.Errorf("link from the past came up: %+v", s.Links[0])
	}

	// The node is brought into the present: its guests begin anew.
	if err := past.fabric.CreateCluster(clusterName, 9); !errors.Is(err, fabric.ErrExists) {
		t.Errorf("second life beside the first: %v, want %v", err, fabric.ErrExists)
	}
	if err := past.fabric.RemoveCluster(clusterName); err != nil {
		t.Fatal(err)
	}
	old.kill()
	past.guests, past.ports = nil, nil
	// What waits for its guest comes when it has peers, so the guest comes first.
	if err := past.fabric.CreateCluster(clusterName, 9); err != nil {
		t.Fatal(err)
	}
	past.attach(1, 0, false)
	past.create(9, w.peers()) // the same call again does nothing
	past.guests[0].send(young.id, 61)
	w.awaitAll()
	if r := young.now().received; len(r) != 1 || r[0].size != 61 {
		t.Errorf("guest of the present got %v, want the one frame of the present", r)
	}
}

// A peer that is removed takes its frames along and holds up nobody.
func TestLink_RemovedPeerHoldsUpNobody(t *testing.T) {
	n := newNode(t, "n1", func(cfg *fabric.Config) { cfg.LinkBytes = 4096 })
	// Nobody answers at the discard address of a closed listener.
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead := fabric.Peer{Node: "dead", Address: lis.Addr().String()}
	_ = lis.Close()
	n.create(1, []fabric.Peer{dead})
	a, _ := n.attach(1, 0, false)
	b, _ := n.attach(2, 0, false)
	for range 50 {
		a.send(everybody, 1000)
	}
	awaitTrue(t, "link is full", func() bool { s := clusterStats(t, n); return s.Links[0].WaitingBytes > 3000 })
	if err := n.fabric.SetPeers(clusterName, nil); err != nil {
		t.Fatal(err)
	}
	b.await("all broadcasts", func(r []stamp) bool { return len(r) == 50 })
	if s := clusterStats(t, n); s.Closed == 0 || len(s.Links) != 0 {
		t.Errorf("cluster says %+v, want frames of the removed link counted", s)
	}
}

// lockedBuffer collects log lines.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) contains(s string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.b.String(), s)
}

// A node cannot pass for another one, neither by dialling nor by answering.
func TestLink_CertificateMustNameTheNode(t *testing.T) {
	ca := newAuthority(t)
	var logged lockedBuffer
	honest := func(cfg *fabric.Config) {
		ca.withTLS(cfg, cfg.Node)
		cfg.Logger = hclog.New(&hclog.LoggerOptions{Output: &logged, Level: hclog.Debug})
	}
	w := &world{t: t, nodes: []*node{
		newNode(t, "n1", honest),
		newNode(t, "n2", func(cfg *fabric.Config) {
			ca.withTLS(cfg, "n3") // a certificate of another node
			cfg.ClientTLS = anyServer(cfg.ClientTLS)
		}),
	}}
	for _, n := range w.nodes {
		n.create(1, w.peers())
	}
	awaitTrue(t, "dialler refused", func() bool { return logged.contains("certificate of n3, hello of n2") })
	awaitTrue(t, "answerer refused", func() bool { return logged.contains("link does not come up") })
	for _, n := range w.nodes {
		if s := clusterStats(t, n); s.Links[0].Connects != 0 {
			t.Errorf("link from %s to %s came up", n.name, s.Links[0].Node)
		}
	}
}

// anyServer is a client that does not care whom it speaks to, as an attacker's.
func anyServer(f func(string) *tls.Config) func(string) *tls.Config {
	return func(node string) *tls.Config {
		cfg := f(node).Clone()
		cfg.InsecureSkipVerify, cfg.VerifyConnection = true, nil
		return cfg
	}
}

func TestFabric_RunEndsEverything(t *testing.T) {
	w := newWorld(t, 2, 1, 0, nil)
	n := w.nodes[0]
	awaitTrue(t, "fabric accepts", func() bool { return clusterStats(t, w.nodes[1]).Links[0].Connects > 0 })
	if err := n.fabric.Run(t.Context()); err == nil {
		t.Error("second Run succeeded")
	}
	n.stop()
	if err := n.fabric.CreateCluster("c9", 1); !errors.Is(err, fabric.ErrClosed) {
		t.Errorf("create after the end: %v, want %v", err, fabric.ErrClosed)
	}
	if err := n.ports[0].Gate(); !errors.Is(err, fabric.ErrClosed) {
		t.Errorf("gate after the end: %v, want %v", err, fabric.ErrClosed)
	}
	if _, err := net.DialTimeout("tcp", n.addr, time.Second); err == nil {
		t.Error("listener is still open")
	}
}

func TestFabric_RunReportsABrokenListener(t *testing.T) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f, err := fabric.New(fabric.Config{Node: "n1", Incarnation: "1", Listener: lis, Plaintext: true})
	if err != nil {
		t.Fatal(err)
	}
	_ = lis.Close()
	if err := f.Run(context.Background()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("run: %v, want %v", err, net.ErrClosed)
	}
}

func TestConfig_Validate(t *testing.T) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	good := fabric.Config{Node: "n1", Incarnation: "1", Listener: lis, Plaintext: true}
	if err := good.Validate(); err != nil {
		t.Errorf("good configuration: %v", err)
	}
	client := func(string) *tls.Config { return &tls.Config{} }
	name := func(tls.ConnectionState) (string, error) { return "", nil }
	for want, change := range map[string]func(*fabric.Config){
		"node: missing":        func(c *fabric.Config) { c.Node = "" },
		"node: 300 bytes":      func(c *fabric.Config) { c.Node = strings.Repeat("n", 300) },
		"incarnation: missing": func(c *fabric.Config) { c.Incarnation = "" },
		"listener: missing":    func(c *fabric.Config) { c.Listener = nil },
		"TLS: missing":         func(c *fabric.Config) { c.Plaintext = false },
		"given together":       func(c *fabric.Config) { c.ServerTLS = &tls.Config{} },
		"does not demand":      func(c *fabric.Config) { c.Plaintext, c.ServerTLS, c.ClientTLS = false, &tls.Config{}, client },
		"peer name: missing":   func(c *fabric.Config) { c.Plaintext, c.ServerTLS, c.ClientTLS = false, &tls.Config{}, client },
		"does not verify": func(c *fabric.Config) {
			c.Plaintext, c.ServerTLS, c.ClientTLS, c.PeerName = false, &tls.Config{ClientAuth: tls.RequireAnyClientCert}, client, name
		},
		"queue bytes: negative":         func(c *fabric.Config) { c.QueueBytes = -1 },
		"hold bytes: negative":          func(c *fabric.Config) { c.HoldBytes = -1 },
		"link bytes: negative":          func(c *fabric.Config) { c.LinkBytes = -1 },
		"stall time: negative":          func(c *fabric.Config) { c.StallTime = -1 },
		"missing\nlink bytes: negative": func(c *fabric.Config) { c.Listener, c.LinkBytes = nil, -1 },
	} {
		cfg := good
		change(&cfg)
		if err := cfg.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got: %v", want, err)
		}
	}
}

// TestLink_SlowGuestHoldsUpNoOther: a guest that takes nothing keeps those that send to
// it from sending, and nobody else, though all share a link; also when the link's
// connection breaks meanwhile. What was held up arrives, in order, when it takes frames.
func TestLink_SlowGuestHoldsUpNoOther(t *testing.T) {
	w := newWorld(t, 2, 2, 0, func(c *fabric.Config) {
		c.QueueBytes, c.LinkBytes, c.StallTime = 64<<10, 64<<10, time.Hour
	})
	proxies := w.interpose()
	all := w.guests()
	sender, other, slow, brisk := all[0], all[1], all[2], all[3]
	slow.send(everybody, 60) // so that all know where they are
	brisk.send(everybody, 60)
	for _, g := range all {
		g.await("both to be known", func(r []stamp) bool { return len(r) >= 2 || (g == slow || g == brisk) && len(r) == 1 })
	}
	slow.mu.Lock()
	slow.deaf = true
	slow.mu.Unlock()
	// More than its socket, its queue and the link hold; the rest waits in the sender's socket.
	for range 1500 {
		sender.send(slow.id, 1000)
	}
	for round := range 3 {
		for range 300 {
			other.send(brisk.id, 1000)
		}
		brisk.await("frames past the slow guest", func(r []stamp) bool { return len(bySource(r)[other.id]) == 300*(round+1) })
		proxies[w.nodes[1].name].reset()
	}
	if n := len(bySource(slow.now().received)[sender.id]); n != 0 {
		t.Fatalf("the slow guest has received %d frames: the test proves nothing", n)
	}
	stats := w.nodes[0].ports[0].Stats()
	if stats.Received >= 1500 {
		t.Errorf("the sender was not held up: %d frames switched", stats.Received)
	}
	slow.mu.Lock()
	slow.deaf = false
	slow.flush()
	slow.mu.Unlock()
	w.awaitAll()
}
