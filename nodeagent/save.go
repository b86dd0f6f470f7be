package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"fermata/imageio/extent"
	"fermata/imageio/repository"
	"fermata/nodeagent/capture"
	"fermata/protocol/api"
	"fermata/protocol/failpoint"
	"fermata/protocol/fault"
	"fermata/protocol/round"
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
	options round.Options
	budget  time.Duration // a guest may stand still
	writer  *repository.Writer
	endCut  func() // closes the cut on the wire; nil before beginCut
	guests  []*savedGuest
	copied  map[pieceKey]*repository.Image // by the round before; immutable
	places  []*place
	loose   sync.WaitGroup // copying that a step may have left behind; see apart
}

// savedGuest is one guest's part of the cut.
type savedGuest struct {
	*guest
	report  *api.GuestReport
	dropped uint64    // frames that its cards on bridges had no room for before the round
	silent  time.Time // since when it takes no frames; zero: it takes them
	stopAt  time.Time // just before the guard was told
	held    bool      // may stand still for this round; the guard watches it
	devices []byte
	warm    map[string]*capture.Warm     // places for copies, by memory block; not when live
	tracked *tracked                     // nil: not captured live
	cut     *capture.Cut                 // nil before the cut, and when not live
	images  map[string]*repository.Image // of live memory, by block, once stored
	pieces  []*piece
	frames  []recordedFrames

	// hidden is not read for this cut, registered what of it the guest has asked for;
	// both as they were when it had stopped.
	hidden     capture.Hidden
	registered extent.Set
}

