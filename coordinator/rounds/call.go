package rounds

import (
	"context"
	"errors"
	"io"
	"time"

	"fermata/coordinator/nodeconn"
	"fermata/protocol/api"
	"fermata/protocol/failpoint"
	"fermata/protocol/fault"
	"fermata/protocol/round"
)

// call makes one call on a goroutine of its own. It ends in exactly one answer.
func (r *run) call(ctx context.Context, req round.Request, post func(func())) {
	if req.Call != round.CallFinish {
		ctx = r.forward
	}
	node := r.nodes[req.To]
	r.calls.Go(func() {
		client, err := r.d.cfg.Nodes.Client(node.Name, node.Address)
		if err != nil {
			post(func() { r.answer(req, err) })
			return
		}
		switch req.Call {
		case round.CallPrepare:
			err = r.prepare(ctx, client, req)
		case round.CallCut:
			err = r.cut(ctx, client)
		case round.CallPersist:
			image, err := r.persist(ctx, client, req, post)
			post(func() {
				if err == nil {
					r.images[req.To] = image
				}
				r.answer(req, err)
			})
			return
		case round.CallFinish:
			err = r.finish(ctx, client, req)
		default:
			err = fault.New(fault.Internal, "call %s is none of a round", req.Call)
		}
		post(func() { r.answer(req, err) })
	})
}

func (r *run) wire() *api.Round {
	return &api.Round{Fence: r.job.Fence, Cluster: r.job.Round.Cluster, Epoch: uint64(r.job.Round.Epoch)}
}

func (r *run) prepare(ctx context.Context, client api.NodeClient, req round.Request) error {
	msg := &api.PrepareRoundRequest{
		Round: r.wire(), DiscardChannels: req.Options.DiscardChannels,
		Mode: api.CaptureMode(req.Options.Mode), Full: req.Options.Full, Audit: req.Options.Audit,
		PauseBudgetMs: uint64(req.Options.PauseBudget.Milliseconds()),
		Cut:           api.Cut(req.Options.Cut), SkewBudgetMs: uint64(req.Options.SkewBudget.Milliseconds()),
	}
	for _, m := range req.Members {
		msg.Nodes = append(msg.Nodes, string(m))
	}
	_, err := nodeconn.Once(ctx, r.d.cfg.Prepare, func(ctx context.Context) (*api.PrepareRoundReply, error) {
		return client.PrepareRound(ctx, msg)
	})
	return err
}

func (r *run) cut(ctx context.Context, client api.NodeClient) error {
	_, err := nodeconn.Once(ctx, r.d.cutBudget(r.job.Options), func(ctx context.Context) (*api.CutRoundReply, error) {
		return client.CutRound(ctx, &api.CutRoundRequest{Round: r.wire()})
	})
	return err
}

// persist follows one node, when it is its turn to write, until its image is
// durable. Its silence is watched by the owner, who knows of earlier attempts.
func (r *run) persist(ctx context.Context, client api.NodeClient, req round.Request, post func(func())) (*api.NodeImage, error) {
	begun := time.Now()
	post(func() { r.waiting[req.To] = true })
	end, err := r.d.takeTurn(ctx, func(ctx context.Context) error { return r.keepAlive(ctx, client) })
	if err != nil {
		return nil, err
	}
	defer end()
	waited := time.Since(begun)
	post(func() {
		delete(r.waiting, req.To)
		// Not now: attempts to reach a node that is lost are no sign of its life.
		r.heard[req.To] = r.heard[req.To].Add(waited)
	})
	stream, err := client.PersistRound(ctx, &api.PersistRoundRequest{Round: r.wire()})
	if err != nil {
		return nil, err
	}
	var image *api.NodeImage
	for {
		u, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		if u.GetImage() != nil {
			image = u.GetImage()
		}
		post(func() { r.persisting(req, u) })
	}
	if image == nil {
		return nil, fault.New(fault.Internal, "the node ended the call without an image")
	}
	if image.GetNode() != string(req.To) {
		return nil, fault.New(fault.Internal, "the image says it is of node %q", image.GetNode())
	}
	if err := r.job.CheckImage(image); err != nil {
		return nil, fault.Wrap(fault.Internal, err, "image")
	}
	return image, nil
}

// keepAlive tells a node that waits for its turn to write that the round goes on, by the
// call that it has answered last: otherwise it would take the coordinator for lost. Its
// answer says that the round goes on there, too.
//
// On error the round has failed at the node. That it did not answer is none: the call of
// its turn will show what is the matter.
func (r *run) keepAlive(ctx context.Context, client api.NodeClient) error {
	once, cancel := context.WithTimeout(ctx, r.d.cfg.Finish)
	defer cancel()
	_, err := client.CutRound(once, &api.CutRoundRequest{Round: r.wire()})
	if ctx.Err() != nil {
		return nil // who waits sees it
	}
	switch fault.ClassOf(err) {
	case fault.Unavailable, fault.Deadline, fault.Unknown, fault.Busy:
		return nil
	default:
		return err
	}
}

func (r *run) persisting(req round.Request, u *api.PersistRoundUpdate) {
	r.heard[req.To] = time.Now()
	r.job.Progress(&api.Event{
		Step: string(round.StepPersist), Node: string(req.To),
		DoneBytes: u.GetDoneBytes(), TotalBytes: u.GetTotalBytes(),
	})
}

func (r *run) finish(ctx context.Context, client api.NodeClient, req round.Request) error {
	msg := &api.FinishRoundRequest{Round: r.wire(), Committed: req.Outcome == round.Committed}
	_, err := nodeconn.Once(ctx, r.d.cfg.Finish, func(ctx context.Context) (*api.FinishRoundReply, error) {
		return client.FinishRound(ctx, msg)
	})
	if err != nil {
		return err
	}
	return failpoint.Inject(ctx, failpoint.CoordinatorAfterFinish)
}

// stepOf names the step that a call asks for, in errors and logs. A cut is
// several steps; which of them failed is in the node's own words.
func stepOf(c round.Call) string {
	switch c {
	case round.CallPrepare:
		return string(round.StepPrepare)
	case round.CallCut:
		return "cut"
	case round.CallPersist:
		return string(round.StepPersist)
	case round.CallFinish:
		return string(round.StepFinish)
	default:
		return c.String()
	}
}
