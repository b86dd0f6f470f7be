package fabric

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Peer is another node that holds guests of the same cluster.
type Peer struct {
	Node    string
	Address string // of its fabric listener
	// Cards are the NICs of its guests. Their addresses are bound to the node: no
	// frame from elsewhere diverts what is sent to them. Without them the addresses
	// of the node's guests are learnt.
	Cards []Card
}

// Card is a NIC on a network.
type Card struct {
	Network string
	MAC     net.HardwareAddr
}

// cluster is one life of one cluster on this node: from its creation or restart
// to its removal.
type cluster struct {
	name   string  // immutable
	floor  uint64  // immutable; epoch this life began in
	fabric *Fabric // immutable

	done     chan struct{}  // closed when removal begins
	handlers sync.WaitGroup // connections that deliver into the cluster; Add only under mu while not closed

	epoch    atomic.Uint64 // of the last cut the whole node has passed; changes under mu
	cutEpoch atomic.Uint64 // of the open cut, 0: none; changes under mu
	patience atomic.Int64  // of the open cut, a time.Duration; see BeginCut
	draining atomic.Int32  // cuts of guests that drain egress now: nothing is full

	stale, noDomain, lost, doubtful, spoofed atomic.Uint64

	mu       sync.Mutex
	closed   bool                   // guarded by mu
	networks map[string]*network    // guarded by mu
	ports    map[PortKey]*Port      // guarded by mu
	links    map[string]*link       // guarded by mu; replaced, never changed in place
	bound    bindings               // guarded by mu; replaced, never changed in place
	inbound  map[string]*inbound    // guarded by mu; by node
	cut      *cut                   // guarded by mu; nil: none
	gates    map[string]*time.Timer // guarded by mu; by guest; opens its gates if nobody does
	changed  signal                 // guarded by mu; raised by markers, the end of a cut and of the cluster
}

// CreateCluster begins a life of a cluster on this node. Frames of earlier
// epochs are refused in it, so epoch must be newer than any epoch of the
// cluster's earlier lives, and the same on all its nodes. Repeating the call
// with the same epoch does nothing.
//
// On error ErrExists: the cluster lives here with another epoch.
func (f *Fabric) CreateCluster(name string, epoch uint64) error {
	return f.ContinueCluster(name, epoch, epoch)
}

// ContinueCluster is CreateCluster for a life that began in epoch floor and has come
// to epoch since, in a process that is no more. What its guests send from now on has
// the colour epoch, so that must not be below the newest cut that any guest of this
// node may have passed: a colour that is too old would let frames out of an uplink
// that a restart undoes. Being newer does no harm, since this node then refuses to
// begin a cut of that epoch.
func (f *Fabric) ContinueCluster(name string, floor, epoch uint64) error {
	if err := checkName("cluster", name); err != nil {
		return err
	}
	if epoch < floor {
		return fmt.Errorf("continue cluster %s: epoch %d is before %d, in which its life began", name, epoch, floor)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return fmt.Errorf("create cluster %s: %w", name, ErrClosed)
	}
	if c := f.clusters[name]; c != nil {
		if c.floor != floor {
			return fmt.Errorf("create cluster %s in epoch %d: lives here since epoch %d: %w", name, floor, c.floor, ErrExists)
		}
		return nil
	}
	c := &cluster{
		name:     name,
		floor:    floor,
		fabric:   f,
		done:     make(chan struct{}),
		networks: make(map[string]*network),
		ports:    make(map[PortKey]*Port),
		links:    make(map[string]*link),
		inbound:  make(map[string]*inbound),
		gates:    make(map[string]*time.Timer),
	}
	c.epoch.Store(epoch)
	f.clusters[name] = c
	return nil
}

// RemoveCluster ends a cluster's life on this node: its ports are detached and
// its links closed, with all frames in them. It returns when no goroutine of
// the cluster is left. An unknown cluster is no error.
func (f *Fabric) RemoveCluster(name string) error {
	f.mu.Lock()
	c := f.clusters[name]
	delete(f.clusters, name)
	f.mu.Unlock()
	if c == nil {
		return nil
	}
	if err := c.close(); err != nil {
		return fmt.Errorf("remove cluster %s: %w", name, err)
	}
	return nil
}

// SetPeers tells which other nodes hold guests of the cluster, where, and with which
// NICs. Links to nodes not in the list are closed with what is in them. This node
// itself is skipped, so that all nodes may be given the same list.
func (f *Fabric) SetPeers(cluster string, peers []Peer) error {
	c, err := f.clusterNamed(cluster)
	if err == nil {
		err = c.setPeers(peers)
	}
	if err != nil {
		return fmt.Errorf("set peers of cluster %s: %w", cluster, err)
	}
	return nil
}

// ClusterStats returns the counters of a cluster.
func (f *Fabric) ClusterStats(cluster string) (ClusterStats, error) {
	c, err := f.clusterNamed(cluster)
	if err != nil {
		return ClusterStats{}, fmt.Errorf("stats of cluster %s: %w", cluster, err)
	}
	s := ClusterStats{
		Epoch:    c.epoch.Load(),
		Stale:    c.stale.Load(),
		NoDomain: c.noDomain.Load(),
		Closed:   c.lost.Load(),
		Doubtful: c.doubtful.Load(),
		Spoofed:  c.spoofed.Load(),
	}
	c.mu.Lock()
	links := c.links
	c.mu.Unlock()
	for _, node := range slices.Sorted(maps.Keys(links)) {
		s.Links = append(s.Links, links[node].stats())
	}
	for _, u := range c.uplinks() {
		s.Uplinks = append(s.Uplinks, u.snapshot())
	}
	s.Ports = c.portStatus()
	slices.SortFunc(s.Uplinks, func(a, b UplinkStats) int { return strings.Compare(a.Network, b.Network) })
	return s, nil
}

