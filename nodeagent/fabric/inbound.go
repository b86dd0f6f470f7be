package fabric

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"
)

const (
	// ackEvery bounds how many records wait for one acknowledgement. A full
	// sender waits for it, so it is far below what DefaultLinkBytes holds.
	ackEvery = 128
	// ackBytes is the same bound for big frames.
	ackBytes = 256 << 10
	// keptLives is how many lives of a peer's link are remembered. Two would do:
	// the present one, and the one before it whose last connection may still
	// knock.
	keptLives = 4
)

// inbound is the receiving side of the link from one peer.
type inbound struct {
	node string // immutable

	// turn holds one token; who has put it there processes the peer's records.
	// A new connection waits for the one before to finish its record, so that
	// none is delivered to some ports twice.
	turn chan struct{}

	lives []linkLife // owned by the holder of turn; present one last

	mu   sync.Mutex
	held map[flow]bool // guarded by mu; what the peer is to hold back
	tell chan struct{} // holds a token when the peer has to be told of that
	told sync.Mutex    // held while it is told, so that what is told last is the latest

	conn   net.Conn // guarded by cluster.mu; the newest connection
	marker uint64   // guarded by cluster.mu; newest epoch a marker of the peer has opened
}

// linkLife remembers how far one life of the peer's link has come.
type linkLife struct {
	incarnation string
	life        uint64
	last        uint64 // last sequence processed
}

// resume finds the life that h speaks of, or begins it, and makes it the present one.
// doubtful counts the records that the peer gives up, since an earlier process of this
// node may have delivered them.
//
// Preconditions: the caller holds turn.
func (in *inbound) resume(h hello) (_ *linkLife, doubtful uint64) {
	i := slices.IndexFunc(in.lives, func(l linkLife) bool {
		return l.incarnation == h.incarnation && l.life == h.life
	})
	l := linkLife{incarnation: h.incarnation, life: h.life, last: h.fresh - 1}
	doubtful = h.fresh - h.first
	if i >= 0 {
		doubtful = 0
		l = in.lives[i]
		in.lives = slices.Delete(in.lives, i, i+1)
	}
	if len(in.lives) == keptLives {
		in.lives = slices.Delete(in.lives, 0, 1)
	}
	in.lives = append(in.lives, l)
	return &in.lives[len(in.lives)-1], doubtful
}

// want has the peer hold a flow back, or go on with it. It does not wait.
func (in *inbound) want(f flow, hold bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	switch {
	case in.held[f] == hold:
		return
	case !hold:
		delete(in.held, f)
	case len(in.held) < maxHeld:
		in.held[f] = true
	}
	in.news()
}

// news has the peer told what to hold back.
func (in *inbound) news() {
	select {
	case in.tell <- struct{}{}:
	default: // a token is there already
	}
}

// report tells the peer what to hold back.
func (in *inbound) report(conn net.Conn) error {
	in.told.Lock()
	defer in.told.Unlock()
	in.mu.Lock()
	hold := holdRecord(in.held)
	in.mu.Unlock()
	var b bytes.Buffer // one write: acknowledgements are written beside it
	_ = writeRecord(&b, hold)
	_, err := conn.Write(b.Bytes())
	return err
}

// reportNews reports whenever there is news, until the connection fails or stop is
// closed. A new connection begins with news: the peer may have missed the last.
func (in *inbound) reportNews(conn net.Conn, stop <-chan struct{}) {
	in.news()
	for {
		select {
		case <-in.tell:
		case <-stop:
			return
		}
		if in.report(conn) != nil {
			hangUp(conn) // whoever reads from it finds out
			return
		}
	}
}

// serve receives one connection until it or ctx ends.
func (f *Fabric) serve(ctx context.Context, raw net.Conn) {
	log := f.log.With("remote", raw.RemoteAddr())
	defer raw.Close()
	release := context.AfterFunc(ctx, func() { _ = raw.Close() })
	defer release()
	if err := raw.SetDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		log.Warn("link refused", "error", err)
		return
	}
	conn, name, err := f.accepted(ctx, raw)
	if err != nil {
		log.Warn("link refused", "error", err)
		return
	}
	h, err := readHello(conn)
	if err != nil {
		log.Warn("link refused", "error", err)
		return
	}
	log = log.With("peer", h.from, "cluster", h.cluster)
	c, re := f.admit(h, name)
	if c == nil {
		f.turnAway(conn, re)
		log.Debug("link turned away", "status", re.status, "reason", re.reason)
		return
	}
	err = c.receive(ctx, conn, h)
	log.Debug("link from peer ended", "error", err)
}

// turnAway answers and waits until the peer has gone, because closing with
// unread bytes would reset the connection and destroy the answer.
func (f *Fabric) turnAway(conn net.Conn, re reply) {
	if _, err := conn.Write(re.encode()); err == nil {
		_, _ = io.Copy(io.Discard, io.LimitReader(conn, linkBuffer))
	}
}

