package nodeagent

import (
	"context"
	"errors"

	"fermata/nodeagent/fabric"
	"fermata/protocol/failpoint"
	"fermata/protocol/fault"
)

// beginCut opens the cut on the wire and calls marker for each of the other
// members once all their markers are here, or broken when they cannot come.
func (s *saving) beginCut(others []string, marker func(node string), broken func(error)) error {
	if err := s.agent.plane.BeginCut(s.cluster.name, s.epoch, others, s.options.CutBudget()); err != nil {
		return fabricFault(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.endCut = func() {
		cancel()
		s.agent.plane.EndCut(s.cluster.name, s.epoch)
	}
	go func() {
		err := s.agent.plane.WaitMarkers(ctx, s.cluster.name, s.epoch)
		switch {
		case ctx.Err() != nil: // the cut has ended
		case err != nil:
			broken(fabricFault(err))
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
	if err := s.agent.plane.SendMarkers(s.cluster.name, s.epoch); err != nil {
		return fabricFault(err)
	}
	return failpoint.Inject(ctx, failpoint.AgentAfterMark)
}

// recordChannels keeps what was sent before the cut and not received before it. In a
// barrier cut it is the last step before the guests run.
func (s *saving) recordChannels(ctx context.Context) error {
	if err := failpoint.Inject(ctx, failpoint.AgentAfterCloseChannels); err != nil {
		return err
	}
	for _, sg := range s.guests {
		if !sg.held {
			continue
		}
		if err := s.stood(sg); err != nil {
			return err
		}
	}
	state, err := s.agent.plane.ChannelState(s.cluster.name, s.epoch)
	if err != nil {
		return fabricFault(err)
	}
	for _, sg := range s.guests {
		for _, n := range sg.nics {
			frames := state[fabric.PortKey{Guest: sg.spec.Name, NIC: n.Name}]
			if s.options.DiscardChannels {
				sg.report.FramesDiscarded += uint64(len(frames))
				continue
			}
			if len(frames) == 0 {
				continue
			}
			sg.frames = append(sg.frames, recordedFrames{nic: n.Name, frames: frames})
			sg.report.FramesRecorded += uint64(len(frames))
		}
	}
	return failpoint.Inject(ctx, failpoint.AgentAfterRecordChannels)
}

// fabricFault gives an error of the fabric its class.
func fabricFault(err error) error {
	switch {
	case errors.Is(err, fabric.ErrNotDrained):
		return fault.Wrap(fault.Deadline, err, "")
	case errors.Is(err, fabric.ErrOrphan), errors.Is(err, fabric.ErrChannelFull), errors.Is(err, fabric.ErrStale), errors.Is(err, fabric.ErrClosed):
		return fault.Wrap(fault.Aborted, err, "") // the next round may well succeed
	case errors.Is(err, fabric.ErrUnknownCluster):
		return fault.Wrap(fault.NotFound, err, "")
	default:
		return err
	}
}
