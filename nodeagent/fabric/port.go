package fabric

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// PortKey names a NIC within its cluster.
type PortKey struct {
	Guest string
	NIC   string
}

func (k PortKey) String() string { return k.Guest + "/" + k.NIC }

// PortConfig says what Attach joins to the fabric.
type PortConfig struct {
	Cluster string // must have been created
	Network string
	Guest   string
	NIC     string
	// MAC is the NIC's configured address. It is bound to the port. Guests may use
	// further addresses; those are learnt.
	MAC net.HardwareAddr

	// FabricEnd and GuestEnd come from NewPair. Attach owns both from the moment
	// it is called. GuestEnd stays open until Detach and may be given to QEMU
	// until then.
	FabricEnd *os.File
	GuestEnd  *os.File

	// Gated attaches the NIC with its gate closed, for a guest that does not run yet.
	Gated bool
}

// Port is one guest NIC on the switch.
//
// Concurrency: safe for use by several goroutines; the steps of a cut (Gate,
// Drain, Reclaim, Ungate) by one at a time.
type Port struct {
	key     PortKey    // immutable
	mac     macAddress // immutable
	cluster *cluster   // immutable
	network *network   // immutable
	fabric  *Fabric    // immutable
	wire    *wire      // immutable

	done     chan struct{}  // closed when Detach begins
	workers  sync.WaitGroup // reader and writer
	detach   sync.Once
	closeErr error // written inside detach

	busy atomic.Bool // the reader has, or may have, a frame that is not switched yet

	// epoch is the guest's colour, stamped on what it sends: the epoch of the last
	// cut the guest has passed. It changes under mu, while the guest is stopped
	// and nothing it sent waits to be switched.
	epoch atomic.Uint64

	counters portCounters

	mu      sync.Mutex
	settled sync.Cond   // on mu: queue, gate or writing changed, for the writer and Gate
	queue   fifo[frame] // guarded by mu; the hold queue while gated
	bytes   int         // guarded by mu; cost of queue
	room    signal      // guarded by mu; raised when the queue may take more
	gated   bool        // guarded by mu
	closed  bool        // guarded by mu
	// writing is true while somebody sends without holding mu: the writer the
	// queue's front, which is then not to be touched, or sendAtOnce a frame that
	// comes before all of the queue. Guarded by mu.
	writing bool
	// stalled is true while the guest takes no frames; stallMark is what it had
	// left unread when that was found. Guarded by mu.
	stalled   bool
	stallMark int
	newest    uint64     // guarded by mu; highest epoch of a frame sent to the guest
	held      []heldBack // guarded by mu; what other nodes hold back for the guest
	channel   channel    // guarded by mu; of the open cut
	// early is since when frames from behind the open cut wait for the guest's own point;
	// zero: none does. parked are these frames: others pass them. Guarded by mu.
	early       time.Time
	parked      fifo[frame]
	parkedBytes int
}

// Attach joins a NIC to its network and begins to switch its frames.
//
// On error both files are closed.
func (f *Fabric) Attach(cfg PortConfig) (*Port, error) {
	p, err := f.attach(cfg)
	if err != nil {
		err = fmt.Errorf("attach nic %s/%s of cluster %s: %w", cfg.Guest, cfg.NIC, cfg.Cluster, err)
		for _, end := range []*os.File{cfg.FabricEnd, cfg.GuestEnd} {
			if end != nil {
				err = errors.Join(err, end.Close())
			}
		}
		return nil, err
	}
	return p, nil
}

func (f *Fabric) attach(cfg PortConfig) (*Port, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	c, err := f.clusterNamed(cfg.Cluster)
	if err != nil {
		return nil, err
	}
	w, err := newWire(cfg.FabricEnd, cfg.GuestEnd)
	if err != nil {
		return nil, err
	}
	p := &Port{
		key:     PortKey{Guest: cfg.Guest, NIC: cfg.NIC},
		mac:     macAddress(cfg.MAC),
		cluster: c,
		fabric:  f,
		wire:    w,
		done:    make(chan struct{}),
		gated:   cfg.Gated,
	}
	p.settled.L = &p.mu
	p.epoch.Store(c.epoch.Load())
	p.workers.Add(2) // before others see the port: its cluster may end at once
	if err := c.addPort(p, cfg.Network); err != nil {
		return nil, errors.Join(err, w.unwatch())
	}
	go p.read()
	go p.write()
	return p, nil
}

func (cfg PortConfig) validate() error {
	errs := []error{
		checkName("network", cfg.Network), checkName("guest", cfg.Guest), checkName("nic", cfg.NIC), checkMAC(cfg.MAC),
	}
	if cfg.FabricEnd == nil || cfg.GuestEnd == nil {
		errs = append(errs, errors.New("socket pair: an end is missing"))
	}
	return errors.Join(errs...)
}