// admit finds the cluster that h asks for; otherwise it says why not.
func (f *Fabric) admit(h hello, name string) (*cluster, reply) {
	answer := func(s replyStatus, format string, args ...any) (*cluster, reply) {
		return nil, reply{status: s, from: f.cfg.Node, reason: fmt.Sprintf(format, args...)}
	}
	if h.to != f.cfg.Node {
		return answer(replyRefused, "this is not node %s", h.to)
	}
	if name != "" && name != h.from {
		return answer(replyRefused, "certificate of %s, hello of %s", name, h.from)
	}
	c, err := f.clusterNamed(h.cluster)
	switch {
	case err != nil:
		return answer(replyLater, "no such cluster here yet")
	case h.floor < c.floor:
		c.stale.Add(1)
		return answer(replyStale, "the cluster began anew in epoch %d", c.floor)
	case h.floor > c.floor:
		return answer(replyLater, "the cluster is still in its life of epoch %d", c.floor)
	}
	return c, reply{}
}

// receive processes the records of one connection.
func (c *cluster) receive(ctx context.Context, conn net.Conn, h hello) error {
	in, err := c.enter(h.from, conn)
	if err != nil {
		c.fabric.turnAway(conn, reply{status: replyLater, from: c.fabric.cfg.Node, reason: err.Error()})
		return err
	}
	defer c.leave(in, conn)
	select {
	case in.turn <- struct{}{}:
	case <-c.done:
		return ErrClosed
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(handshakeTimeout):
		return errors.New("the connection before is still busy")
	}
	defer func() { <-in.turn }()
	if !c.isNewest(in, conn) {
		return errors.New("replaced by a newer connection")
	}
	life, doubtful := in.resume(h)
	if doubtful > 0 {
		c.doubtful.Add(doubtful)
		c.fabric.log.Warn("frames that an earlier process of this node may have delivered are given up",
			"cluster", c.name, "peer", h.from, "frames", doubtful)
	}
	welcome := reply{status: replyWelcome, last: life.last, from: c.fabric.cfg.Node}
	if _, err := conn.Write(welcome.encode()); err != nil {
		return fmt.Errorf("send welcome: %w", err)
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return fmt.Errorf("clear deadline: %w", err)
	}
	stop := make(chan struct{})
	var reporter sync.WaitGroup
	reporter.Go(func() { in.reportNews(conn, stop) })
	defer reporter.Wait()
	defer hangUp(conn) // ends a write that waits
	defer close(stop)
	return c.readRecords(conn, in, life)
}

// readRecords delivers each record, then counts it as processed, then
// acknowledges it: a connection may end between any two of these.
//
// Preconditions: the caller holds in.turn.
func (c *cluster) readRecords(conn net.Conn, in *inbound, life *linkLife) error {
	r := bufio.NewReaderSize(conn, linkBuffer)
	records, bytes := 0, 0
	for {
		rec, err := readRecord(r)
		if err != nil {
			return err
		}
		if rec.kind != recordFrame && rec.kind != recordMarker || rec.sequence != life.last+1 {
			return fmt.Errorf("%s %d after record %d: %w", rec.kind, rec.sequence, life.last, ErrMalformed)
		}
		if err := c.process(in, rec); err != nil {
			return err
		}
		life.last = rec.sequence
		records, bytes = records+1, bytes+len(rec.payload)
		if r.Buffered() > 0 && records < ackEvery && bytes < ackBytes {
			continue
		}
		records, bytes = 0, 0
		select {
		case <-in.tell: // before an acknowledgement makes room for more
			if err := in.report(conn); err != nil {
				return err
			}
		default:
		}
		if err := writeRecord(conn, record{kind: recordAck, sequence: life.last}); err != nil {
			return err
		}
	}
}

// process delivers a frame to the guests it concerns, or notes a marker. A guest that
// is slow has the peer hold back what is for it; only one that gets more than was on
// its way by then makes it wait, and the peer with it.
func (c *cluster) process(in *inbound, rec record) error {
	if rec.epoch < c.floor {
		c.stale.Add(1)
		return nil
	}
	if rec.kind == recordMarker {
		c.mu.Lock()
		defer c.mu.Unlock()
		in.marker = max(in.marker, rec.epoch)
		c.changed.raise()
		return nil
	}
	n := c.networkByID(rec.network)
	if n == nil {
		c.noDomain.Add(1)
		return nil
	}
	n.switchFromLink(in, frame{data: rec.payload, epoch: rec.epoch}, c.done)
	select {
	case <-c.done:
		return ErrClosed
	default:
		return nil
	}
}

// enter registers a connection from node and ends the one before.
func (c *cluster) enter(node string, conn net.Conn) (*inbound, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, ErrClosed
	}
	if c.links[node] == nil {
		return nil, fmt.Errorf("node %s is not a peer yet", node)
	}
	c.links[node].wake()
	in := c.inbound[node]
	if in == nil {
		in = &inbound{node: node, turn: make(chan struct{}, 1), held: map[flow]bool{}, tell: make(chan struct{}, 1)}
		c.inbound[node] = in
	}
	if in.conn != nil {
		hangUp(in.conn)
	}
	in.conn = conn
	c.handlers.Add(1)
	return in, nil
}

// leave undoes enter.
func (c *cluster) leave(in *inbound, conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if in.conn == conn {
		in.conn = nil
	}
	c.handlers.Done()
}

func (c *cluster) isNewest(in *inbound, conn net.Conn) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return in.conn == conn
}
