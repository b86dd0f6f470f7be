package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"fermata/imageio/repository"
	"fermata/protocol/api"
	"fermata/protocol/failpoint"
	"fermata/protocol/fault"
	"fermata/protocol/round"
	"fermata/vmm"
)

// resumeBudget bounds one attempt to let guests run: fresh, whatever was used
// up before. The state machine repeats the attempt.
const resumeBudget = 5 * time.Second

// worker carries out the actions of a cluster's member, one after the other.
//
// Concurrency: hand may be called beside run.
type worker struct {
	rounds *roundRun // immutable

	// Owned by run's goroutine:
	saving  *saving                        // nil when no round holds anything
	tracked map[string]*tracked            // by guest
	pending []kept                         // what is durable here, and waits for the round's outcome
	copied  map[pieceKey]*repository.Image // by the last round that became durable here

	mu      sync.Mutex
	queue   []job              // guarded by mu
	batch   int                // guarded by mu; number of the last hand
	current round.ID           // guarded by mu; of the job in progress
	abandon context.CancelFunc // guarded by mu; cancels the job in progress; nil: none is
	storing round.ID           // guarded by mu; the round that leave belongs to
	leave   context.CancelFunc // guarded by mu; ends what the round does with the repository; nil: none does
	wake    chan struct{}      // buffered 1; raised when queue grows
}

// job is one action; a job that fails takes those of its batch along.
type job struct {
	round.Action
	batch int
}

func newWorker(r *roundRun) *worker {
	return &worker{rounds: r, wake: make(chan struct{}, 1), tracked: map[string]*tracked{}}
}

// hand queues actions. Abandon acts at once. It never blocks.
func (w *worker) hand(actions []round.Action) {
	if len(actions) == 0 {
		return
	}
	w.mu.Lock()
	w.batch++
	for _, a := range actions {
		if a.Kind == round.Abandon {
			w.queue = slices.DeleteFunc(w.queue, func(j job) bool { return j.Round == a.Round })
			if w.abandon != nil && w.current == a.Round {
				w.abandon()
			}
			if w.leave != nil && w.storing == a.Round {
				w.leave()
			}
			continue
		}
		w.queue = append(w.queue, job{Action: a, batch: w.batch})
	}
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// run works until ctx ends, then frees what is held and drops all protection.
func (w *worker) run(ctx context.Context) {
	for {
		j, jobCtx, ok := w.next(ctx)
		if !ok {
			select {
			case <-w.wake:
				continue
			case <-ctx.Done():
				if err := errors.Join(w.free(), w.untrack()); err != nil {
					w.rounds.agent.log.Error("end of rounds", "cluster", w.rounds.cluster.name, "error", err)
				}
				return
			}
		}
		err := w.do(ctx, jobCtx, j.Action)
		w.finish(j, err)
	}
}

func (w *worker) next(ctx context.Context) (job, context.Context, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.queue) == 0 || ctx.Err() != nil {
		return job{}, nil, false
	}
	j := w.queue[0]
	w.queue = w.queue[1:]
	w.current = j.Round
	ctx, w.abandon = context.WithCancel(ctx)
	return j, ctx, true
}

// finish ends the job in progress. A failure takes those behind it of its batch
// along, except one to resume, which must not keep the memory of a round.
func (w *worker) finish(j job, err error) {
	w.mu.Lock()
	w.abandon()
	w.abandon = nil
	if err != nil && j.Kind != round.ResumeGuests {
		w.queue = slices.DeleteFunc(w.queue, func(q job) bool { return q.batch == j.batch })
	}
	w.mu.Unlock()
	switch {
	case err == nil:
	case j.Kind.Step() == "": // not answered
		w.rounds.agent.log.Warn("action failed", "cluster", w.rounds.cluster.name, "action", j.Action.String(), "error", err)
	default:
		w.rounds.failed(j.Round.Epoch, j.Kind.Step(), err)
	}
}

// storage is the repository for one round: its file operations end when the round
// is abandoned, and with life, whatever the file system does. So no round keeps
// the worker for longer than it lasts.
func (w *worker) storage(life, job context.Context, id round.ID) (*repository.Repository, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.leave != nil {
		w.leave()
	}
	var ctx context.Context
	ctx, w.leave = context.WithCancel(life)
	w.storing = id
	if job.Err() != nil { // abandoned before this was called
		w.leave()
	}
	return w.rounds.agent.storage(ctx)
}

