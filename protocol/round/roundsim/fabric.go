package roundsim

import (
	"fmt"

	"fermata/protocol/round"
)

type linkID struct{ from, to round.NodeID }

// link carries frames and markers of one node to another, in order. When it
// breaks, what is on it is lost and both ends learn of it.
type link struct {
	busyUntil Time
	gen       int          // grows when the link breaks
	sent      int          // number of the last frame sent
	lost      map[int]Time // frames that never arrived
	inFlight  []int
}

// guest is the one guest of a node, as far as frames can tell.
type guest struct {
	stopped, gated bool
	epoch          round.Epoch            // its colour: of the last cut it has passed
	newest         round.Epoch            // of a frame it has received
	received       map[round.NodeID][]int // numbers of the frames, in order
	held           []frame                // wait for the gate, or behind an early one
	early          Time                   // since when the first of held waits for the cut; 0: it does not
}

type frame struct {
	from   round.NodeID
	number int
	epoch  round.Epoch // its sender's
}

// image is what a cut saves of a guest.
type image struct {
	sent     map[round.NodeID]int
	received map[round.NodeID][]int
	recorded map[round.NodeID][]int
	channels bool
}

// traffic lets the guest send a frame now and then.
func (w *world) traffic(from round.NodeID) {
	n := w.nodes[from]
	if n.up && !n.guest.stopped && len(w.names) > 1 {
		to := w.names[w.rng.IntN(len(w.names))]
		if to != from {
			w.sendFrame(from, to)
		}
	}
	w.after(w.some(12), func() { w.traffic(from) })
}

func (w *world) sendFrame(from, to round.NodeID) {
	l := w.links[linkID{from, to}]
	l.sent++
	fr := frame{from, l.sent, w.nodes[from].guest.epoch}
	l.inFlight = append(l.inFlight, fr.number)
	w.transmit(from, to, func() {
		l.inFlight = l.inFlight[1:]
		w.nodes[to].takeFrame(fr)
	})
}

func (w *world) sendMarker(from, to round.NodeID, e round.Epoch) {
	w.transmit(from, to, func() { w.nodes[to].takeMarker(from, e) })
}

// transmit delivers after what is on the link already.
func (w *world) transmit(from, to round.NodeID, deliver func()) {
	l := w.links[linkID{from, to}]
	if !w.nodes[to].up || w.chance(w.cfg.LinkBreak) {
		w.breakLink(from, to)
		return
	}
	l.busyUntil = max(l.busyUntil, w.now) + w.some(8)
	gen := l.gen
	w.after(l.busyUntil-w.now, func() {
		if gen == l.gen {
			deliver()
		}
	})
}

func (w *world) breakLink(from, to round.NodeID) {
	l := w.links[linkID{from, to}]
	l.gen++
	l.busyUntil = w.now
	if l.lost == nil {
		l.lost = make(map[int]Time)
	}
	for _, number := range l.inFlight {
		l.lost[number] = w.now
	}
	l.inFlight = nil
	for _, end := range []round.NodeID{from, to} {
		n := w.nodes[end]
		if n.up {
			epoch := n.member.Epoch()
			n.input(func() { n.member.StepFailed(epoch, round.StepCloseChannels, "link lost") })
		}
	}
}

func (n *node) takeFrame(fr frame) {
	n.record(fr)
	n.guest.held = append(n.guest.held, fr)
	n.deliver()
}

// record keeps a frame of before the cut that the guest has not received at its own
// point.
func (n *node) record(fr frame) {
	if n.recorded != nil && fr.epoch < n.guest.epoch && !n.w.cfg.ForgetChannels {
		n.recorded[fr.from] = append(n.recorded[fr.from], fr.number)
		n.w.stats.FramesRecorded++
	}
}

// deliver lets the guest receive what need not wait.
func (n *node) deliver() {
	g := &n.guest
	for len(g.held) > 0 && !g.gated && !n.waitsForCut(g.held[0]) {
		fr := g.held[0]
		g.held = g.held[1:]
		g.received[fr.from] = append(g.received[fr.from], fr.number)
		g.newest = max(g.newest, fr.epoch)
	}
}

// waitsForCut says that a frame is from behind the open cut, and the guest still
// before it. Patience with that ends.
func (n *node) waitsForCut(fr frame) bool {
	g, w := &n.guest, n.w
	if g.epoch >= n.cutOpen || fr.epoch < n.cutOpen || w.cfg.DeliverEarly {
		g.early = 0
		return false
	}
	if g.early == 0 {
		g.early = w.now
		w.stats.EarlyFrames++
		w.after(patience, n.deliver)
	}
	return w.now-g.early < patience
}

func (n *node) takeMarker(from round.NodeID, e round.Epoch) {
	n.input(func() { n.member.MarkerFrom(e, from) })
}

// checkChannel is invariant I11: what from had sent at its cut is what to had
// received at its cut, then what was recorded, in order and without overlap.
// Frames that a broken link lost before the cut are the network's.
func (w *world) checkChannel(e round.Epoch, from, to round.NodeID) error {
	a, b := w.nodes[from].durable[e], w.nodes[to].durable[e]
	l := w.links[linkID{from, to}]
	if !b.channels {
		return fmt.Errorf("I11: epoch %d: %s recorded no channels", e, to)
	}
	next := 1
	for _, number := range append(append([]int(nil), b.received[from]...), b.recorded[from]...) {
		for ; next < number; next++ {
			if at, lost := l.lost[next]; !lost || at >= w.check.firstCut[e] {
				return fmt.Errorf("I11: epoch %d: frame %d from %s to %s is in no image", e, next, from, to)
			}
		}
		if number != next {
			return fmt.Errorf("I11: epoch %d: frame %d from %s to %s is in the image twice", e, number, from, to)
		}
		next++
	}
	for ; next <= a.sent[to]; next++ {
		if at, lost := l.lost[next]; !lost || at >= w.check.firstCut[e] {
			return fmt.Errorf("I11: epoch %d: frame %d from %s to %s is in no image", e, next, from, to)
		}
	}
	if next != a.sent[to]+1 {
		return fmt.Errorf("I11: epoch %d: %s has frame %d that %s had not sent", e, to, next-1, from)
	}
	return nil
}
