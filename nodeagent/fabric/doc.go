// Package fabric is the Ethernet switch of a node. It owns every frame
// between the guests of a cluster: from the moment a guest's QEMU has sent it to
// the moment the receiver's QEMU has read it, it is in memory of this package or
// in a socket this package can read. That makes it possible to cut a cluster at
// one consistent instant and lose, double or reorder no frame, whatever its
// protocol. The fabric does not stop guests, does not store what it records and
// does not know of rounds. It passes no frame from one cluster to another.
//
// # Parts
//
//	            node A                                  node B
//	guest ══ Port ─┐                              ┌─ Port ══ guest
//	               ├─ network ─ link ──TCP──▶ ────┤
//	guest ══ Port ─┘          ◀──TCP── link ──────┘
//
// A Port is a guest NIC: a reader goroutine switches what the guest sends, straight
// into the receiver's socket when nothing waits there; a writer goroutine feeds
// what waits in the port's queue to the guest. A network
// is one Ethernet domain of one cluster; it knows the addresses of the NICs, learns
// others and floods what it does not know. A link carries one cluster's frames from this node to one peer.
// An uplink joins a network to a device of the node, on one node of the cluster.
// The wire format is drawn in record.go and hello.go, recorded frames in
// framelist.go.
//
// # Invariants
//
//	F1  Frames from one NIC to another arrive in the order they were sent: one
//	    reader, one queue or one link and its one receiver, one who writes at a time.
//	F2  Each frame arrives at most once, and exactly once unless a counter in
//	    Drops or ClusterStats says why not. A reset connection is no reason:
//	    link records are numbered, kept until acknowledged, and sent again. To a
//	    node whose fabric was replaced they are not, once they were sent: its
//	    predecessor may have delivered them.
//	F3  Nothing enters a gated port's socket.
//	F4  While a cut is open, no frame from behind it is delivered to a guest before
//	    the guest's own point on it. Who was not patient enough, or has never
//	    begun the cut, cannot take it: Recolour refuses (ErrOrphan).
//	F5  All queues are bounded. A full one holds up its sources: guests of this
//	    node, and by a hold those guests of other nodes that send to it, but not the
//	    link they share with others. Only a guest that takes no frames for StallTime
//	    while its port is open and its queue full has frames dropped.
//	F6  Frames of an earlier life of a cluster are refused: each life has a floor,
//	    both ends of a link must agree on it, and no frame is below it.
//	F7  With OutsideHold no frame goes out before a checkpoint is durable whose cut
//	    its sender has passed since. The world outside may lose frames: what waits
//	    goes with the life of the cluster, and with the agent.
//	F8  A frame for a NIC of the specification goes to that NIC, whatever source
//	    addresses others claim. Addresses that are learnt are bounded for each
//	    station (stations.go).
//
// What F2 cannot cover: a fabric that is lost takes its queues with it, and what its
// peers have sent and it has not acknowledged. Its peers
// keep what they have for it, and hold up their guests when that is full, until
// the cluster is restarted or the node is no peer any more.
//
// # Taking a cut
//
// Each node, for the epoch E of the round:
//
//	BeginCut(E, members, patience)
//	for each guest, by itself:
//	    port.Gate, port.Drain   each NIC, the guest runs
//	    (stop the guest)
//	    port.Reclaim            each NIC whose Drain failed
//	    Recolour(E, guest)      the guest's point on the cut
//	    (resume the guest)
//	    port.Ungate             each NIC
//	SendMarkers(E)              when all guests of the node have theirs
//	WaitMarkers(E)
//	ChannelState(E)
//	EndCut(E)
//
// To give up at any step: resume the guests, Ungate, EndCut.
//
// Every frame carries its sender's colour: the epoch of the last cut the sender has
// passed. At its receiver it is one of four kinds:
//
//	          receiver before its point       receiver behind its point
//	older     delivered                       delivered and recorded
//	newer     waits, older ones pass it       delivered
//
// So nothing sent behind a sender's point gets into a receiver's image, and what was
// sent before and not received before is in the record. A node sends its markers when
// no guest of it can send older frames any more; links are FIFO, so a member's marker
// comes after all of them. When all markers are in, the record is whole. No guest
// waits for another: only early frames do.
//
// A barrier cut makes the same calls and resumes no guest before WaitMarkers, so that
// no frame is ever early. It is for guests that also exchange frames past the fabric.
//
// Newer frames that wait are kept apart from the queue (early.go). The queue itself
// may hold frames of both colours mixed, of different senders. F1
// concerns the frames of one sender, and those are in order before and after
// the older ones are taken out.
//
// # Draining
//
// A frame in the guest's socket is in no image, so before the stop the socket
// must be empty. That is not enough: QEMU reads one datagram at a time, keeps it
// inside when the guest's receive ring has no room, reads no more until it is
// placed, and throws it away when the guest is stopped. So Drain sends one frame
// more, a sentinel, and waits until that has been read. QEMU reads it only when
// it holds nothing else; everything before it is then in the guest's memory. The
// sentinel itself may be thrown away or reach the guest: its destination is an
// address no NIC has, so the device model filters it out, and its EtherType is
// one that nothing listens for.
//
// A guest without a driver, or one too slow, never takes the frames. Drain then
// returns ErrUndrained at its deadline. The guest can be stopped all the same:
// Reclaim receives what is unread through the fabric's own descriptor of the
// guest's end and puts it back in front of the queue. Of such a NIC the frame
// that QEMU held at the stop is lost, and one more that QEMU reads when stopped
// is kept by it and delivered when it resumes, but is not in the image.
//
// In the other direction nothing may wait inside QEMU either, since a stop would
// purge it. The fabric therefore has a large socket buffer in that direction,
// from BeginCut on lets links take as much as a hold queue, as gated ports do,
// and Drain waits until that has freed the sockets of guests that were held up.
// What the socket still holds when the guest is stopped, Recolour has switched.
//
// # Restart
//
// CreateCluster with an epoch above all earlier ones, Attach with Gated, Inject
// the recorded frames, and Ungate when the guest runs.
//
// # Concurrency
//
// Lock order (outermost first):
//
//	Fabric.mu
//	  cluster.mu
//	    network.mu
//	    uplink.mu
//	    link.mu
//	    Port.mu
//	      inbound.mu
//
// No lock is held across anything that can wait, except Port.mu by Gate, which
// waits on the condition of that mutex for the writer to let go.
package fabric
