package fabric

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

const (
	// minBackoff and maxBackoff space the attempts to reach a peer. A reset must
	// cost little, since a marker may wait; a dead node must not be hammered.
	minBackoff = 5 * time.Millisecond
	maxBackoff = time.Second
	// handshakeTimeout bounds dialling, TLS and the hello exchange together.
	handshakeTimeout = 10 * time.Second
	// linkBuffer gathers records into one write; four TLS records.
	linkBuffer = 64 << 10
	// sendBatch is how many records are taken from the queue at a time.
	sendBatch = 64
)

// link carries the frames and markers of one cluster from this node to one
// peer, each exactly once and in order, over as many connections as it takes.
//
// Each cluster has links of its own, so that a cluster whose guests do not take
// frames holds up no other.
type link struct {
	cluster *cluster           // immutable
	fabric  *Fabric            // immutable
	node    string             // immutable; the peer
	life    uint64             // immutable; see hello
	cancel  context.CancelFunc // ends run
	ended   chan struct{}      // closed by run
	awake   chan struct{}      // holds a token when the peer is known to be there
	// minWait and maxWait are minBackoff and maxBackoff outside tests. Immutable.
	minWait, maxWait time.Duration

	mu        sync.Mutex
	address   string        // guarded by mu
	conn      net.Conn      // guarded by mu; the present connection
	connected bool          // guarded by mu; conn was welcomed
	connects  uint64        // guarded by mu
	marked    uint64        // guarded by mu; epoch of the last marker
	queue     fifo[record]  // guarded by mu; not acknowledged yet, oldest first
	bytes     int           // guarded by mu; cost of queue
	first     uint64        // guarded by mu; sequence of the queue's front
	sent      int           // guarded by mu; how many of queue went out on conn
	fresh     uint64        // guarded by mu; lowest sequence that never went out on any connection
	closed    bool          // guarded by mu
	held      map[flow]bool // guarded by mu; what the peer wants no more of for now
	room      signal        // guarded by mu; raised when the queue may take more
	more      signal        // guarded by mu; raised when there is more to send
}

// newLink makes a link. The caller starts run.
func newLink(c *cluster, peer Peer) (l *link, run func()) {
	ctx, cancel := context.WithCancel(context.Background())
	l = &link{
		cluster: c,
		fabric:  c.fabric,
		node:    peer.Node,
		life:    c.fabric.links.Add(1),
		cancel:  cancel,
		ended:   make(chan struct{}),
		awake:   make(chan struct{}, 1),
		minWait: minBackoff,
		maxWait: maxBackoff,
		address: peer.Address,
		marked:  c.epoch.Load(),
		first:   1,
		fresh:   1,
	}
	return l, func() { l.run(ctx) }
}

// sendFrame puts a frame on the link. It waits while the link is full, until
// stop is closed. False: the frame was dropped because stop or the link was closed.
func (l *link) sendFrame(network uint64, fr frame, stop <-chan struct{}) bool {
	r := record{kind: recordFrame, network: network, epoch: fr.epoch, payload: fr.data}
	l.mu.Lock()
	for !l.hasRoom(r) {
		room := l.room.wait()
		l.mu.Unlock()
		select {
		case <-room:
		case <-stop:
			return false
		}
		l.mu.Lock()
	}
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	if r.epoch == colourless {
		r.epoch = l.marked
	}
	l.push(r)
	return true
}

// hasRoom tells whether the queue takes r now. From the beginning of a cut the
// limit is that of a hold queue: a reader that waits here leaves frames inside
// QEMU, where the stop to come would purge them.
//
// Preconditions: mu is held.
func (l *link) hasRoom(r record) bool {
	if l.closed || l.cluster.draining.Load() > 0 {
		return true
	}
	limit := l.fabric.cfg.LinkBytes
	if l.cluster.cutEpoch.Load() != 0 && !l.fabric.tight() {
		limit = max(limit, l.fabric.cfg.HoldBytes)
	} else if l.held[r.flow()] {
		return false
	}
	if l.queue.len() == 0 {
		return true
	}
	return l.bytes+r.cost() <= limit
}