// checkMAC refuses what cannot be a NIC's address.
func checkMAC(mac net.HardwareAddr) error {
	switch {
	case len(mac) != 6:
		return fmt.Errorf("mac %q: not 6 bytes", mac)
	case macAddress(mac).isGroup():
		return fmt.Errorf("mac %s: group address", mac)
	case [3]byte(mac) == sentinelPrefix:
		return fmt.Errorf("mac %s: reserved for the fabric", mac)
	}
	return nil
}

// Key names the port.
func (p *Port) Key() PortKey { return p.key }

// Network is the name of the port's network.
func (p *Port) Network() string { return p.network.name }

// Stats returns the port's counters.
func (p *Port) Stats() PortStats {
	s := p.counters.stats()
	p.mu.Lock()
	defer p.mu.Unlock()
	s.Waiting, s.WaitingBytes = uint64(p.queue.len()+p.parked.len()), uint64(p.bytes+p.parkedBytes)
	s.Gated, s.Stalled = p.gated, p.stalled
	if !p.early.IsZero() {
		s.EarlyFor = time.Since(p.early)
	}
	return s
}

// Detach takes the NIC off the fabric, drops what waits for it and closes both
// ends of its wire. It returns when the port's goroutines have ended. Later
// calls return the result of the first.
func (p *Port) Detach() error {
	p.detach.Do(func() {
		close(p.done)
		p.mu.Lock()
		p.closed = true
		p.counters.closed.Add(uint64(p.queue.len() + p.parked.len()))
		p.fabric.charge(-p.bytes - p.parkedBytes)
		p.queue, p.bytes = fifo[frame]{}, 0
		p.parked, p.parkedBytes = fifo[frame]{}, 0
		p.resetChannel(false)
		p.letGo()
		p.room.raise()
		p.settled.Broadcast()
		p.mu.Unlock()
		p.closeErr = p.wire.close()
		p.workers.Wait()
		p.cluster.dropPort(p) // last: the reader learns addresses
	})
	return p.closeErr
}

// read switches what the guest sends until the port is detached.
func (p *Port) read() {
	defer p.workers.Done()
	in, buffers := newInBatch()
	working := p.busy.Store
	frames := make([]frame, 0, batchSize)
	for {
		n, err := p.wire.receive(&in, working)
		if err != nil {
			p.busy.Store(false)
			p.ended("receive from guest", err)
			return
		}
		p.counters.received.Add(uint64(n))
		// The guest's colour changes only while nothing of it waits to be switched.
		epoch := p.epoch.Load()
		frames = frames[:0]
		for i := range n {
			switch data := buffers[i][:in.headers[i].length]; {
			case len(data) < MinFrame:
				p.counters.runt.Add(1)
			case len(data) > MaxFrame:
				p.counters.giant.Add(1)
			case isSentinel(data, p.fabric.sentinel):
				// A guest that bridges two NICs sends it on; it has done its work.
			default:
				frames = append(frames, frame{data: bytes.Clone(data), epoch: epoch})
			}
		}
		p.network.switchFromPort(p, frames)
		clear(frames)
	}
}

// ended logs the end of a worker unless Detach asked for it.
func (p *Port) ended(what string, err error) {
	select {
	case <-p.done:
	default:
		p.fabric.log.Error("nic is dead", "cluster", p.cluster.name, "guest", p.key.Guest, "nic", p.key.NIC, "during", what, "error", err)
	}
}

// enqueue puts fr last in line for the guest, or straight into its socket when there
// is no line. It waits while the queue is full, until stop is closed; the frame is
// then dropped.
func (p *Port) enqueue(fr frame, stop <-chan struct{}) { p.enqueueFrom(nil, fr, stop) }

// enqueueFrom is enqueue of a frame of another node, from which others come behind it:
// before it waits it has the node hold back what is for this guest, and takes what is
// on its way.
func (p *Port) enqueueFrom(in *inbound, fr frame, stop <-chan struct{}) {
	p.mu.Lock()
	for !p.hasRoom(fr) {
		if in != nil && p.bytes+p.parkedBytes+fr.cost() <= p.fabric.cfg.QueueBytes+p.fabric.cfg.LinkBytes {
			p.holdBack(in, flow{network: p.network.id, to: destination(fr.data)})
			break
		}
		room := p.room.wait()
		p.mu.Unlock()
		select {
		case <-room:
		case <-stop:
			p.counters.closed.Add(1)
			return
		}
		p.mu.Lock()
	}
	defer p.mu.Unlock()
	if p.closed {
		p.counters.closed.Add(1)
		return
	}
	if fr.epoch == colourless {
		fr.epoch = p.epoch.Load()
	}
	if p.gated {
		p.counters.held.Add(1)
	}
	p.record(fr, p.epoch.Load())
	if p.park(fr) {
		return
	}
	if one := [1]frame{fr}; p.takesAtOnce(one[:]) {
		p.sendAtOnce(one[:])
		return
	}
	p.queue.pushBack(fr)
	p.bytes += fr.cost()
	p.fabric.charge(fr.cost())
	p.settled.Broadcast()
}

