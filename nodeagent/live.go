package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"fermata/imageio/repository"
	"fermata/nodeagent/capture"
	"fermata/protocol/fault"
	"fermata/protocol/round"
	"fermata/vmm/uffd"
)

// tracked is a guest whose writes are tracked, from its first live checkpoint on.
//
// Concurrency: owned by the worker of the guest's cluster.
type tracked struct {
	tracker *capture.Tracker
	watched int                          // what the guard knows it by
	base    map[string]*repository.Image // by memory block: of the newest checkpoint known to be committed; nil: none
}

// kept is what a committed checkpoint leaves for the next one to build on.
type kept struct {
	*tracked
	cut    *capture.Cut
	images map[string]*repository.Image
}

// keep is told that the checkpoint whose images are pending was committed.
func (w *worker) keep() {
	for _, k := range w.pending {
		k.base = k.images
		k.cut.Keep()
	}
	w.pending = nil
}

// chooseModes decides how each guest's memory is captured. A mode that was asked
// for and cannot be is an error, never another mode.
func (w *worker) chooseModes(ctx context.Context, s *saving) error {
	for _, sg := range s.guests {
		if s.options.Mode == round.ModeStop {
			sg.report.Mode = round.ModeStop.String()
			continue
		}
		var err error
		if sg.tracked, err = w.track(ctx, sg.guest); err == nil {
			sg.report.Mode = round.ModeLive.String()
			continue
		}
		if s.options.Mode == round.ModeLive || ctx.Err() != nil {
			return fault.Wrap(fault.Invalid, err, "guest %s cannot be captured live", sg.spec.Name)
		}
		sg.report.Mode, sg.report.ModeReason = round.ModeStop.String(), err.Error()
	}
	return nil
}

// track returns what tracks a guest's writes; it begins to if nothing does.
func (w *worker) track(ctx context.Context, g *guest) (*tracked, error) {
	name := g.spec.Name
	if tr := w.tracked[name]; tr != nil {
		err := tr.tracker.Check()
		if err == nil && adopted(g) { // its owner may have plugged in a device that writes unseen
			err = g.machine.Trackable(ctx)
		}
		if err == nil {
			return tr, nil
		}
		w.rounds.agent.log.Warn("writes are tracked anew", "cluster", g.cluster, "guest", name, "error", err)
		delete(w.tracked, name)
		if err := w.endTracking(tr); err != nil {
			return nil, fmt.Errorf("end tracking: %w", err)
		}
	}
	if err := g.machine.Trackable(ctx); err != nil {
		return nil, err
	}
	var blocks []capture.Block
	for _, mem := range g.machine.Memory() {
		f, err := os.Open(mem.Path)
		if err != nil {
			return nil, errors.Join(err, closeBlocks(blocks))
		}
		blocks = append(blocks, capture.Block{Name: mem.Name, File: f, Offset: mem.Offset, Size: int64(mem.Size), Addr: mem.Addr})
	}
	t, err := w.rounds.agent.budget.Track(ctx, uffd.Process{PID: g.machine.PID(), Lend: g.machine.Lend}, blocks)
	if err != nil {
		return nil, err
	}
	tr := &tracked{tracker: t}
	if tr.watched, err = w.rounds.agent.guard.Watch(t.Held()); err != nil {
		return nil, errors.Join(err, t.Close())
	}
	w.tracked[name] = tr
	return tr, nil
}

// endTracking drops the protection of a guest.
func (w *worker) endTracking(tr *tracked) error {
	// The guard first: the descriptor's number is another file's once it is closed.
	err := w.rounds.agent.guard.Unwatch(tr.watched)
	return errors.Join(err, tr.tracker.Close())
}

func closeBlocks(blocks []capture.Block) error {
	var errs []error
	for _, b := range blocks {
		errs = append(errs, b.File.Close())
	}
	return errors.Join(errs...)
}

// untrack ends all tracking: the protection is dropped.
func (w *worker) untrack() error {
	var errs []error
	for name, tr := range w.tracked {
		if err := w.endTracking(tr); err != nil {
			errs = append(errs, fmt.Errorf("end tracking of guest %s: %w", name, err))
		}
	}
	clear(w.tracked)
	return errors.Join(errs...)
}

// armRests is for how long the arming of a guest, which all others wait for, steps back
// for guests that run.
const armRests = 2 * time.Second

