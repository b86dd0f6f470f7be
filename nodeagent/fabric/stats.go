package fabric

import (
	"sync/atomic"
	"time"
)

// PortStats counts the frames of one NIC since it was attached.
type PortStats struct {
	Received  uint64 // by the fabric, from the guest
	Sent      uint64 // by the fabric, to the guest
	Held      uint64 // came while the NIC was gated
	Recorded  uint64 // became channel state of a cut
	Early     uint64 // how often a frame from behind a cut had to wait for the guest's own point
	Reclaimed uint64 // taken back from a stopped guest
	Injected  uint64 // put in at a restart
	Spoofed   uint64 // came from the guest with the address of another NIC; delivered, not learnt

	Waiting      uint64 // frames now in the NIC's queue
	WaitingBytes uint64 // their memory
	Gated        bool
	Stalled      bool // the guest does not take frames
	// EarlyFor is for how long frames from behind the open cut have waited for the guest's
	// own point on it; 0: none does.
	EarlyFor time.Duration

	Dropped Drops
}

// Drops counts the frames of one NIC that were thrown away, by reason.
type Drops struct {
	Runt    uint64 // from the guest, shorter than MinFrame
	Giant   uint64 // from the guest, longer than MaxFrame
	Stalled uint64 // to the guest, which did not take frames for StallTime
	Socket  uint64 // to the guest, refused by the kernel
	Closed  uint64 // to or from the guest while the NIC was being detached
}

// Total is the sum over all reasons.
func (d Drops) Total() uint64 { return d.Runt + d.Giant + d.Stalled + d.Socket + d.Closed }

// ByReason is d by the names of the reasons.
func (d Drops) ByReason() map[string]uint64 {
	return map[string]uint64{"runt": d.Runt, "giant": d.Giant, "stalled": d.Stalled, "socket": d.Socket, "closed": d.Closed}
}

// ClusterStats counts what concerns no single NIC of a cluster.
type ClusterStats struct {
	Epoch    uint64 // present epoch
	Stale    uint64 // frames and links of an earlier life of the cluster, refused
	NoDomain uint64 // frames for a network without a NIC on this node
	Closed   uint64 // frames that a removed peer or cluster left on a link
	Doubtful uint64 // frames of peers given up, as an earlier process of this node may have delivered them
	Spoofed  uint64 // frames that came over a link with the address of a NIC that is not on its node
	Links    []LinkStats
	Uplinks  []UplinkStats // on this node
	Ports    []PortStatus  // of this node's guests
}

// LinkStats is the state of the link to one peer.
type LinkStats struct {
	Node         string
	Connected    bool
	Connects     uint64 // connections that came up; above 1 the link was resumed
	Waiting      uint64 // frames not yet acknowledged
	WaitingBytes uint64 // their memory
}

// portCounters are the counters behind PortStats.
type portCounters struct {
	received, sent, held, recorded, early, reclaimed, injected, spoofed atomic.Uint64

	runt, giant, stalled, socket, closed atomic.Uint64
}

func (c *portCounters) stats() PortStats {
	return PortStats{
		Received:  c.received.Load(),
		Sent:      c.sent.Load(),
		Held:      c.held.Load(),
		Recorded:  c.recorded.Load(),
		Early:     c.early.Load(),
		Reclaimed: c.reclaimed.Load(),
		Injected:  c.injected.Load(),
		Spoofed:   c.spoofed.Load(),
		Dropped: Drops{
			Runt:    c.runt.Load(),
			Giant:   c.giant.Load(),
			Stalled: c.stalled.Load(),
			Socket:  c.socket.Load(),
			Closed:  c.closed.Load(),
		},
	}
}