// do carries out one action and hands its event back. ctx ends with the action,
// life with the worker.
func (w *worker) do(life, ctx context.Context, a round.Action) error {
	r, s, epoch := w.rounds, w.saving, a.Round.Epoch
	begun := time.Now()
	defer func() {
		r.agent.log.Debug("action done", "cluster", r.cluster.name, "epoch", epoch, "action", a.Kind.String(), "elapsed", time.Since(begun))
	}()
	switch a.Kind {
	case round.PrepareGuests:
		repo, err := w.storage(life, ctx, a.Round)
		if err != nil {
			return err
		}
		return w.prepare(ctx, a, repo)
	case round.ResumeGuests:
		return w.resume(ctx, epoch)
	case round.KeepImage:
		w.keep()
		r.agent.plane.Durable(r.cluster.name, uint64(epoch))
		return w.discard()
	case round.DiscardImage, round.ForgetImage:
		w.pending = nil
		return w.discard()
	}
	if s == nil || s.epoch != uint64(epoch) {
		return fault.New(fault.Internal, "nothing prepared for epoch %d", epoch)
	}
	switch a.Kind {
	case round.GateAndDrain:
		return s.gateAndDrain(ctx)
	case round.CutGuests:
		if err := s.cutGuests(ctx); err != nil {
			return err
		}
		r.post(func(m *round.Member) { m.GuestsCut(epoch) })
		return nil
	case round.StopGuests:
		if err := s.each(ctx, "stop", s.stop); err != nil {
			return err
		}
		r.post(func(m *round.Member) { m.GuestsStopped(epoch) })
		return nil
	case round.SendMarkers:
		return s.sendMarkers(ctx)
	case round.SaveState:
		if err := s.each(ctx, "save", s.saveState); err != nil {
			return err
		}
		r.post(func(m *round.Member) { m.StateSaved(epoch) })
		return nil
	case round.RecordChannels:
		return s.recordChannels(ctx)
	case round.StartPersist:
		return w.persist(ctx, s, epoch)
	default:
		return fault.New(fault.Internal, "unknown action %s", a)
	}
}

// writeBack is how long the disks of a guest may take to write out what it has written
// so far, before a round is given up. A disk of 100 MB/s writes 3 GB in that time.
const writeBack = 30 * time.Second

