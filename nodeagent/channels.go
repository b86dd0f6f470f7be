package nodeagent

import (
	"context"
	"time"

	"fermata/nodeagent/fabric"
	"fermata/protocol/failpoint"
	"fermata/protocol/fault"
)

// beginCut opens the cut on the wire and calls marker for each of the other
// members once all their markers are here, or broken when they cannot come.
func (s *saving) beginCut(others []string, marker func(node string), broken func(error)) error {
	if err := s.agent.fabric.BeginCut(s.cluster.name, s.epoch, others); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.endCut = func() {
		cancel()
		s.agent.fabric.EndCut(s.cluster.name, s.epoch)
	}
	go func() {
		err := s.agent.fabric.WaitMarkers(ctx, s.cluster.name, s.epoch)
		switch {
		case ctx.Err() != nil: // the cut has ended
		case err != nil:
			broken(err)
		default:
			for _, node := range others {
				marker(node)
			}
		}
	}()
	return nil
}

// sendMarkers tells the other members that no frame of before the cut follows.
func (s *saving) sendMarkers(ctx context.Context) error {
	if err := failpoint.Inject(ctx, failpoint.AgentBeforeMark); err != nil {
		return err
	}
	if err := s.agent.fabric.SendMarkers(s.cluster.name, s.epoch); err != nil {
		return err
	}
	return failpoint.Inject(ctx, failpoint.AgentAfterMark)
}

// recordChannels keeps what was sent before the cut and not received before it.
// It is the last step before the guests run, and so the one that makes sure that
// all have stood still until here.
func (s *saving) recordChannels(ctx context.Context, discard bool) error {
	if err := failpoint.Inject(ctx, failpoint.AgentAfterCloseChannels); err != nil {
		return err
	}
	for _, sg := range s.guests {
		// An agent that was itself stopped for a while does not count that time in
		// ticks; the guard does, and may have let the guest run.
		if stood := time.Since(sg.stopAt); stood > s.budget {
			return fault.New(fault.Deadline, "guest %s has stood still for %s: pause budget of %s is used up", sg.spec.Name, stood, s.budget)
		}
	}
	state, err := s.agent.fabric.ChannelState(s.cluster.name, s.epoch)
	if err != nil {
		return err
	}
	for _, sg := range s.guests {
		for _, n := range sg.nics {
			frames := state[fabric.PortKey{Guest: sg.spec.Name, NIC: n.spec.Name}]
			if discard {
				sg.report.FramesDiscarded += uint64(len(frames))
				continue
			}
			if len(frames) == 0 {
				continue
			}
			sg.frames = append(sg.frames, recordedFrames{nic: n.spec.Name, frames: frames})
			sg.report.FramesRecorded += uint64(len(frames))
		}
	}
	return failpoint.Inject(ctx, failpoint.AgentAfterRecordChannels)
}
