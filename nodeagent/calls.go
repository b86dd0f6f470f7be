package nodeagent

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"fermata/protocol/api"
	"fermata/protocol/failpoint"
	"fermata/protocol/fault"
	"fermata/protocol/round"
)

// member returns the driver of the cluster's rounds and the token by which its
// caller is known to it.
func (a *Agent) member(ctx context.Context, id *api.Round) (*roundRun, round.Request, error) {
	c, err := a.fence(ctx, id.GetCluster(), id.GetFence())
	if err != nil {
		return nil, round.Request{}, err
	}
	if id.GetEpoch() == 0 {
		return nil, round.Request{}, fault.New(fault.Invalid, "round: epoch missing")
	}
	c.mu.Lock()
	r, rec := c.round, c.rec
	c.mu.Unlock()
	if r == nil {
		return nil, round.Request{}, fault.New(fault.NotFound, "cluster %s has no guests on node %s", c.name, a.cfg.Name)
	}
	return r, round.Request{
		Round: round.ID{Cluster: c.name, Epoch: round.Epoch(id.Epoch)},
		Token: memberToken(len(rec.RetiredStores), id.Fence.Token),
		To:    round.NodeID(a.cfg.Name),
	}, nil
}

// PrepareRound answers when the node's guests are ready to be cut.
func (a *Agent) PrepareRound(ctx context.Context, in *api.PrepareRoundRequest) (*api.PrepareRoundReply, error) {
	r, req, err := a.member(ctx, in.GetRound())
	if err != nil {
		return nil, err
	}
	if len(in.Nodes) > maxGuests {
		return nil, fault.New(fault.Invalid, "round of %d nodes, limit %d", len(in.Nodes), maxGuests)
	}
	for _, n := range in.Nodes {
		req.Members = append(req.Members, round.NodeID(n))
	}
	req.Call = round.CallPrepare
	if _, known := api.CaptureMode_name[int32(in.Mode)]; !known {
		return nil, fault.New(fault.Invalid, "capture mode %d is not known here", in.Mode)
	}
	if _, known := api.Cut_name[int32(in.Cut)]; !known {
		return nil, fault.New(fault.Invalid, "cut %d is not known here", in.Cut)
	}
	req.Options = round.Options{
		PauseBudget:     atMostAnHour(in.PauseBudgetMs),
		Cut:             round.Cut(in.Cut),
		SkewBudget:      atMostAnHour(in.SkewBudgetMs),
		DiscardChannels: in.DiscardChannels,
		Mode:            round.Mode(in.Mode), Full: in.Full, Audit: in.Audit,
	}
	return callFor(ctx, r, req, &api.PrepareRoundReply{})
}

func atMostAnHour(ms uint64) time.Duration {
	return time.Duration(min(ms, uint64(time.Hour.Milliseconds()))) * time.Millisecond
}

// CutRound answers when the node's guests run again.
func (a *Agent) CutRound(ctx context.Context, in *api.CutRoundRequest) (*api.CutRoundReply, error) {
	r, req, err := a.member(ctx, in.GetRound())
	if err != nil {
		return nil, err
	}
	req.Call = round.CallCut
	return callFor(ctx, r, req, &api.CutRoundReply{})
}

// PersistRound answers when the node's image is durable, and reports progress
// until then.
func (a *Agent) PersistRound(ctx context.Context, in *api.PersistRoundRequest, report func(*api.PersistRoundUpdate) error) error {
	r, req, err := a.member(ctx, in.GetRound())
	if err != nil {
		return err
	}
	req.Call = round.CallPersist
	ended := make(chan struct{})
	var image *api.NodeImage
	go func() {
		defer close(ended)
		image, err = callFor(ctx, r, req, &api.NodeImage{})
	}()
	ticker := time.NewTicker(reportEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ended:
			if err != nil {
				return err
			}
			return report(&api.PersistRoundUpdate{Image: image})
		case <-ticker.C:
			// A reader that left shows in ctx, too; the call then ends by itself.
			_ = report(&api.PersistRoundUpdate{DoneBytes: r.done.Load(), TotalBytes: r.total.Load()})
		}
	}
}

// FinishRound answers when the node knows the outcome durably.
func (a *Agent) FinishRound(ctx context.Context, in *api.FinishRoundRequest) error {
	r, req, err := a.member(ctx, in.GetRound())
	if err != nil {
		return err
	}
	req.Call, req.Outcome = round.CallFinish, round.Aborted
	if in.Committed {
		req.Outcome = round.Committed
	}
	if err := failpoint.Inject(ctx, failpoint.AgentBeforeFinish); err != nil {
		return err
	}
	if _, err := r.call(ctx, req); err != nil {
		return err
	}
	return failpoint.Inject(ctx, failpoint.AgentAfterFinish)
}

// callFor makes a call whose answer is the message into.
func callFor[M proto.Message](ctx context.Context, r *roundRun, req round.Request, into M) (M, error) {
	payload, err := r.call(ctx, req)
	if err != nil {
		return into, err
	}
	if err := proto.Unmarshal(payload, into); err != nil {
		return into, fmt.Errorf("decode answer to %s: %w", req.Call, err)
	}
	return into, nil
}
