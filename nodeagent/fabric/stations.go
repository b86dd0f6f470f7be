package fabric

import (
	"container/list"
	"time"
)

// Limits of what a network learns. A bound address takes no room of them.
const (
	// stationAge is how long a learnt address is good after its last frame, the
	// default of IEEE 802.1D.
	stationAge = 300 * time.Second
	// maxBehindPort bounds the addresses learnt behind one NIC: those of virtual
	// machines or containers inside the guest, of which a large host runs some
	// hundreds. A table of that size takes about 200 KiB.
	maxBehindPort = 1024
	// maxBehindTrunk bounds the addresses learnt behind the uplink, or behind one
	// other node, where many stations are.
	maxBehindTrunk = 8192
)

// station is where frames for an address go: a local port, the uplink or another node.
type station struct {
	port    *Port  // nil: not a local guest
	outside bool   // behind the uplink
	node    string // when neither
}

// room is how many addresses are learnt behind a station.
func (s station) room() int {
	if s.port != nil {
		return maxBehindPort
	}
	return maxBehindTrunk
}

// stations is the address table of one network.
//
// The address of each NIC in the specification is bound to the NIC's port, or to
// its node. A binding does not age, and no frame moves it. Any other unicast
// address is learnt: it is where its last frame came from. A guest may
// therefore use more addresses than its own (another one that its administrator
// set, a virtual router's, those of machines inside it), and these may move. What
// is learnt behind one station is bounded: a new address evicts the one that was
// silent for longest. A station that makes up addresses so forgets its own
// only, and frames for a forgotten address are flooded.
//
// Concurrency: guarded by network.mu.
type stations struct {
	bound  map[macAddress]station
	learnt map[macAddress]*list.Element // of *sighting, in behind
	behind map[station]*list.List       // of *sighting, by when they were last seen, newest first
}

// sighting is a learnt address.
type sighting struct {
	addr macAddress
	at   station
	seen time.Time // last frame from it
}

func newStations() stations {
	return stations{
		bound:  map[macAddress]station{},
		learnt: map[macAddress]*list.Element{},
		behind: map[station]*list.List{},
	}
}

// bind fixes an address to a station.
func (t *stations) bind(addr macAddress, at station) {
	t.forget(addr)
	t.bound[addr] = at
}

// lookup finds the station of an address.
func (t *stations) lookup(addr macAddress, now time.Time) (station, bool) {
	if at, ok := t.bound[addr]; ok {
		return at, true
	}
	e, ok := t.learnt[addr]
	if !ok {
		return station{}, false
	}
	s := e.Value.(*sighting)
	return s.at, now.Sub(s.seen) < stationAge
}

// learn remembers that a frame from addr came from a station. False: the address is
// bound to another one, so the frame claims a NIC that has not sent it.
func (t *stations) learn(addr macAddress, from station, now time.Time) bool {
	if addr.isGroup() {
		return true
	}
	if at, ok := t.bound[addr]; ok {
		return at == from
	}
	if e, ok := t.learnt[addr]; ok {
		s := e.Value.(*sighting)
		if s.at == from {
			s.seen = now
			t.behind[from].MoveToFront(e)
			return true
		}
		t.forget(addr)
	}
	row := t.behind[from]
	if row == nil {
		row = list.New()
		t.behind[from] = row
	}
	if row.Len() >= from.room() {
		t.forget(row.Back().Value.(*sighting).addr)
	}
	t.learnt[addr] = row.PushFront(&sighting{addr: addr, at: from, seen: now})
	return true
}

// forget drops a learnt address.
func (t *stations) forget(addr macAddress) {
	e, ok := t.learnt[addr]
	if !ok {
		return
	}
	delete(t.learnt, addr)
	t.behind[e.Value.(*sighting).at].Remove(e)
}

// drop forgets a station and every address behind it.
func (t *stations) drop(at station) {
	if row := t.behind[at]; row != nil {
		for e := row.Front(); e != nil; e = e.Next() {
			delete(t.learnt, e.Value.(*sighting).addr)
		}
		delete(t.behind, at)
	}
	for addr, s := range t.bound {
		if s == at {
			delete(t.bound, addr)
		}
	}
}