// arm protects the memory of the guests that are captured live, while they run.
// It comes last before the cut: what is written in between costs pause.
func (s *saving) arm(ctx context.Context) error {
	return s.each(ctx, "protect", func(ctx context.Context, sg *savedGuest) error {
		if sg.tracked == nil {
			return nil
		}
		begun := time.Now()
		late := func() bool { return time.Since(begun) > armRests }
		// An audit takes everything, to compare it with what tracking says.
		full := sg.tracked.base == nil || s.options.Audit || s.options.Full
		err := sg.tracked.tracker.Arm(ctx, full, s.yielding(late))
		sg.report.ArmUs = micros(begun)
		return err
	})
}

// cutMemory fixes the memory of a guest that stands still.
func (s *saving) cutMemory(sg *savedGuest) (err error) {
	begun := time.Now()
	// I15: a write of the guest waits no longer than a pause may last.
	sg.cut, err = sg.tracked.tracker.Cut(s.budget, sg.hidden)
	sg.report.ProtectUs = micros(begun)
	return err
}

// sweepMemory stores the memory of all guests that are captured live, of all at
// once: a guest whose writes have filled the budget for pre-images waits for its
// own sweep.
func (s *saving) sweepMemory(ctx context.Context, meter *meter) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, sg := range s.guests {
		if sg.cut == nil {
			continue
		}
		g.Go(func() error {
			if err := s.sweepGuest(ctx, sg, meter); err != nil {
				return fmt.Errorf("persist: guest %s: %w", sg.spec.Name, err)
			}
			return nil
		})
	}
	return g.Wait()
}

func (s *saving) sweepGuest(ctx context.Context, sg *savedGuest, meter *meter) error {
	sg.images = map[string]*repository.Image{}
	var pieces []*piece
	for _, mem := range sg.machine.Memory() {
		src, err := sg.cut.Source(mem.Name)
		if err != nil {
			return err
		}
		data, changed := src.Data(), src.Changed()
		p := &piece{kind: kindMemory, name: mem.Name}
		opt := repository.PutOptions{Data: &data, Progress: meter.piece(), Urgent: src.Urgent, Turn: s.yielding(s.urgent)}
		if !s.options.Full {
			opt.Base, opt.Changed, opt.Audit = sg.tracked.base[mem.Name], &changed, s.options.Audit
		}
		image, err := s.writer.PutImage(ctx, src, src.Size(), opt)
		if err != nil {
			return fmt.Errorf("store %s %s: %w", p.kind, p.name, captureFault(err))
		}
		p.stored, p.stats = objectOf(p.kind, p.name, image.Ref), image.Stats
		sg.images[mem.Name] = image
		pieces = append(pieces, p)
	}
	if err := sg.cut.Whole(); err != nil {
		return captureFault(err)
	}
	sg.pieces = append(pieces, sg.pieces...)
	stats := sg.cut.Stats()
	sg.report.WriteFaults = stats.WriteFaults
	sg.report.LongestWaitUs = uint64(stats.LongestWait.Microseconds())
	sg.report.CopiedInPauseBytes = uint64(stats.CopiedBytes)
	sg.report.TakenBytes = uint64(stats.TakenBytes)
	sg.report.PeakBufferBytes = uint64(stats.PeakBytes)
	return sg.cut.Close()
}

// keepable returns what the next checkpoint builds on if this one is committed.
func (s *saving) keepable() (all []kept) {
	for _, sg := range s.guests {
		if sg.cut != nil {
			all = append(all, kept{sg.tracked, sg.cut, sg.images})
		}
	}
	return all
}

// dropCuts gives up what is captured of live guests and not stored.
func (s *saving) dropCuts() error {
	var errs []error
	for _, sg := range s.guests {
		if sg.tracked == nil {
			continue
		}
		if sg.cut != nil {
			errs = append(errs, sg.cut.Close())
		}
		errs = append(errs, sg.tracked.tracker.Disarm())
	}
	return errors.Join(errs...)
}

// captureFault gives an error of storing captured memory its class.
func captureFault(err error) error {
	switch {
	case errors.Is(err, capture.ErrStalled):
		return fault.Wrap(fault.Deadline, err, "capture")
	case errors.Is(err, uffd.ErrRevoked):
		return fault.Wrap(fault.Aborted, err, "writes were not seen while the agent hung")
	case errors.Is(err, repository.ErrDiverged):
		return fault.Wrap(fault.Internal, err, "audit: a write was not seen")
	case errors.Is(err, repository.ErrBaseGone):
		return fault.Wrap(fault.Aborted, err, "the last checkpoint has gone from the repository")
	default:
		return repositoryFault(err)
	}
}
