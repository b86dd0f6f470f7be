package fabric

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// minPoll and maxPoll space the looks at a socket's queue. The kernel does
	// not tell when a queue becomes empty; a QEMU that reads needs microseconds
	// a frame, so a wait ends within one or two looks.
	minPoll = 20 * time.Microsecond
	maxPoll = time.Millisecond

	// reclaimSettle is how long the unread bytes must stand still before they are
	// taken back: a QEMU that was just stopped still reads one frame, and
	// reading beside it could swap two.
	reclaimSettle = 2 * time.Millisecond
)

// Gate closes the NIC's ingress: from its return on no frame enters the guest's
// socket, and all that come wait in order. It is idempotent and does not wait
// for the guest.
func (p *Port) Gate() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return fmt.Errorf("gate nic %s: %w", p.key, ErrClosed)
	}
	p.gated = true
	// A writer that waits for the guest gives up its frame, which stays in front.
	if err := p.wire.setSendDeadline(time.Unix(1, 0)); err != nil {
		return fmt.Errorf("gate nic %s: %w", p.key, err)
	}
	for p.writing {
		p.settled.Wait()
	}
	if p.closed {
		return fmt.Errorf("gate nic %s: %w", p.key, ErrClosed)
	}
	p.room.raise() // the limit has changed
	return nil
}

// Ungate opens the NIC: what was held is delivered in order, then what comes.
// It is idempotent and always possible until Detach.
func (p *Port) Ungate() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gated = false
	p.stalled = false // held frames deserve a guest's full StallTime
	p.settled.Broadcast()
	p.room.raise()
}

// Drain waits until the guest's receive ring has every frame that was sent to
// it before the gate closed, and until QEMU need not keep frames of the guest
// for want of room in the socket. See "Draining" in the package documentation.
//
// Preconditions: the port is gated, the guest runs.
//
// On error ErrUndrained: up to two of the frames are inside QEMU and will not
// be in the guest's image, the others are unread. Stop the guest, then Reclaim.
// On error ErrNotDrained: the fabric is behind with the guest's own frames; a
// stop now may lose one.
func (p *Port) Drain(ctx context.Context) error {
	if err := p.checkGated(); err != nil {
		return fmt.Errorf("drain nic %s: %w", p.key, err)
	}
	if err := p.drain(ctx); err != nil {
		return fmt.Errorf("drain nic %s: %w", p.key, err)
	}
	return nil
}

func (p *Port) drain(ctx context.Context) error {
	err := poll(ctx, func() (bool, error) {
		switch err := p.wire.trySend(p.fabric.sentinel); {
		case isFull(err):
			return false, nil
		default:
			return err == nil, err
		}
	})
	if err == nil {
		err = poll(ctx, func() (bool, error) {
			n, err := p.wire.unreadByGuest()
			return n == 0, err
		})
	}
	class := ErrUndrained
	if err == nil {
		class = ErrNotDrained
		err = poll(ctx, func() (bool, error) {
			n, err := p.wire.unreadByFabric()
			return n <= p.wire.egressLow, err
		})
	}
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("%w: %w", class, err)
	}
	return err
}

// Reclaim takes back, in the guest's place, every frame that the guest has not
// read, and puts them in front of the held ones. It returns how many. After a
// Drain that succeeded there are none.
//
// Preconditions: the port is gated, the guest is stopped.
func (p *Port) Reclaim() (int, error) {
	n, err := p.reclaim()
	if err != nil {
		return n, fmt.Errorf("reclaim frames of nic %s: %w", p.key, err)
	}
	return n, nil
}

func (p *Port) reclaim() (int, error) {
	if err := p.checkGated(); err != nil {
		return 0, err
	}
	if err := p.awaitStandstill(); err != nil {
		return 0, err
	}
	var back []frame
	buf := make([]byte, MaxFrame)
	var err error
	for {
		var n int
		if n, err = p.wire.takeBack(buf); err != nil {
			break
		}
		if !isSentinel(buf[:n], p.fabric.sentinel) {
			back = append(back, frame{data: append([]byte(nil), buf[:n]...)})
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := range back {
		// Which of the delivered epochs each one had is not known any more. The
		// newest is safe: Recolour refuses a cut at or below it.
		back[i].epoch = p.newest
	}
	p.pushFront(back)
	p.counters.reclaimed.Add(uint64(len(back)))
	if !errors.Is(err, unix.EAGAIN) {
		return len(back), err
	}
	return len(back), nil
}

// awaitStandstill returns once the unread bytes have not changed for
// reclaimSettle. It ends: a stopped QEMU reads one frame and no more.
func (p *Port) awaitStandstill() error {
	last, since := -1, time.Now()
	return poll(context.Background(), func() (bool, error) {
		n, err := p.wire.unreadByGuest()
		if err != nil || n == 0 {
			return true, err
		}
		if n != last {
			last, since = n, time.Now()
		}
		return time.Since(since) >= reclaimSettle, nil
	})
}

// Inject puts the recorded frames of a restart before all others. The port
// keeps the slices: they must not change any more.
//
// Preconditions: the port is gated, the guest has not run yet.
func (p *Port) Inject(frames [][]byte) error {
	in := make([]frame, len(frames))
	for i, data := range frames {
		if len(data) < MinFrame || len(data) > MaxFrame {
			return fmt.Errorf("inject frame %d into nic %s: %d bytes: %w", i, p.key, len(data), ErrMalformed)
		}
		in[i] = frame{data: data, epoch: p.epoch.Load()}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.gatedLocked(); err != nil {
		return fmt.Errorf("inject %d frames into nic %s: %w", len(frames), p.key, err)
	}
	p.pushFront(in)
	p.counters.injected.Add(uint64(len(in)))
	return nil
}

// pushFront puts frames before all others.
//
// Preconditions: mu is held, nobody is writing.
func (p *Port) pushFront(frames []frame) {
	p.queue.pushFront(frames)
	for _, fr := range frames {
		p.bytes += fr.cost()
		p.fabric.charge(fr.cost())
	}
}

func (p *Port) checkGated() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.gatedLocked()
}

// gatedLocked tells whether the queue may be touched from outside the writer.
//
// Preconditions: mu is held.
func (p *Port) gatedLocked() error {
	switch {
	case p.closed:
		return ErrClosed
	case !p.gated || p.writing:
		return ErrNotGated
	}
	return nil
}

// poll looks until done says true or an error, or ctx ends.
func poll(ctx context.Context, done func() (bool, error)) error {
	wait := minPoll
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		ok, err := done()
		if ok || err != nil {
			return err
		}
		timer.Reset(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		wait = min(2*wait, maxPoll)
	}
}
