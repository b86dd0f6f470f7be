package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"fermata/imageio/extent"
	"fermata/imageio/repository"
	"fermata/nodeagent/capture"
	"fermata/nodeagent/fabric"
	"fermata/protocol/api"
	"fermata/protocol/fault"
	"fermata/vmm"
)

// saving is what one round has taken of this node's guests so far. The steps
// below fill it in the order of the round's actions.
//
// Concurrency: one step at a time; inside a step each guest has a goroutine of
// its own, which touches only its own savedGuest.
type saving struct {
	agent   *Agent
	cluster *cluster
	epoch   uint64
	budget  time.Duration // a guest may stand still
	writer  *repository.Writer
	endCut  func() // closes the cut on the wire; nil before beginCut
	guests  []*savedGuest
}

// savedGuest is one guest's part of the cut.
type savedGuest struct {
	*guest
	report  *api.GuestReport
	stopAt  time.Time // just before the order to stop; zero: not stopped by us
	held    bool      // the guard watches it
	devices []byte
	pieces  []*piece
	frames  []recordedFrames
}

// piece is a memory block or disk overlay: a copy to be stored after the pause,
// or stored already when the copy did not fit into the budget.
type piece struct {
	kind, name string
	copy       *capture.Copy
	stored     *api.ImageObject
	stats      repository.ImageStats
}

type recordedFrames struct {
	nic    string
	frames [][]byte
}

