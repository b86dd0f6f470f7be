package nodeagent

import (
	"context"
	"errors"
	"runtime"
	"time"

	"fermata/nodeagent/fabric"
	"fermata/protocol/failpoint"
	"fermata/protocol/fault"
	"fermata/vmm"
)

// gateAndDrain begins a barrier cut: it closes the ingress of all guests, then waits
// until each has taken what was on its way.
func (s *saving) gateAndDrain(ctx context.Context) error {
	if err := failpoint.Inject(ctx, failpoint.AgentBeforeCut); err != nil {
		return err
	}
	if err := s.each(ctx, "ask disks", s.askDisks); err != nil {
		return err
	}
	if err := s.each(ctx, "gate", s.gate); err != nil {
		return err
	}
	if err := s.each(ctx, "drain", s.drain); err != nil {
		return err
	}
	return s.each(ctx, "protect", s.rearm)
}

// stoppedAtOnce is how many guests of a node are cut at a time in a coloured cut: each
// needs a processor for its pause to be short. The others run meanwhile, with open
// gates.
var stoppedAtOnce = max(runtime.NumCPU()/2, 1)

// turnDrain is how long a guest may drain while others wait for its turn. A guest that
// runs takes its frames within a scheduling delay.
const turnDrain = 50 * time.Millisecond

// turns lets as many guests be cut at a time as it has places.
type turns chan struct{}