// prepare checks that every guest can be cut and reserves what the round needs.
func (w *worker) prepare(ctx context.Context, a round.Action, repo *repository.Repository) error {
	r := w.rounds
	w.pending = nil // of a round whose outcome was never heard
	if err := w.free(); err != nil {
		return err
	}
	if !r.cluster.isRunning() {
		return fault.New(fault.Invalid, "guests are not released")
	}
	if err := r.cluster.refuseEnded(r.agent.cfg.Name); err != nil {
		return err
	}
	for _, g := range r.cluster.leftovers() {
		return fault.New(fault.Invalid, "guest %s on node %s cannot be reached; use `fermata rollback %s` to go back to a checkpoint", g.spec.Name, r.agent.cfg.Name, r.cluster.name)
	}
	if err := repo.Refresh(ctx); err != nil {
		return fmt.Errorf("look for new packs: %w", repositoryFault(err))
	}
	if use := repo.IndexUse(); use.Declined > 0 {
		r.agent.log.Warn("no room in the index for what others have stored: it is stored once more where guests have it; raise agent_mib",
			"packs", use.Declined, "index-bytes", use.Bytes, "limit-bytes", use.Limit)
	}
	writer, err := repo.NewWriter(repository.WriterConfig{
		Cluster: r.cluster.name, Epoch: uint64(a.Round.Epoch), Node: r.agent.cfg.Name,
	})
	if err != nil {
		return fmt.Errorf("open writer: %w", repositoryFault(err))
	}
	s := &saving{
		agent: r.agent, cluster: r.cluster, epoch: uint64(a.Round.Epoch),
		options: a.Options, budget: a.Options.PauseBudget, writer: writer, copied: w.copied,
	}
	w.saving = s
	reply := &api.PrepareRoundReply{}
	for _, g := range r.cluster.list() {
		switch status, err := g.machine.Status(ctx); {
		case err != nil:
			return fmt.Errorf("guest %s: %w", g.spec.Name, err)
		case status == vmm.StatusIOError:
			return r.agent.stallFault(ctx, r.cluster, g)
		case status != vmm.StatusRunning:
			return fault.New(fault.Invalid, "guest %s on node %s is %s; only guests that run can be checkpointed", g.spec.Name, r.agent.cfg.Name, status)
		}
		if err := g.machine.ReadySave(ctx); err != nil {
			return fmt.Errorf("guest %s: %w", g.spec.Name, machineFault(err))
		}
		s.guests = append(s.guests, &savedGuest{guest: g, dropped: bypassDropped(g), report: &api.GuestReport{Name: g.spec.Name, Node: r.agent.cfg.Name}})
		reply.Guests = append(reply.Guests, g.spec.Name)
	}
	// Most of what the disks have to write is written here, with time for it.
	err = s.each(ctx, "ask disks", func(ctx context.Context, sg *savedGuest) error { return s.askDisksWithin(ctx, sg, writeBack) })
	if err != nil {
		return err
	}
	if err := w.chooseModes(ctx, s); err != nil {
		return err
	}
	if err := s.warm(ctx); err != nil {
		return err
	}
	var others []string
	for _, m := range a.Members {
		if m != round.NodeID(r.agent.cfg.Name) {
			others = append(others, string(m))
		}
	}
	err = s.beginCut(others,
		func(node string) {
			r.post(func(m *round.Member) { m.MarkerFrom(a.Round.Epoch, round.NodeID(node)) })
		},
		func(err error) { r.failed(a.Round.Epoch, round.StepCloseChannels, err) })
	if err != nil {
		return err
	}
	if err := s.arm(ctx); err != nil {
		return err
	}
	payload, err := proto.Marshal(reply)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	if err := failpoint.Inject(ctx, failpoint.AgentAfterPrepare); err != nil {
		return err
	}
	r.post(func(m *round.Member) { m.GuestsPrepared(a.Round.Epoch, payload) })
	return nil
}

func (w *worker) resume(ctx context.Context, epoch round.Epoch) error {
	reply := &api.CutRoundReply{}
	if s := w.saving; s != nil {
		ctx, cancel := context.WithTimeout(ctx, resumeBudget)
		defer cancel()
		if err := failpoint.Inject(ctx, failpoint.AgentBeforeResume); err != nil {
			return err
		}
		if err := s.resume(ctx); err != nil {
			return err
		}
		if err := failpoint.Inject(ctx, failpoint.AgentAfterResume); err != nil {
			return err
		}
		for _, sg := range s.guests {
			reply.Guests = append(reply.Guests, sg.report)
		}
	}
	payload, err := proto.Marshal(reply)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	w.rounds.post(func(m *round.Member) { m.GuestsResumed(epoch, payload) })
	return nil
}

func (w *worker) persist(ctx context.Context, s *saving, epoch round.Epoch) error {
	r := w.rounds
	r.done.Store(0)
	r.total.Store(s.rawBytes())
	image, err := s.persist(ctx, func(done, total uint64) {
		r.done.Store(done)
		r.total.Store(total)
	})
	if err != nil {
		// What it was built on may be what has gone: the next one reads everything.
		w.copied = nil
		for _, sg := range s.guests {
			if sg.tracked != nil {
				sg.tracked.base = nil
			}
		}
		return err
	}
	payload, err := proto.Marshal(image)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	w.pending, w.copied = s.keepable(), s.copies()
	// A member that waits for the outcome holds no memory.
	if err := w.discard(); err != nil {
		return err
	}
	r.post(func(m *round.Member) { m.PersistDone(epoch, payload) })
	return nil
}

// discard drops what the last round holds, but keeps account of guests that
// could not be resumed: the state machine asks for them again.
func (w *worker) discard() error {
	s := w.saving
	if s == nil {
		return nil
	}
	err := s.discard()
	if !s.standing() {
		w.saving = nil
	}
	return err
}

// free is discard after a last attempt to let guests run.
func (w *worker) free() error {
	if w.saving == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), resumeBudget)
	defer cancel()
	return errors.Join(w.saving.resume(ctx), w.discard())
}