// sendMarker puts a marker on the link, after which no frame of an older epoch
// follows. It never waits.
func (l *link) sendMarker(epoch uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed || l.marked >= epoch {
		return
	}
	l.marked = epoch
	l.push(record{kind: recordMarker, epoch: epoch})
}

// push appends r and gives it its sequence.
//
// Preconditions: mu is held.
func (l *link) push(r record) {
	r.sequence = l.first + uint64(l.queue.len())
	l.queue.pushBack(r)
	l.bytes += r.cost()
	l.fabric.charge(r.cost())
	l.more.raise()
}

// setAddress moves the link to a new address of its peer.
func (l *link) setAddress(address string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.address == address {
		return
	}
	l.address = address
	if l.conn != nil {
		hangUp(l.conn) // run dials the new address
	}
}

// relax lets those who wait for room look again.
func (l *link) relax() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.room.raise()
}

// wake makes a link that is down try again at once. The peer has just dialled
// us, so it is there; without this the first frames of a cluster whose nodes
// come one after the other would wait for maxBackoff.
func (l *link) wake() {
	select {
	case l.awake <- struct{}{}:
	default: // a token is there already
	}
}

// close ends the link, drops what it holds and returns when run has ended.
func (l *link) close() {
	l.mu.Lock()
	if !l.closed {
		l.closed = true
		for i := range l.queue.len() {
			if l.queue.at(i).kind == recordFrame {
				l.cluster.lost.Add(1)
			}
		}
		l.fabric.charge(-l.bytes)
		l.queue, l.bytes, l.sent = fifo[record]{}, 0, 0
	}
	l.room.raise()
	l.more.raise()
	l.mu.Unlock()
	l.cancel()
	<-l.ended
}

func (l *link) stats() LinkStats {
	l.mu.Lock()
	defer l.mu.Unlock()
	return LinkStats{
		Node:         l.node,
		Connected:    l.connected,
		Connects:     l.connects,
		Waiting:      uint64(l.queue.len()),
		WaitingBytes: uint64(l.bytes),
	}
}

// run keeps the link connected until ctx ends.
func (l *link) run(ctx context.Context) {
	defer close(l.ended)
	log := l.fabric.log.With("cluster", l.cluster.name, "peer", l.node)
	backoff := l.minWait
	refused := ""
	for {
		up, err := l.session(ctx)
		if ctx.Err() != nil {
			return
		}
		if up {
			backoff, refused = l.minWait, ""
			log.Warn("link lost, reconnecting", "error", err)
		} else if err.Error() != refused {
			// The same refusal many times is one event.
			refused = err.Error()
			log.Info("link does not come up, retrying", "error", err)
		}
		select {
		case <-time.After(backoff):
			backoff = min(2*backoff, l.maxWait)
		case <-l.awake:
			backoff = l.minWait
		case <-ctx.Done():
			return
		}
	}
}

// session runs one connection. up tells whether the peer welcomed it; err is
// never nil.
func (l *link) session(ctx context.Context) (up bool, err error) {
	l.mu.Lock()
	address := l.address
	l.mu.Unlock()
	conn, last, err := l.connect(ctx, address)
	if err != nil {
		return false, err
	}
	defer hangUp(conn)
	release := context.AfterFunc(ctx, func() { hangUp(conn) })
	defer release()
	if err := l.resume(conn, address, last); err != nil {
		return false, err
	}
	defer l.suspend()

	var acks sync.WaitGroup
	dead := make(chan struct{})
	var ackErr error
	acks.Go(func() {
		defer close(dead)
		ackErr = l.readAcks(conn)
		hangUp(conn) // ends a write that waits
	})
	err = l.writeRecords(ctx, conn, dead)
	hangUp(conn)
	acks.Wait()
	return true, errors.Join(err, ackErr)
}