// enqueueAll is enqueue of several frames of one local sender, in order, at most
// batchSize. What the guest has no room for, when it seemed to have some, waits in the
// queue, which may be over its limit by that.
func (p *Port) enqueueAll(run []frame, stop <-chan struct{}) {
	if len(run) > 1 && p.sendRun(run) {
		return
	}
	for _, fr := range run {
		p.enqueue(fr, stop)
	}
}

// sendRun sends a run at once. False: its frames have to go one by one.
func (p *Port) sendRun(run []frame) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed || !p.takesAtOnce(run) {
		return false
	}
	for _, fr := range run {
		p.record(fr, p.epoch.Load())
	}
	p.sendAtOnce(run)
	return true
}

// takesAtOnce tells whether frames may be spared the way through the queue and the
// writer: both have nothing to do, and no parked frame has to go first.
//
// Preconditions: mu is held.
func (p *Port) takesAtOnce(run []frame) bool {
	if p.parked.len() > 0 && !p.isEarly(*p.parked.at(0)) {
		return false // their cut is over, which nobody has noticed here yet
	}
	return !p.gated && !p.writing && !p.stalled && p.queue.len() == 0 && !slices.ContainsFunc(run, p.isEarly)
}

// sendAtOnce sends frames straight to the guest. What it has no room for goes the long
// way, and so does what comes meanwhile, see writing.
//
// Preconditions: mu is held, takesAtOnce. mu is released meanwhile.
func (p *Port) sendAtOnce(run []frame) {
	p.writing = true
	p.mu.Unlock()
	n := p.wire.trySendAll(run)
	p.mu.Lock()
	p.writing = false
	for _, fr := range run[:n] {
		p.noteSent(fr)
	}
	if left := run[n:]; len(left) > 0 {
		if p.closed {
			p.counters.closed.Add(uint64(len(left)))
		} else {
			p.pushFront(left) // before what has come meanwhile
		}
	}
	if p.gated || p.closed || p.queue.len() > 0 {
		p.settled.Broadcast() // somebody waits for writing to end
	}
}

// holdBack has a node hold back a flow until half of the queue is free.
//
// Preconditions: mu is held.
func (p *Port) holdBack(in *inbound, f flow) {
	if h := (heldBack{in, f}); !slices.Contains(p.held, h) {
		p.held = append(p.held, h)
		in.want(f, true)
	}
}

// letGo has nodes go on with what they hold back.
//
// Preconditions: mu is held.
func (p *Port) letGo() {
	for _, h := range p.held {
		h.in.want(h.flow, false)
	}
	p.held = nil
}

// heldBack is a flow that a node holds back.
type heldBack struct {
	in   *inbound
	flow flow
}

// hasRoom tells whether the queue takes fr now. While a cut drains egress it
// always does: what is left is bounded by socket buffers, and a reader that
// waited here would keep the cut from ending.
//
// Preconditions: mu is held.
func (p *Port) hasRoom(fr frame) bool {
	if p.closed || p.queue.len()+p.parked.len() == 0 || p.cluster.draining.Load() > 0 {
		return true
	}
	limit := p.fabric.cfg.QueueBytes
	switch holds := p.gated || !p.early.IsZero(); {
	case holds && p.fabric.tight():
		limit = min(limit, p.fabric.cfg.HoldBytes)
	case holds:
		limit = p.fabric.cfg.HoldBytes
	}
	return p.bytes+p.parkedBytes+fr.cost() <= limit
}

// recordLimit bounds the cost of a channel. The queue may be beyond HoldBytes by
// what the sockets of a drained egress held.
func (p *Port) recordLimit() int { return 2 * p.fabric.cfg.HoldBytes }

// outcome says what became of the frame at the queue's front.
type outcome int

const (
	outcomeKept    outcome = iota // the gate closed or the port ended before it was sent
	outcomeSent                   // it is in the guest's socket
	outcomeStalled                // dropped: the guest takes no frames
	outcomeRefused                // dropped: the kernel refuses it
)