func (c *cluster) setPeers(peers []Peer) error {
	want := make(map[string]Peer, len(peers))
	var errs []error
	for _, p := range peers {
		if err := errors.Join(checkName("peer", p.Node), checkName("address of peer "+p.Node, p.Address)); err != nil {
			errs = append(errs, err)
		}
		if _, twice := want[p.Node]; twice {
			errs = append(errs, fmt.Errorf("peer %s: given twice", p.Node))
		}
		want[p.Node] = p
	}
	delete(want, c.fabric.cfg.Node)
	bound, err := bindingsOf(want)
	if err := errors.Join(append(errs, err)...); err != nil {
		return err
	}
	gone, err := c.replaceLinks(want, bound)
	for _, l := range gone {
		l.close()
	}
	return err
}

// bindings are the nodes of NICs, by network and address.
type bindings map[string]map[macAddress]string

// bindingsOf collects the NICs of all peers.
func bindingsOf(peers map[string]Peer) (bindings, error) {
	bound := bindings{}
	var errs []error
	for _, node := range slices.Sorted(maps.Keys(peers)) {
		for _, card := range peers[node].Cards {
			if err := errors.Join(checkName("network", card.Network), checkMAC(card.MAC)); err != nil {
				errs = append(errs, fmt.Errorf("peer %s: %w", node, err))
				continue
			}
			if bound[card.Network] == nil {
				bound[card.Network] = map[macAddress]string{}
			}
			mac := macAddress(card.MAC)
			if other, twice := bound[card.Network][mac]; twice {
				errs = append(errs, fmt.Errorf("peer %s: mac %s in network %s belongs to peer %s: %w", node, card.MAC, card.Network, other, ErrExists))
			}
			bound[card.Network][mac] = node
		}
	}
	return bound, errors.Join(errs...)
}

// replaceLinks keeps, moves and makes links so that there is one for each
// wanted peer, and returns the others for closing.
func (c *cluster) replaceLinks(want map[string]Peer, bound bindings) (gone []*link, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, ErrClosed
	}
	links := make(map[string]*link, len(want))
	for node, p := range want {
		if l := c.links[node]; l != nil {
			l.setAddress(p.Address)
			links[node] = l
			continue
		}
		l, run := newLink(c, p)
		links[node] = l
		go run() // ended by link.close, which waits for it
	}
	for node, l := range c.links {
		if links[node] == nil {
			gone = append(gone, l)
			if in := c.inbound[node]; in != nil && in.conn != nil {
				hangUp(in.conn)
			}
		}
	}
	c.links, c.bound = links, bound
	for _, n := range c.networks {
		n.setLinks(links, bound[n.name])
	}
	return gone, nil
}

// addPort registers p and joins it to its network.
func (c *cluster) addPort(p *Port, name string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return ErrClosed
	}
	if c.ports[p.key] != nil {
		return fmt.Errorf("nic: %w", ErrExists)
	}
	n, err := c.networkLocked(name)
	if err != nil {
		return err
	}
	p.network = n
	if err := n.addPort(p); err != nil {
		return err
	}
	c.ports[p.key] = p
	return nil
}

// networkLocked returns the network of that name and makes it when it is new.
//
// Preconditions: mu is held.
func (c *cluster) networkLocked(name string) (*network, error) {
	if n := c.networks[name]; n != nil {
		return n, nil
	}
	n := newNetwork(c, name)
	for _, other := range c.networks {
		if other.id == n.id {
			return nil, fmt.Errorf("networks %s and %s have the same id: rename one", name, other.name)
		}
	}
	n.setLinks(c.links, c.bound[name])
	c.networks[name] = n
	return n, nil
}

func (c *cluster) dropPort(p *Port) {
	p.network.dropPort(p)
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.ports, p.key)
}

func (c *cluster) networkByID(id uint64) *network {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range c.networks {
		if n.id == id {
			return n
		}
	}
	return nil
}

// allPorts returns the ports in the order of their keys.
func (c *cluster) allPorts() []*Port {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.portsLocked()
}

// portsOf returns the ports of one guest.
func (c *cluster) portsOf(guest string) []*Port {
	return slices.DeleteFunc(c.allPorts(), func(p *Port) bool { return p.key.Guest != guest })
}

// portsLocked is allPorts for callers that hold mu.
func (c *cluster) portsLocked() []*Port {
	return slices.SortedFunc(maps.Values(c.ports), func(a, b *Port) int {
		if a.key.Guest != b.key.Guest {
			return strings.Compare(a.key.Guest, b.key.Guest)
		}
		return strings.Compare(a.key.NIC, b.key.NIC)
	})
}

// close ends the cluster's life and waits for its goroutines.
func (c *cluster) close() error {
	c.mu.Lock()
	c.closed = true
	links := c.links
	for _, in := range c.inbound {
		if in.conn != nil {
			hangUp(in.conn)
		}
	}
	for _, t := range c.gates {
		t.Stop()
	}
	clear(c.gates)
	c.changed.raise()
	c.mu.Unlock()

	close(c.done)
	var errs []error
	for _, u := range c.uplinks() {
		errs = append(errs, u.close())
	}
	for _, p := range c.allPorts() {
		errs = append(errs, p.Detach())
	}
	for _, l := range links {
		l.close()
	}
	c.handlers.Wait()
	return errors.Join(errs...)
}
