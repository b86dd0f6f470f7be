package fabric

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// spoofLogInterval spaces the warnings of one network about frames that claim
// another NIC's address: a guest must not fill the log.
const spoofLogInterval = time.Minute

// network is one Ethernet broadcast domain of a cluster.
type network struct {
	cluster *cluster // immutable
	name    string   // immutable
	id      uint64   // immutable

	traces atomic.Pointer[[]*trace] // never nil; the list is replaced under mu, never changed in place

	mu sync.Mutex
	// All guarded by mu. ports and links are replaced, never changed in place, so
	// that a frame is flooded without mu.
	ports    []*Port
	links    map[string]*link // by node
	uplink   *uplink          // nil: none on this node
	stations stations

	spoofLogged atomic.Int64 // when the last spoofed frame was logged, Unix time in nanoseconds
}

// outlets are all ways out of a network on this node.
type outlets struct {
	ports  []*Port
	links  map[string]*link
	uplink *uplink // nil: none
}

func newNetwork(c *cluster, name string) *network {
	n := &network{
		cluster:  c,
		name:     name,
		id:       networkID(c.name, name),
		stations: newStations(),
	}
	n.traces.Store(new([]*trace))
	return n
}

// networkID is what link records carry for a network: the same on all nodes
// without any agreement. Two networks of one cluster with one id are refused
// when the second is made.
func networkID(cluster, network string) uint64 {
	sum := sha256.Sum256([]byte(cluster + "\x00" + network))
	return binary.LittleEndian.Uint64(sum[:8])
}

// switchFromPort sends frames of a local guest on their way, at most batchSize, in
// order. It waits while a destination is full.
func (n *network) switchFromPort(src *Port, frames []frame) {
	var to *Port // of the frames from begin on
	begin := 0
	flush := func(end int) {
		if to != nil {
			to.enqueueAll(frames[begin:end], src.done)
		}
		to = nil
	}
	for i, fr := range frames {
		n.tell(src, fr.epoch, fr.data)
		st, known, all := n.route(station{port: src}, fr.data)
		if known && st.port != nil && st.port == to {
			continue
		}
		flush(i)
		if known && st.port != nil && st.port != src {
			to, begin = st.port, i
			continue
		}
		n.forward(src, fr, st, known, all)
	}
	flush(len(frames))
}

// forward sends a frame to where it goes but one local guest.
func (n *network) forward(src *Port, fr frame, to station, known bool, all outlets) {
	if known {
		switch {
		case to.port == src:
		case to.outside:
			all.uplink.send(fr)
		default:
			n.sendOver(all.links[to.node], src, fr)
		}
		return
	}
	for _, p := range all.ports {
		if p != src {
			p.enqueue(fr, src.done)
		}
	}
	for _, l := range all.links {
		n.sendOver(l, src, fr)
	}
	if all.uplink != nil {
		all.uplink.send(fr)
	}
}

func (n *network) sendOver(l *link, src *Port, fr frame) {
	if !l.sendFrame(n.id, fr, src.done) {
		src.counters.closed.Add(1)
	}
}

// switchFromLink delivers a frame of another node to the local guests it
// concerns, or to the outside. It never goes out on a link again: nodes are fully
// meshed.
func (n *network) switchFromLink(in *inbound, fr frame, stop <-chan struct{}) {
	to, known, all := n.route(station{node: in.node}, fr.data)
	if known {
		switch {
		case to.port != nil:
			to.port.enqueueFrom(in, fr, stop)
		case to.outside:
			all.uplink.send(fr)
		}
		return
	}
	for _, p := range all.ports {
		p.enqueue(fr, stop)
	}
	if all.uplink != nil {
		all.uplink.send(fr)
	}
}