// write sends the queue to the guest until the port is detached.
func (p *Port) write() {
	defer p.workers.Done()
	p.mu.Lock()
	defer p.mu.Unlock()
	run := make([]frame, 0, batchSize)
	for {
		for !p.closed && (p.gated || p.writing || p.queue.len() == 0 || p.waitsForCut()) {
			p.settled.Wait()
		}
		if p.closed {
			return
		}
		run = p.front(run[:0])
		p.writing = true
		wasStalled := p.stalled
		mark := p.stallMark
		p.mu.Unlock()

		n, result, unread := 0, outcomeSent, 0
		if !wasStalled {
			n = p.wire.trySendAll(run)
		}
		if n == 0 {
			n = 1
			result, unread = p.deliver(run[0].data, wasStalled, mark)
		}

		p.mu.Lock()
		p.writing = false
		p.settle(run[:n], result, unread)
		clear(run)
		p.settled.Broadcast() // for Gate
	}
}

// front appends to run what may be sent of the queue, at most batchSize frames.
//
// Preconditions: mu is held, the queue is not empty and does not wait for a cut.
func (p *Port) front(run []frame) []frame {
	for i := range min(p.queue.len(), batchSize) {
		fr := *p.queue.at(i)
		if i > 0 && p.isEarly(fr) {
			break
		}
		run = append(run, fr)
	}
	return run
}

// settle takes into account what became of the frames at the queue's front.
//
// Preconditions: mu is held.
func (p *Port) settle(run []frame, result outcome, unread int) {
	if p.closed || result == outcomeKept {
		return // a closed port has no queue any more
	}
	for _, fr := range run {
		p.queue.popFront()
		p.bytes -= fr.cost()
		p.fabric.charge(-fr.cost())
		switch result {
		case outcomeSent:
			p.noteSent(fr)
			p.stalled = false
		case outcomeStalled:
			p.counters.stalled.Add(1)
			if !p.stalled {
				p.stalled, p.stallMark = true, unread
			}
		default:
			p.counters.socket.Add(1)
		}
	}
	if p.bytes <= p.fabric.cfg.QueueBytes/2 { // not for each frame: who waits has many
		p.room.raise()
		p.letGo()
	}
}

// noteSent takes into account that fr is in the guest's socket.
//
// Preconditions: mu is held.
func (p *Port) noteSent(fr frame) {
	p.counters.sent.Add(1)
	p.newest = max(p.newest, fr.epoch)
}

// crowded tells whether the queue may have no room, so that sources are held up.
func (p *Port) crowded() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.bytes+MaxFrame > p.fabric.cfg.QueueBytes
}

// deliver sends one frame to the guest. When its socket is full it waits for as
// long as the queue has room, or the guest takes at least something in each
// StallTime: a guest that gets no processor for seconds harms nobody while what is
// sent to it can wait. A guest already
// found stalled must have taken half of what it had left before it is served
// again, so that a trickle does not hold up everybody for StallTime a frame.
func (p *Port) deliver(data []byte, stalled bool, mark int) (result outcome, unread int) {
	if stalled {
		if unread, err := p.wire.unreadByGuest(); err == nil && unread > mark/2 {
			return outcomeStalled, unread
		}
	}
	err := p.wire.trySend(data)
	for isFull(err) {
		var before, after int
		if before, err = p.wire.unreadByGuest(); err != nil {
			break
		}
		if !p.armSend() {
			return outcomeKept, 0
		}
		if err = p.wire.send(data); !errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if p.interrupted() {
			return outcomeKept, 0
		}
		if after, err = p.wire.unreadByGuest(); err != nil {
			break
		}
		if after >= before && p.crowded() {
			p.fabric.log.Warn("guest takes no frames: dropping", "cluster", p.cluster.name, "guest", p.key.Guest, "nic", p.key.NIC)
			return outcomeStalled, after
		}
		err = p.wire.trySend(data)
	}
	switch {
	case err == nil:
		return outcomeSent, 0
	case p.interrupted():
		return outcomeKept, 0
	default:
		p.fabric.log.Debug("frame refused", "cluster", p.cluster.name, "guest", p.key.Guest, "nic", p.key.NIC, "bytes", len(data), "error", err)
		return outcomeRefused, 0
	}
}

// armSend allows the next send to wait for StallTime. False: the gate has
// closed, and Gate has set a deadline of its own.
func (p *Port) armSend() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.gated || p.closed {
		return false
	}
	return p.wire.setSendDeadline(time.Now().Add(p.fabric.cfg.StallTime)) == nil
}

// interrupted tells whether a send ended because the gate closed or the port ended.
func (p *Port) interrupted() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.gated || p.closed
}