func (t turns) take(ctx context.Context) error {
	select {
	case t <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (t turns) leave() { <-t }

// cutGuests cuts every guest on its own and lets it run again.
func (s *saving) cutGuests(ctx context.Context) error {
	if err := failpoint.Inject(ctx, failpoint.AgentBeforeCut); err != nil {
		return err
	}
	t := make(turns, stoppedAtOnce)
	return s.each(ctx, "cut", func(ctx context.Context, sg *savedGuest) error { return s.cutGuest(ctx, sg, t) })
}

// cutGuest takes a guest from its gate to running again, once it has a turn: until then
// its gate is open, so that it is silent for its own cut only. On error it may stand
// still: resume it.
func (s *saving) cutGuest(ctx context.Context, sg *savedGuest, t turns) error {
	if err := s.askDisks(ctx, sg); err != nil { // before its turn: a disk that hangs holds up nobody else
		return err
	}
	if err := t.take(ctx); err != nil {
		return err
	}
	hasTurn := true
	defer func() {
		if hasTurn {
			t.leave()
		}
	}()
	ctx, cancel := context.WithTimeoutCause(ctx, s.budget, fault.New(fault.Deadline, "pause budget of %s is used up", s.budget))
	defer cancel()
	if err := s.rearm(ctx, sg); err != nil { // most of it here, while frames still pass
		return err
	}
	if err := s.gate(ctx, sg); err != nil {
		return err
	}
	begun := time.Now()
	undrained, err := s.drainWithin(ctx, sg, min(turnDrain, s.drainBudget()))
	slow := err == nil && undrained > 0 || errors.Is(err, fabric.ErrNotDrained)
	if slow && turnDrain < s.drainBudget() {
		t.leave() // it holds nobody up
		hasTurn = false
		if undrained, err = s.drainWithin(ctx, sg, s.drainBudget()-turnDrain); err == nil {
			err = t.take(ctx)
			hasTurn = err == nil
		}
	}
	if err := s.drained(ctx, sg, begun, undrained, err); err != nil {
		return err
	}
	for _, step := range []func(context.Context, *savedGuest) error{s.rearm, s.stop, s.saveState} {
		if err := step(ctx, sg); err != nil {
			return err
		}
	}
	if err := s.stood(sg); err != nil {
		return err
	}
	return s.resumeGuest(ctx, sg)
}

// stood makes sure that a guest has stood still until here, so that what was saved
// of it is of one instant. An agent that was itself stopped for a while does not
// count that time in ticks; the guard does, and may have let the guest run.
func (s *saving) stood(sg *savedGuest) error {
	if stood := time.Since(sg.stopAt); stood > s.budget {
		return fault.New(fault.Deadline, "guest %s has stood still for %s: pause budget of %s is used up", sg.spec.Name, stood, s.budget)
	}
	return nil
}

// gate closes the ingress of a guest.
func (s *saving) gate(ctx context.Context, sg *savedGuest) error {
	begun := time.Now()
	var early time.Duration // frames of guests that were cut before have waited for this cut
	if len(sg.nics) > 0 {
		sg.silent = begun
		var err error
		if early, err = s.agent.plane.Gate(s.cluster.name, sg.spec.Name, s.budget+guardSlack); err != nil {
			return fabricFault(err)
		}
	}
	sg.report.EarlyUs, sg.report.GateUs = uint64(early.Microseconds()), micros(begun)
	return failpoint.Inject(ctx, failpoint.AgentAfterGate)
}

// askDisks makes sure that every disk of a guest answers, while the guest runs. To stop
// it is to wait for its disks, and nobody can make it run again before they have
// answered: neither we nor the guard. Half of the pause budget is what a flush may take
// that has most of its work behind it, see prepare.
func (s *saving) askDisks(ctx context.Context, sg *savedGuest) error {
	return s.askDisksWithin(ctx, sg, s.budget/2)
}

func (s *saving) askDisksWithin(ctx context.Context, sg *savedGuest, limit time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fault.New(fault.Deadline, "%s have passed, and a guest that is stopped would stand still until the disk answers", limit))
	defer cancel()
	return machineFault(sg.machine.FlushDisks(ctx))
}

// drainBudget is how long a guest may take to drain. Whoever does not drain must leave
// time for the rest of the pause.
func (s *saving) drainBudget() time.Duration { return min(s.agent.cfg.DrainBudget, s.budget/2) }

// drain waits until a guest has taken what was on its way. It runs. A guest that
// takes no frames is not waited for longer than the drain budget: what it has not
// taken is taken back after the stop.
func (s *saving) drain(ctx context.Context, sg *savedGuest) error {
	begun := time.Now()
	undrained, err := s.drainWithin(ctx, sg, s.drainBudget())
	return s.drained(ctx, sg, begun, undrained, err)
}

// drainWithin drains the cards of a guest, and returns how many of them have not drained
// within the budget. It may be called again.
func (s *saving) drainWithin(ctx context.Context, sg *savedGuest, budget time.Duration) (undrained uint32, err error) {
	if len(sg.nics) == 0 {
		return 0, nil
	}
	n, err := s.agent.plane.Drain(ctx, s.cluster.name, sg.spec.Name, budget)
	return uint32(n), err
}

// drained enters how the draining of a guest has ended.
func (s *saving) drained(ctx context.Context, sg *savedGuest, begun time.Time, undrained uint32, err error) error {
	sg.report.UndrainedNics, sg.report.DrainUs = undrained, micros(begun)
	if err != nil {
		return fabricFault(err)
	}
	return failpoint.Inject(ctx, failpoint.AgentAfterDrain)
}

// rearm protects again what a guest that is captured live has written since prepare,
// if that is much, so that the pause need not.
func (s *saving) rearm(ctx context.Context, sg *savedGuest) error {
	if sg.tracked == nil {
		return nil
	}
	return sg.tracked.tracker.Rearm(ctx)
}

// stop makes a guest stand still and empties the wire behind it: frames it did not
// take go back to the front of what is held for it, frames it sent are read and
// switched. That is its point on the cut.
func (s *saving) stop(ctx context.Context, sg *savedGuest) error {
	conn, err := sg.machine.GuardConnection(ctx)
	if err != nil {
		return err
	}
	sg.stopAt = time.Now()
	if sg.silent.IsZero() {
		sg.silent = sg.stopAt
	}
	if err := s.agent.guard.Hold(sg.machine.State().GuardPath, conn, s.budget+guardSlack); err != nil {
		return err
	}
	sg.held = true
	switch err := sg.machine.Stop(ctx); {
	case errors.Is(err, vmm.ErrIOError):
		return s.agent.stallFault(ctx, s.cluster, sg.guest)
	case err != nil:
		return err
	}
	sg.report.StoppedUnixNs = time.Now().UnixNano()
	sg.report.StopUs = micros(sg.stopAt)
	if len(sg.nics) > 0 {
		if err := s.agent.plane.PassCut(ctx, s.cluster.name, s.epoch, sg.spec.Name); err != nil {
			return fabricFault(err)
		}
	}
	return failpoint.Inject(ctx, failpoint.AgentAfterStop)
}