// piece is a memory block or disk overlay: a copy to be stored after the pause,
// or stored already when the copy did not fit into the budget.
type piece struct {
	kind, name string
	last       *repository.Image // of the round before, if that copied it, too
	image      *repository.Image // once stored
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

// guardSlack is how much later than the agent's own deadline the guard acts, so
// that it acts only when the agent cannot.
const guardSlack = 2 * time.Second

// saveState takes device state, then memory and disks, of a guest. Saving devices
// may still write guest memory, so memory comes after it.
func (s *saving) saveState(ctx context.Context, sg *savedGuest) (err error) {
	sg.hidden, sg.registered = sg.confidential.now()
	for _, set := range sg.hidden {
		sg.report.ConfidentialBytes += uint64(set.Bytes())
	}
	begun := time.Now()
	if sg.devices, err = sg.machine.SaveDevices(ctx); err != nil {
		return err
	}
	sg.report.DevicesUs = micros(begun)
	if err := failpoint.Inject(ctx, failpoint.AgentAfterSaveDevices); err != nil {
		return err
	}
	begun = time.Now()
	if sg.tracked == nil {
		for _, mem := range sg.machine.Memory() {
			if err := s.savePiece(ctx, sg, kindMemory, mem); err != nil {
				return err
			}
		}
	}
	for _, d := range sg.spec.Disks {
		if d.ReadOnly {
			continue
		}
		overlay := vmm.Memory{Name: d.Name, Path: overlayPath(sg.dir, d.Name)}
		if d.QuotaBytes > 0 {
			if overlay.Size, err = overlaySize(overlay.Path); err != nil {
				return fmt.Errorf("disk %s: %w", d.Name, err)
			}
		}
		if err := s.savePiece(ctx, sg, kindDisk, overlay); err != nil {
			return err
		}
	}
	sg.report.MemoryUs = micros(begun)
	if sg.tracked != nil {
		if err := s.cutMemory(sg); err != nil {
			return err
		}
	}
	// The guard may have let the guest run because we were too slow: then what
	// was read is of no instant.
	status, err := sg.machine.Status(ctx)
	if err != nil {
		return err
	}
	if status != vmm.StatusPaused {
		return fault.New(fault.Deadline, "guest is %s, should have stood still: pause budget of %s is used up", status, s.budget)
	}
	return failpoint.Inject(ctx, failpoint.AgentAfterSaveMemory)
}

// savePiece takes one memory block or disk overlay. Size 0: the whole file.
func (s *saving) savePiece(ctx context.Context, sg *savedGuest, kind string, from vmm.Memory) error {
	p := &piece{kind: kind, name: from.Name, last: s.copied[pieceKey{sg.spec.Name, kind, from.Name}]}
	sg.pieces = append(sg.pieces, p)
	var warm *capture.Warm
	var hidden extent.Set
	if kind == kindMemory {
		warm, hidden = sg.warm[from.Name], sg.hidden[from.Name]
	}
	return s.apart(ctx, func() error {
		if err := s.takePiece(ctx, p, from, warm, hidden); err != nil {
			return fmt.Errorf("%s %s: %w", kind, from.Name, err)
		}
		return nil
	})
}

// apart runs f and waits for it no longer than ctx: a disk or filesystem that
// hangs must not keep guests from running. What f touches is its own until
// loose is done.
func (s *saving) apart(ctx context.Context, f func() error) error {
	done := make(chan error, 1)
	s.loose.Go(func() { done <- f() })
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// warmBudget bounds the making of places for copies. It is a matter of speed
// only: what is not ready by then is made inside the pause.
const warmBudget = 5 * time.Second

// place is where the memory of one block will be copied to. It belongs to the
// goroutine that makes it until loose is done.
type place struct{ warm *capture.Warm }

// warm makes places for copies of all guests' memory while they run.
func (s *saving) warm(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, warmBudget)
	defer cancel()
	for _, sg := range s.guests {
		if sg.tracked != nil {
			continue
		}
		sg.warm = map[string]*capture.Warm{}
		for _, mem := range sg.machine.Memory() {
			if !mappable(mem) {
				continue
			}
			p := &place{}
			s.places = append(s.places, p)
			err := s.apart(ctx, func() error {
				f, err := os.Open(mem.Path)
				if err != nil {
					return err
				}
				p.warm, err = s.agent.budget.Warm(ctx, f, int64(mem.Size))
				return errors.Join(err, f.Close())
			})
			switch {
			case err == nil:
				sg.warm[mem.Name] = p.warm
			case !errors.Is(err, capture.ErrOverBudget) && !errors.Is(err, context.DeadlineExceeded):
				return fmt.Errorf("memory of guest %s: %w", sg.spec.Name, err)
			}
		}
	}
	return nil
}

// takePiece copies a piece, into a place made ready before if there is one, or
// stores it at once when the copy would take more memory than is left. What is hidden
// is not read.
func (s *saving) takePiece(ctx context.Context, p *piece, from vmm.Memory, warm *capture.Warm, hidden extent.Set) error {
	f, err := os.Open(from.Path)
	if err != nil {
		return err
	}
	defer f.Close()
	size := int64(from.Size)
	if size == 0 {
		fi, err := f.Stat()
		if err != nil {
			return err
		}
		size = fi.Size()
	}
	switch {
	case warm != nil:
		p.copy, err = warm.Copy(ctx, f, hidden)
	case p.kind == kindMemory && mappable(from):
		p.copy, err = s.agent.budget.CopyMemory(ctx, f, size, hidden)
	default:
		p.copy, err = s.agent.budget.CopyFile(ctx, f, from.Offset, size, hidden)
	}
	if !errors.Is(err, capture.ErrOverBudget) {
		return err
	}
	s.agent.log.Warn("capture budget is used up, storing inside the pause",
		"cluster", s.cluster.name, "epoch", s.epoch, "piece", p.name)
	data, err := capture.Data(f, from.Offset, size)
	if err != nil {
		return err
	}
	return s.store(ctx, p, io.NewSectionReader(f, from.Offset, size), size, data.Subtract(hidden), repository.PutOptions{})
}

// mappable tells memory that lies in a file of its own, from its beginning.
func mappable(mem vmm.Memory) bool { return mem.Offset == 0 }

// store puts one piece into the repository.
func (s *saving) store(ctx context.Context, p *piece, src io.ReaderAt, size int64, data extent.Set, opt repository.PutOptions) error {
	opt.Data, opt.Fingerprint = &data, true
	if p.last != nil && p.last.Ref.Size == size && !s.options.Full {
		opt.Base = p.last
	}
	img, err := s.writer.PutImage(ctx, src, size, opt)
	if err != nil {
		return fmt.Errorf("store %s %s: %w", p.kind, p.name, repositoryFault(err))
	}
	p.image, p.stored, p.stats = img, objectOf(p.kind, p.name, img.Ref), img.Stats
	return nil
}

// pieceKey names a piece that is copied in the pause.
type pieceKey struct{ guest, kind, name string }

// copies returns the images of what was copied, by whose fingerprints the next round
// finds what has not changed since.
func (s *saving) copies() map[pieceKey]*repository.Image {
	all := map[pieceKey]*repository.Image{}
	for _, sg := range s.guests {
		for _, p := range sg.pieces {
			if p.image != nil {
				all[pieceKey{sg.spec.Name, p.kind, p.name}] = p.image
			}
		}
	}
	return all
}

// resume makes every guest that this round stopped run again and opens all
// ingress. It tries all guests, whatever fails, and may be called in any state.
func (s *saving) resume(ctx context.Context) error {
	errs := make([]error, len(s.guests))
	var wg sync.WaitGroup
	for i, sg := range s.guests {
		wg.Go(func() { errs[i] = s.resumeGuest(ctx, sg) })
	}
	wg.Wait()
	s.closeCut()
	return errors.Join(errs...)
}

func (s *saving) resumeGuest(ctx context.Context, sg *savedGuest) error {
	if sg.held {
		begun := time.Now()
		switch err := s.agent.continueGuest(ctx, sg.guest); {
		case errors.Is(err, vmm.ErrGone):
			// Nothing is left to run. What was saved of it is as good as before.
			s.agent.log.Warn("guest ended while it stood still", "cluster", s.cluster.name, "guest", sg.spec.Name, "error", err)
		case err != nil:
			return fmt.Errorf("continue guest %s: %w", sg.spec.Name, err)
		}
		sg.report.ResumeUs = micros(begun)
		sg.report.PauseUs = micros(sg.stopAt)
		sg.report.ChannelsUs = sg.report.PauseUs - min(sg.report.PauseUs,
			sg.report.StopUs+sg.report.DevicesUs+sg.report.ProtectUs+sg.report.MemoryUs+sg.report.ResumeUs)
	}
	stood := sg.held
	sg.held = false
	err := s.agent.ungate(sg.guest) // at once: it is silent until then
	if stood {
		sg.heard()
		if err := s.agent.guard.Release(sg.machine.State().GuardPath); err != nil {
			// The guest runs, and that is all the guard could do for it.
			s.agent.log.Error("guard does not answer", "error", err)
		}
	}
	return err
}

// heard enters that a guest takes frames again.
func (sg *savedGuest) heard() {
	r := sg.report
	r.SilentUs = micros(sg.silent)
	r.WaitUs = r.SilentUs - min(r.SilentUs, r.GateUs+r.DrainUs+r.PauseUs)
	sg.silent = time.Time{}
}

// standing tells whether a guest may still stand still for this round.
func (s *saving) standing() bool {
	return slices.ContainsFunc(s.guests, func(sg *savedGuest) bool { return sg.held })
}

func (s *saving) closeCut() {
	if s.endCut != nil {
		s.endCut()
	}
}

// discard frees the memory that the round holds, and gives up what of the image
// is not durable yet. It waits for copying that was left behind. It is
// idempotent and lets no guest run.
func (s *saving) discard() error {
	s.closeCut()
	s.loose.Wait()
	var errs []error
	for _, sg := range s.guests {
		for _, p := range sg.pieces {
			if p.copy != nil {
				errs = append(errs, p.copy.Close())
			}
		}
		sg.warm, sg.pieces, sg.devices, sg.frames = nil, nil, nil, nil
	}
	for _, p := range s.places {
		if p.warm != nil {
			errs = append(errs, p.warm.Close())
		}
	}
	s.places = nil
	errs = append(errs, s.dropCuts())
	if s.writer != nil {
		errs = append(errs, s.writer.Abort())
	}
	return errors.Join(errs...)
}

func micros(since time.Time) uint64 { return uint64(max(time.Since(since).Microseconds(), 0)) }

func objectOf(kind, name string, ref repository.Ref) *api.ImageObject {
	return &api.ImageObject{Kind: kind, Name: name, Id: append([]byte(nil), ref.ID[:]...), SizeBytes: uint64(ref.Size)}
}
