package coordinatortest

import (
	"context"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc"

	"fermata/imageio/repository"
	"fermata/protocol/api"
	"fermata/protocol/fault"
)

// roundState is what the agent knows of one epoch.
type roundState struct {
	fence    uint64 // token of the coordinator that drives it
	prepared bool
	cut      map[string][]byte // memory of each guest at the cut
	report   []*api.GuestReport
	image    *api.NodeImage
	finished bool
	outcome  bool // committed
	discard  bool
}

// Outcome tells what the agent was told of a round.
func (a *Agent) Outcome(name string, epoch uint64) (committed, told bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	c := a.clusters[name]
	if c == nil || c.rounds[epoch] == nil {
		return false, false
	}
	return c.rounds[epoch].outcome, c.rounds[epoch].finished
}

// PrepareRound implements api.NodeServer.
func (a *Agent) PrepareRound(ctx context.Context, req *api.PrepareRoundRequest) (reply *api.PrepareRoundReply, err error) {
	reply = &api.PrepareRoundReply{}
	err = a.meet(ctx, Prepare, func() error {
		a.mu.Lock()
		defer a.mu.Unlock()
		c, err := a.admit(req.GetRound().GetCluster(), req.GetRound().GetFence())
		if err != nil {
			return err
		}
		epoch := req.GetRound().GetEpoch()
		for other := range c.rounds {
			if other > epoch {
				return fault.New(fault.Stale, "epoch %d is over, have seen %d", epoch, other)
			}
		}
		if epoch <= c.epoch {
			a.broken = append(a.broken, fmt.Sprintf("round of epoch %d in a life that began in epoch %d", epoch, c.epoch))
		}
		if !slices.Contains(req.GetNodes(), a.cfg.Name) || req.GetPauseBudgetMs() == 0 || req.GetSkewBudgetMs() == 0 {
			a.broken = append(a.broken, fmt.Sprintf("prepare of epoch %d: members %v, pause budget %d ms, skew budget %d ms", epoch, req.GetNodes(), req.GetPauseBudgetMs(), req.GetSkewBudgetMs()))
		}
		if c.rounds[epoch] == nil {
			c.rounds[epoch] = &roundState{fence: req.GetRound().GetFence().GetToken()}
		}
		r := c.rounds[epoch]
		if r.finished {
			return fault.New(fault.Stale, "epoch %d is over", epoch)
		}
		r.prepared, r.discard = true, req.GetDiscardChannels()
		reply.Guests = sortedKeys(c.guests)
		return nil
	})
	return reply, err
}

// forward returns the round that a call drives on.
//
// Preconditions: mu is held.
func (a *Agent) forward(r *api.Round) (*cluster, *roundState, error) {
	c, err := a.admit(r.GetCluster(), r.GetFence())
	if err != nil {
		return nil, nil, err
	}
	state := c.rounds[r.GetEpoch()]
	switch {
	case state == nil || !state.prepared:
		return nil, nil, fault.New(fault.Invalid, "round %d was not prepared", r.GetEpoch())
	case state.fence != r.GetFence().GetToken():
		return nil, nil, fault.New(fault.Stale, "round %d is driven by another coordinator", r.GetEpoch())
	case state.finished:
		return nil, nil, fault.New(fault.Stale, "epoch %d is over", r.GetEpoch())
	}
	return c, state, nil
}

// CutRound implements api.NodeServer.
func (a *Agent) CutRound(ctx context.Context, req *api.CutRoundRequest) (reply *api.CutRoundReply, err error) {
	reply = &api.CutRoundReply{}
	err = a.meet(ctx, Cut, func() error {
		a.mu.Lock()
		defer a.mu.Unlock()
		c, r, err := a.forward(req.GetRound())
		if err != nil {
			return err
		}
		if r.cut == nil {
			r.cut = map[string][]byte{}
			for i, name := range sortedKeys(c.guests) {
				r.cut[name] = slices.Clone(c.guests[name].memory)
				report := &api.GuestReport{
					Name: name, Node: a.cfg.Name, PauseUs: 2000 + uint64(i), GateUs: 100, StopUs: 200, DevicesUs: 300, MemoryUs: 400,
					ChannelsUs: 500, ResumeUs: 600, StoppedUnixNs: time.Now().Add(a.ahead).UnixNano(), UndrainedNics: uint32(i),
				}
				if !r.discard {
					report.FramesRecorded = c.guests[name].frames
				}
				r.report = append(r.report, report)
			}
		}
		reply.Guests = r.report
		return nil
	})
	return reply, err
}

