package fabric

import "time"

// An early frame is from behind the open cut, for a guest that is still before its point
// on it. It is parked until the guest passes its point, so that older frames, and those
// from outside, still reach the guest meanwhile. That keeps the frames of one sender in
// order: all that it sends behind its point are early, too.
//
// A frame that came before the cut was opened here may be early and in the queue already.
// There it waits, with all that comes after it.

// isEarly tells whether fr is from behind the open cut, and the guest before it.
func (p *Port) isEarly(fr frame) bool {
	cut := p.cluster.cutEpoch.Load()
	return cut != 0 && p.epoch.Load() < cut && fr.epoch >= cut
}

// park keeps an early frame. False: it is not early, or has no cut to wait for any more.
// Then frames that were parked for that cut are in line before it, whether or not the end
// of the cut, or of their patience, has been noticed here by others.
//
// Preconditions: mu is held, the port is not closed.
func (p *Port) park(fr frame) bool {
	if !p.isEarly(fr) || !p.waitsOn() {
		p.unpark()
		return false
	}
	p.parked.pushBack(fr)
	p.parkedBytes += fr.cost()
	p.fabric.charge(fr.cost())
	return true
}

// waitsOn reports whether early frames wait on. They do from the first one on until
// patience is over: the cut may have failed where this node does not hear of it.
//
// Preconditions: mu is held.
func (p *Port) waitsOn() bool {
	patience := time.Duration(p.cluster.patience.Load())
	if p.early.IsZero() {
		p.early = time.Now()
		p.counters.early.Add(1)
		p.room.raise() // the limit has changed
		time.AfterFunc(patience, p.lookAgain)
		return true
	}
	return time.Since(p.early) < patience
}

// waitsForCut tells whether the queue's front is early and has to wait.
//
// Preconditions: mu is held, the queue is not empty.
func (p *Port) waitsForCut() bool {
	if p.isEarly(*p.queue.at(0)) {
		return p.waitsOn()
	}
	if p.parked.len() == 0 {
		p.early = time.Time{}
	}
	return false
}

// unpark puts parked frames last in line if they need not wait any more.
//
// Preconditions: mu is held.
func (p *Port) unpark() {
	if p.parked.len() == 0 || p.isEarly(*p.parked.at(0)) && p.waitsOn() {
		return
	}
	for p.parked.len() > 0 {
		fr := p.parked.popFront()
		p.queue.pushBack(fr)
		p.bytes += fr.cost()
	}
	p.parkedBytes = 0
}

// lookAgain lets early frames go on whose patience is over.
func (p *Port) lookAgain() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	p.unpark()
	p.settled.Broadcast()
}
