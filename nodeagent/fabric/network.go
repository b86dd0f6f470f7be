package fabric

import (
	"crypto/sha256"
	"encoding/binary"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// maxStations bounds the addresses a network remembers, so that a guest that
	// makes up addresses cannot take memory. Beyond it frames are flooded.
	maxStations = 8192
	// stationAge is how long an address is remembered after its last frame, the
	// default of IEEE 802.1D.
	stationAge = 300 * time.Second
	// sweepInterval spaces the searches of a full table for aged addresses. Each
	// looks at all of it, and a frame must not cost that.
	sweepInterval = time.Second
)

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
	stations map[macAddress]station
	swept    time.Time // last search for aged stations
}

// station is where frames for an address go: a local port, the uplink or another node.
type station struct {
	port    *Port     // nil: not a local guest
	outside bool      // behind the uplink
	node    string    // when neither
	own     bool      // a NIC's configured address: never learnt away, never forgotten
	seen    time.Time // last frame from it
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
		stations: make(map[macAddress]station),
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
	defer n.mu.Unlock()
	n.learn(src, from, now)
	if !dst.isGroup() {
		to, known = n.stations[dst]
		known = known && (to.own || now.Sub(to.seen) < stationAge) && n.reaches(to)
	}
	return to, known, outlets{ports: n.ports, links: n.links, uplink: n.uplink}
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

// learn remembers where addr was seen.
//
// Preconditions: mu is held.
func (n *network) learn(addr macAddress, from station, now time.Time) {
	if addr.isGroup() {
		return
	}
	old, known := n.stations[addr]
	if old.own {
		return
	}
	if !known && len(n.stations) >= maxStations && !n.forgetOld(now) {
		return
	}
	from.seen = now
	n.stations[addr] = from
}

// forgetOld makes room by dropping aged addresses and tells whether it did. A
// full table of young ones is left alone: flooding is right, only slower.
//
// Preconditions: mu is held.
func (n *network) forgetOld(now time.Time) bool {
	if now.Sub(n.swept) < sweepInterval {
		return false
	}
	n.swept = now
	before := len(n.stations)
	maps.DeleteFunc(n.stations, func(_ macAddress, s station) bool {
		return !s.own && now.Sub(s.seen) >= stationAge
	})
	return len(n.stations) < before
}

// addPort joins p. False: its address is another port's.
func (n *network) addPort(p *Port) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.stations[p.mac].own {
		return false
	}
	n.ports = append(slices.Clone(n.ports), p)
	n.stations[p.mac] = station{port: p, own: true}
	return true
}

// dropPort forgets p and every address behind it.
func (n *network) dropPort(p *Port) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ports = slices.DeleteFunc(slices.Clone(n.ports), func(q *Port) bool { return q == p })
	maps.DeleteFunc(n.stations, func(_ macAddress, s station) bool { return s.port == p })
}

// setLinks replaces the links and forgets the addresses behind those gone.
// links must not change any more.
func (n *network) setLinks(links map[string]*link) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.links = links
	maps.DeleteFunc(n.stations, func(_ macAddress, s station) bool {
		return s.port == nil && !s.outside && links[s.node] == nil
	})
}