// SetAhead has the clock of the node be ahead of the others', from the next cut on.
func (a *Agent) SetAhead(by time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ahead = by
}

// Frames makes the next cut find n frames on their way to a guest.
func (a *Agent) Frames(name, guest string, n uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.clusters[name].guests[guest].frames = n
}

// PersistRound implements api.NodeServer.
func (a *Agent) PersistRound(req *api.PersistRoundRequest, stream grpc.ServerStreamingServer[api.PersistRoundUpdate]) error {
	return a.meet(stream.Context(), Persist, func() error {
		a.mu.Lock()
		defer a.mu.Unlock()
		c, r, err := a.forward(req.GetRound())
		if err != nil {
			return err
		}
		if r.cut == nil {
			return fault.New(fault.Invalid, "round %d was not cut", req.GetRound().GetEpoch())
		}
		total := uint64(len(r.cut)) * MemoryBytes
		if err := stream.Send(&api.PersistRoundUpdate{TotalBytes: total}); err != nil {
			return err
		}
		if r.image == nil {
			if r.image, err = a.persist(stream.Context(), req.GetRound(), c, r); err != nil {
				return err
			}
		}
		return stream.Send(&api.PersistRoundUpdate{DoneBytes: total, TotalBytes: total, Image: r.image})
	})
}

// persist writes the node's images.
func (a *Agent) persist(ctx context.Context, id *api.Round, c *cluster, r *roundState) (*api.NodeImage, error) {
	repo := a.repo.Within(ctx, 0)
	if err := repo.Refresh(ctx); err != nil {
		return nil, class(err)
	}
	w, err := repo.NewWriter(repository.WriterConfig{Cluster: id.GetCluster(), Epoch: id.GetEpoch(), Node: a.cfg.Name})
	if err != nil {
		return nil, err
	}
	image := &api.NodeImage{Node: a.cfg.Name, QemuVersion: "7.2.22"}
	for i, name := range sortedKeys(r.cut) {
		g := &api.GuestImage{Guest: name, Machine: machine(c.guests[name].spec)}
		put := func(kind, object string, data []byte, count uint64) error {
			ref, err := w.PutBytes(ctx, data)
			if err != nil {
				return err
			}
			g.Objects = append(g.Objects, &api.ImageObject{Kind: kind, Name: object, Id: ref.ID[:], SizeBytes: uint64(ref.Size), Count: count})
			return nil
		}
		if err := put("memory", "ram", r.cut[name], 0); err != nil {
			return nil, class(err)
		}
		if err := put("devices", "devices", []byte("devices of "+name), 0); err != nil {
			return nil, class(err)
		}
		if n := r.report[i].GetFramesRecorded(); n > 0 {
			if err := put("channel", "eth0", []byte(fmt.Sprintf("%d frames for %s", n, name)), n); err != nil {
				return nil, class(err)
			}
		}
		r.report[i].RawBytes, r.report[i].NonZeroBytes = MemoryBytes, (commonPages+ownPages)*pageBytes
		image.Guests = append(image.Guests, g)
	}
	result, err := w.Finish(ctx)
	if err != nil {
		return nil, class(err)
	}
	image.Packs, image.StoredBytes, image.NewUniqueBytes, image.Reports = result.Packs, result.StoredBytes, result.NewUniqueBytes, r.report
	return image, nil
}

// FinishRound implements api.NodeServer.
func (a *Agent) FinishRound(ctx context.Context, req *api.FinishRoundRequest) (*api.FinishRoundReply, error) {
	err := a.meet(ctx, Finish, func() error {
		a.mu.Lock()
		defer a.mu.Unlock()
		c, err := a.admit(req.GetRound().GetCluster(), req.GetRound().GetFence())
		if err != nil {
			return err
		}
		epoch := req.GetRound().GetEpoch()
		r := c.rounds[epoch]
		if r == nil {
			r = &roundState{}
			c.rounds[epoch] = r
		}
		if r.finished && r.outcome != req.GetCommitted() {
			a.broken = append(a.broken, fmt.Sprintf("epoch %d: told committed=%v and then committed=%v", epoch, r.outcome, req.GetCommitted()))
		}
		if req.GetCommitted() && r.image == nil {
			a.broken = append(a.broken, fmt.Sprintf("epoch %d: committed without this node's image", epoch))
		}
		r.finished, r.outcome = true, req.GetCommitted()
		return nil
	})
	return &api.FinishRoundReply{}, err
}