// switchFromUplink sends a frame from outside on its way. It has no colour: nothing
// that is rolled back has sent it.
func (n *network) switchFromUplink(u *uplink, data []byte) {
	fr := frame{data: data, epoch: colourless}
	to, known, all := n.route(station{outside: true}, data)
	if known {
		switch {
		case to.outside:
		case to.port != nil:
			to.port.enqueue(fr, u.done)
		default:
			all.links[to.node].sendFrame(n.id, fr, u.done)
		}
		return
	}
	for _, p := range all.ports {
		p.enqueue(fr, u.done)
	}
	for _, l := range all.links {
		l.sendFrame(n.id, fr, u.done)
	}
}

// route learns where the frame's sender is and tells where it goes: to one
// station when known, else to all outlets.
func (n *network) route(from station, data []byte) (to station, known bool, all outlets) {
	src, dst := source(data), destination(data)
	now := time.Now()
	n.mu.Lock()
	genuine := n.stations.learn(src, from, now)
	if !dst.isGroup() {
		to, known = n.stations.lookup(dst, now)
		known = known && n.reaches(to)
	}
	all = outlets{ports: n.ports, links: n.links, uplink: n.uplink}
	n.mu.Unlock()
	if !genuine {
		n.noteSpoofed(from, src, all.uplink, now)
	}
	return to, known, all
}

// noteSpoofed counts a frame whose source address is bound to another station. It is
// delivered all the same: the receiver may trust an address or not, but nothing that
// is meant for its owner goes to the sender.
func (n *network) noteSpoofed(from station, src macAddress, up *uplink, now time.Time) {
	where := []any{"node", from.node}
	switch {
	case from.port != nil:
		from.port.counters.spoofed.Add(1)
		where = []any{"guest", from.port.key.Guest, "nic", from.port.key.NIC}
	case from.outside:
		if up != nil {
			up.spoofed.Add(1)
		}
		where = []any{"uplink", true}
	default:
		n.cluster.spoofed.Add(1)
	}
	last := n.spoofLogged.Load()
	if now.Sub(time.Unix(0, last)) < spoofLogInterval || !n.spoofLogged.CompareAndSwap(last, now.UnixNano()) {
		return
	}
	n.cluster.fabric.log.Warn("frame claims the address of another nic: delivered, not learnt",
		append([]any{"cluster", n.cluster.name, "network", n.name, "mac", net.HardwareAddr(src[:])}, where...)...)
}

// reaches tells whether there still is a way to a station.
//
// Preconditions: mu is held.
func (n *network) reaches(to station) bool {
	return to.port != nil || to.outside && n.uplink != nil || !to.outside && n.links[to.node] != nil
}

// setUplink joins u. False: there is one.
func (n *network) setUplink(u *uplink) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.uplink != nil {
		return false
	}
	n.uplink = u
	return true
}

func (n *network) theUplink() *uplink {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.uplink
}

// addPort joins p. Its address must not be bound yet.
func (n *network) addPort(p *Port) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if at, taken := n.stations.bound[p.mac]; taken {
		holder := "node " + at.node
		if at.port != nil {
			holder = "nic " + at.port.key.String()
		}
		return fmt.Errorf("mac %s in network %s belongs to %s: %w", net.HardwareAddr(p.mac[:]), n.name, holder, ErrExists)
	}
	n.ports = append(slices.Clone(n.ports), p)
	n.stations.bind(p.mac, station{port: p})
	return nil
}

// dropPort forgets p and every address behind it.
func (n *network) dropPort(p *Port) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ports = slices.DeleteFunc(slices.Clone(n.ports), func(q *Port) bool { return q == p })
	n.stations.drop(station{port: p})
}

// setLinks replaces the links and the addresses bound to their nodes, and forgets the
// addresses behind nodes that are gone. links must not change any more. An address of
// a port of this node stays the port's.
func (n *network) setLinks(links map[string]*link, bound map[macAddress]string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for node := range n.links {
		if links[node] == nil {
			n.stations.drop(station{node: node})
		}
	}
	n.links = links
	maps.DeleteFunc(n.stations.bound, func(_ macAddress, at station) bool { return at.port == nil })
	for addr, node := range bound {
		if n.stations.bound[addr].port == nil {
			n.stations.bind(addr, station{node: node})
		}
	}
}