// each runs f for every guest at once and joins the errors, naming guests.
func (s *saving) each(ctx context.Context, step string, f func(context.Context, *savedGuest) error) error {
	g, gctx := errgroup.WithContext(ctx)
	for _, sg := range s.guests {
		g.Go(func() error {
			if err := f(gctx, sg); err != nil {
				return fmt.Errorf("%s: guest %s: %w", step, sg.spec.Name, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// gateAndDrain closes the ingress of all guests, then waits until each has
// taken what was on its way. The guests run. A guest that takes no frames is
// not waited for longer than the drain budget: what it has not taken is taken
// back after the stop.
func (s *saving) gateAndDrain(ctx context.Context) error {
	begun := time.Now()
	for _, sg := range s.guests {
		for _, n := range sg.nics {
			n.port.Gate()
		}
	}
	return s.each(ctx, "drain", func(ctx context.Context, sg *savedGuest) error {
		ctx, cancel := context.WithTimeout(ctx, s.agent.cfg.DrainBudget)
		defer cancel()
		for _, n := range sg.nics {
			err := n.port.Drain(ctx)
			switch {
			case errors.Is(err, fabric.ErrUndrained):
				sg.report.UndrainedNics++
			case err != nil:
				return fmt.Errorf("card %s: %w", n.spec.Name, err)
			}
		}
		sg.report.GateUs = micros(begun)
		return nil
	})
}

// stop makes all guests stand still and empties the wire behind them: frames
// they did not take go back to the front of what is held for them, frames they
// sent are read and switched.
func (s *saving) stop(ctx context.Context) error {
	err := s.each(ctx, "stop", func(ctx context.Context, sg *savedGuest) error {
		if err := s.agent.guard.Hold(sg.machine.State().GuardPath, s.budget+guardSlack); err != nil {
			return err
		}
		sg.held = true
		sg.stopAt = time.Now()
		if err := sg.machine.Stop(ctx); err != nil {
			return err
		}
		sg.report.StoppedUnixNs = time.Now().UnixNano()
		sg.report.StopUs = micros(sg.stopAt)
		for _, n := range sg.nics {
			if _, err := n.port.Reclaim(); err != nil {
				return fmt.Errorf("take frames back from card %s: %w", n.spec.Name, err)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return s.agent.fabric.DrainEgress(ctx, s.cluster.name)
}

// guardSlack is how much later than the agent's own deadline the guard acts, so
// that it acts only when the agent cannot.
const guardSlack = 2 * time.Second

// saveState takes device state, then memory and disks, of all guests. Saving
// devices may still write guest memory, so memory comes after it.
func (s *saving) saveState(ctx context.Context) error {
	return s.each(ctx, "save", func(ctx context.Context, sg *savedGuest) (err error) {
		begun := time.Now()
		if sg.devices, err = sg.machine.SaveDevices(ctx); err != nil {
			return err
		}
		sg.report.DevicesUs = micros(begun)
		begun = time.Now()
		for _, mem := range sg.machine.Memory() {
			if err := s.savePiece(ctx, sg, kindMemory, mem.Name, mem.Path, int64(mem.Size)); err != nil {
				return err
			}
		}
		for _, d := range sg.spec.Disks {
			if d.ReadOnly {
				continue
			}
			path := overlayPath(sg.dir, d.Name)
			fi, err := os.Stat(path)
			if err != nil {
				return fmt.Errorf("disk %s: %w", d.Name, err)
			}
			if err := s.savePiece(ctx, sg, kindDisk, d.Name, path, fi.Size()); err != nil {
				return err
			}
		}
		sg.report.MemoryUs = micros(begun)
		// The guard may have let the guest run because we were too slow: then what
		// was read is of no instant.
		status, err := sg.machine.Status(ctx)
		if err != nil {
			return err
		}
		if status != vmm.StatusPaused {
			return fault.New(fault.Deadline, "guest is %s, should have stood still: pause budget of %s is used up", status, s.budget)
		}
		return nil
	})
}

func (s *saving) savePiece(ctx context.Context, sg *savedGuest, kind, name, path string, size int64) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open %s %s: %w", kind, name, err)
	}
	defer f.Close()
	p := &piece{kind: kind, name: name}
	sg.pieces = append(sg.pieces, p)
	p.copy, err = s.agent.budget.CopyFile(f, size)
	if !errors.Is(err, capture.ErrOverBudget) {
		return err
	}
	s.agent.log.Warn("capture budget is used up, storing inside the pause",
		"guest", sg.spec.Name, "piece", name, "epoch", s.epoch)
	data, err := capture.Data(f, size)
	if err != nil {
		return err
	}
	return s.store(ctx, p, f, size, data, nil)
}

// store puts one piece into the repository.
func (s *saving) store(ctx context.Context, p *piece, src io.ReaderAt, size int64, data extent.Set, progress func(int64)) error {
	ref, stats, err := s.writer.PutImage(ctx, src, size, repository.PutOptions{Data: &data, Progress: progress})
	if err != nil {
		return fmt.Errorf("store %s %s: %w", p.kind, p.name, repositoryFault(err))
	}
	p.stored, p.stats = objectOf(p.kind, p.name, ref), stats
	return nil
}

// beginCut opens the cut on the wire and calls marker for each of the other
// members once all their markers are here.
func (s *saving) beginCut(others []string, marker func(node string)) error {
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
		if err != nil {
			// The pause budget ends the round if it still needs them.
			s.agent.log.Debug("markers missing", "cluster", s.cluster.name, "epoch", s.epoch, "error", err)
			return
		}
		for _, node := range others {
			marker(node)
		}
	}()
	return nil
}

// sendMarkers tells the other members that no frame of before the cut follows.
func (s *saving) sendMarkers() error {
	return s.agent.fabric.SendMarkers(s.cluster.name, s.epoch)
}

// recordChannels keeps what was sent before the cut and not received before it.
func (s *saving) recordChannels(discard bool) error {
	if discard {
		return nil
	}
	state, err := s.agent.fabric.ChannelState(s.cluster.name, s.epoch)
	if err != nil {
		return fmt.Errorf("record channels: %w", err)
	}
	for _, sg := range s.guests {
		for _, n := range sg.nics {
			frames := state[fabric.PortKey{Guest: sg.spec.Name, NIC: n.spec.Name}]
			if len(frames) == 0 {
				continue
			}
			sg.frames = append(sg.frames, recordedFrames{nic: n.spec.Name, frames: frames})
			sg.report.FramesRecorded += uint64(len(frames))
		}
	}
	return nil
}

// resume makes every guest that this round stopped run again and opens all
// ingress. It tries all guests, whatever fails, and may be called in any state.
func (s *saving) resume(ctx context.Context) error {
	errs := make([]error, len(s.guests))
	g := errgroup.Group{}
	for i, sg := range s.guests {
		g.Go(func() error {
			errs[i] = s.resumeGuest(ctx, sg)
			return nil
		})
	}
	_ = g.Wait()
	if s.endCut != nil {
		s.endCut()
	}
	return errors.Join(errs...)
}

func (s *saving) resumeGuest(ctx context.Context, sg *savedGuest) error {
	if sg.held {
		begun := time.Now()
		sg.report.ChannelsUs = uint64(max(begun.Sub(sg.stopAt).Microseconds()-int64(sg.report.StopUs+sg.report.DevicesUs+sg.report.MemoryUs), 0))
		if err := sg.machine.Continue(ctx); err != nil {
			return fmt.Errorf("continue guest %s: %w", sg.spec.Name, err)
		}
		sg.report.ResumeUs = micros(begun)
		sg.report.PauseUs = micros(sg.stopAt)
		if err := s.agent.guard.Release(sg.machine.State().GuardPath); err != nil {
			return err
		}
		sg.held = false
	}
	sg.ungate()
	return nil
}

// discard frees what the round holds. Nothing of it was made visible.
func (s *saving) discard() error {
	var errs []error
	for _, sg := range s.guests {
		for _, p := range sg.pieces {
			if p.copy != nil {
				errs = append(errs, p.copy.Close())
			}
		}
		sg.pieces, sg.devices, sg.frames = nil, nil, nil
	}
	if s.writer != nil {
		errs = append(errs, s.writer.Abort())
	}
	return errors.Join(errs...)
}

func micros(since time.Time) uint64 { return uint64(max(time.Since(since).Microseconds(), 0)) }

func objectOf(kind, name string, ref repository.Ref) *api.ImageObject {
	return &api.ImageObject{Kind: kind, Name: name, Id: append([]byte(nil), ref.ID[:]...), SizeBytes: uint64(ref.Size)}
}