// connect dials the peer at address and exchanges hellos. last is what the peer has processed.
func (l *link) connect(ctx context.Context, address string) (_ net.Conn, last uint64, err error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	l.mu.Lock()
	h := hello{
		life: l.life, first: l.first, fresh: l.fresh, floor: l.cluster.floor,
		from: l.fabric.cfg.Node, to: l.node, incarnation: l.fabric.cfg.Incarnation, cluster: l.cluster.name,
	}
	l.mu.Unlock()
	conn, err := l.fabric.dial(ctx, l.node, address)
	if err != nil {
		return nil, 0, err
	}
	// What it hangs up must not change: it may run beside a return.
	release := context.AfterFunc(ctx, func() { hangUp(conn) })
	last, err = exchange(conn, h)
	if !release() {
		err = errors.Join(err, context.Cause(ctx))
	}
	if err != nil {
		hangUp(conn)
		return nil, 0, err
	}
	return conn, last, nil
}

// exchange says h and reads the answer.
func exchange(conn net.Conn, h hello) (last uint64, err error) {
	if _, err := conn.Write(h.encode()); err != nil {
		return 0, fmt.Errorf("send hello: %w", err)
	}
	re, err := readReply(conn)
	switch {
	case err != nil:
		return 0, err
	case re.status != replyWelcome:
		return 0, fmt.Errorf("node %s answers %s: %s", re.from, re.status, re.reason)
	case re.from != h.to:
		return 0, fmt.Errorf("node %s answers in place of %s", re.from, h.to)
	}
	return re.last, nil
}

// resume makes conn the link's connection; all records after last are to be sent on it.
func (l *link) resume(conn net.Conn, address string, last uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return ErrClosed
	}
	if l.address != address {
		return fmt.Errorf("peer has moved from %s to %s", address, l.address)
	}
	l.sent = l.queue.len() // any of them may have been processed
	if err := l.acknowledge(last); err != nil {
		return fmt.Errorf("resume link: %w", err)
	}
	l.sent = 0
	l.conn = conn
	l.connected = true
	l.connects++
	return nil
}

// suspend notes that the link has no connection.
func (l *link) suspend() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conn, l.connected = nil, false
}

// writeRecords sends what is queued until the connection or ctx ends.
func (l *link) writeRecords(ctx context.Context, conn net.Conn, dead <-chan struct{}) error {
	w := bufio.NewWriterSize(conn, linkBuffer)
	batch := make([]record, 0, sendBatch)
	for {
		var more <-chan struct{}
		batch, more = l.unsent(batch[:0])
		for _, r := range batch {
			if err := writeRecord(w, r); err != nil {
				return err
			}
		}
		if len(batch) > 0 {
			continue
		}
		if err := w.Flush(); err != nil {
			return fmt.Errorf("flush: %w", err)
		}
		select {
		case <-more:
		case <-dead:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// unsent appends the next records to send to batch. When there are none it
// returns a channel that is closed when there may be.
func (l *link) unsent(batch []record) ([]record, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.sent < l.queue.len() && len(batch) < sendBatch {
		batch = append(batch, *l.queue.at(l.sent))
		l.sent++
	}
	l.fresh = max(l.fresh, l.first+uint64(l.sent))
	if len(batch) > 0 {
		return batch, nil
	}
	return batch, l.more.wait()
}

// readAcks drops what the peer has processed, and heeds what it wants held back, until
// the connection ends.
func (l *link) readAcks(conn net.Conn) error {
	r := bufio.NewReaderSize(conn, 64*recordHeader)
	for {
		rec, err := readRecord(r)
		if err != nil {
			return err
		}
		l.mu.Lock()
		switch rec.kind {
		case recordAck:
			err = l.acknowledge(rec.sequence)
		case recordHold:
			l.held = rec.flows()
			l.room.raise()
		default:
			err = fmt.Errorf("%s where an ack belongs: %w", rec.kind, ErrMalformed)
		}
		l.mu.Unlock()
		if err != nil {
			return err
		}
	}
}

// acknowledge drops every record up to and including last.
//
// Preconditions: mu is held.
func (l *link) acknowledge(last uint64) error {
	if l.closed {
		return ErrClosed
	}
	if last+1 < l.first || last >= l.first+uint64(l.sent) {
		return fmt.Errorf("ack of record %d, %d to %d are out: %w", last, l.first, l.first+uint64(l.sent)-1, ErrMalformed)
	}
	for l.first <= last {
		r := l.queue.popFront()
		l.bytes -= r.cost()
		l.fabric.charge(-r.cost())
		l.first++
		l.sent--
	}
	l.room.raise()
	return nil
}
