package dataplane

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"fermata/nodeagent/fabric"
)

// TestMain lets the test binary play the data planes of its tests.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "data-plane" {
		if err := Main(context.Background(), os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

const (
	testBudget  = 20 * time.Second
	testCluster = "c"
)

// planeNode is a node with a plane of one kind.
type planeNode struct {
	name, address string
	plane         Plane
}

// kinds are the planes that keep the contract.
var kinds = map[string]func(t testing.TB, name string) *planeNode{
	"inside the process": func(t testing.TB, name string) *planeNode {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		f, err := fabric.New(FabricConfig(name, name+"-1", l, nil, nil))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- f.Run(ctx) }()
		t.Cleanup(func() {
			cancel()
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
		return &planeNode{name: name, address: l.Addr().String(), plane: Inside{f}}
	},
	"a process of its own": func(t testing.TB, name string) *planeNode {
		n := newProcessNode(t, name)
		return &n.planeNode
	},
}

// processNode is a node whose plane is a process.
type processNode struct {
	planeNode
	t      testing.TB
	cfg    Config
	client *Client
}

func newProcessNode(t testing.TB, name string) *processNode {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	n := &processNode{t: t, planeNode: planeNode{name: name, address: freeAddress(t)}}
	n.cfg = Config{
		Dir: t.TempDir(), Command: []string{exe, "data-plane"}, Log: os.Stderr, Logger: hclog.NewNullLogger(),
		Settings: Settings{Node: name, Listen: n.address, Plaintext: true, LogLevel: "error"},
	}
	n.connect()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), testBudget)
		defer cancel()
		n.client.Close()
		if err := endProcess(ctx, filepath.Join(n.cfg.Dir, socketName)); err != nil {
			t.Error(err)
		}
	})
	return n
}

// connect is what a new agent does.
func (n *processNode) connect() {
	n.t.Helper()
	c := NewClient(n.cfg)
	if err := c.Connect(n.t.Context()); err != nil {
		n.t.Fatal(err)
	}
	n.client, n.plane = c, c
}

// restart lets the agent die without a word and another begin.
func (n *processNode) restart() {
	n.t.Helper()
	n.client.Close() // as the kernel closes the descriptors of a killed process
	n.connect()
}

func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func mustBe(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("error %v, want %v", err, want)
	}
}

func await(t testing.TB, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(testBudget); !is(); time.Sleep(time.Millisecond) { // between looks
		if time.Now().After(deadline) {
			t.Fatalf("waited %s for: %s", testBudget, what)
		}
	}
}

// card is a guest with one NIC, which reads what comes unless it is deaf.
type card struct {
	t         testing.TB
	id        int
	near, far *os.File // what QEMU would hold

	mu       sync.Mutex
	received []uint64 // numbers of frames
	sent     uint64
}

func guestName(id int) string { return fmt.Sprintf("g%d", id) }

func mac(id int) net.HardwareAddr { return net.HardwareAddr{0x52, 0x54, 0, 0, 0, byte(id)} }

func nicOf(id int) fabric.PortKey { return fabric.PortKey{Guest: guestName(id), NIC: "nic0"} }

// frameTo makes frame number n of guest from for guest to.
func frameTo(from, to int, n uint64) []byte {
	b := make([]byte, 60)
	copy(b, mac(to))
	copy(b[6:], mac(from))
	binary.BigEndian.PutUint16(b[12:], 0x88B6)
	binary.BigEndian.PutUint64(b[14:], n)
	return b
}

func newCard(t testing.TB, id int, deaf bool) *card {
	t.Helper()
	near, far, err := fabric.NewPair()
	must(t, err)
	c := &card{t: t, id: id, near: near, far: far}
	ended := make(chan struct{})
	if deaf {
		close(ended)
	} else {
		go c.read(ended)
	}
	t.Cleanup(func() {
		_ = unix.Shutdown(int(far.Fd()), unix.SHUT_RDWR) // ends a read that waits
		<-ended
		_ = near.Close()
		_ = far.Close()
	})
	return c
}

func (c *card) read(ended chan struct{}) {
	defer close(ended)
	buf := make([]byte, fabric.MaxFrame)
	for {
		n, err := c.far.Read(buf)
		if err != nil || n == 0 {
			return
		}
		if n < 22 || binary.BigEndian.Uint16(buf[12:]) != 0x88B6 {
			continue // a sentinel, or another guest's
		}
		c.mu.Lock()
		c.received = append(c.received, binary.BigEndian.Uint64(buf[14:]))
		c.mu.Unlock()
	}
}

func (c *card) got() []uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]uint64(nil), c.received...)
}

// send sends the next frame to a guest.
func (c *card) send(to int) {
	c.sent++
	for {
		_, err := c.far.Write(frameTo(c.id, to, c.sent))
		if err == nil {
			return
		}
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.ENOBUFS) {
			c.t.Errorf("guest %d: send: %v", c.id, err)
			return
		}
	}
}

// join joins the card to a plane, by descriptors of its own.
func (c *card) join(n *planeNode, gated bool) error {
	return n.plane.Join(fabric.PortConfig{
		Cluster: testCluster, Network: "net", Guest: guestName(c.id), NIC: "nic0", MAC: mac(c.id), Gated: gated,
		FabricEnd: dup(c.t, c.near), GuestEnd: dup(c.t, c.far),
	})
}

func dup(t testing.TB, f *os.File) *os.File {
	t.Helper()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	must(t, err)
	return os.NewFile(uintptr(fd), f.Name())
}

// cluster makes the cluster on nodes, in epoch 1, with guest i+1 on node i.
func cluster(t testing.TB, nodes ...*planeNode) []*card {
	t.Helper()
	var cards []*card
	for i, n := range nodes {
		must(t, n.plane.ContinueCluster(testCluster, 1, 1))
		must(t, n.plane.SetPeers(testCluster, peersOf(nodes)))
		cards = append(cards, newCard(t, i+1, false))
		must(t, cards[i].join(n, false))
	}
	return cards
}

func peersOf(nodes []*planeNode) []fabric.Peer {
	var peers []fabric.Peer
	for _, n := range nodes {
		peers = append(peers, fabric.Peer{Node: n.name, Address: n.address})
	}
	return peers
}

func namesOf(nodes []*planeNode) []string {
	var names []string
	for _, n := range nodes {
		names = append(names, n.name)
	}
	return names
}

// portOf is what a plane says of a guest's NIC.
func portOf(t testing.TB, n *planeNode, id int) fabric.PortStatus {
	t.Helper()
	s, err := n.plane.ClusterStats(testCluster)
	must(t, err)
	for _, p := range s.Ports {
		if p.PortKey == nicOf(id) {
			return p
		}
	}
	t.Fatalf("node %s has no NIC of guest %d", n.name, id)
	return fabric.PortStatus{}
}

func contains(err error, text string) bool { return strings.Contains(err.Error(), text) }

// gate closes the gates of a guest.
func gate(t testing.TB, p Plane, cluster, guest string, limit time.Duration) {
	t.Helper()
	_, err := p.Gate(cluster, guest, limit)
	must(t, err)
}
