package coordinator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"fermata/protocol/api"
	"fermata/protocol/fault"
)

// consoleSilence is how long a node may take for the next piece of a console
// that is read to its end. One that is followed may be quiet for ever.
const consoleSilence = 10 * time.Second

// maxChunkBytes is the limit of ConsoleChunk.data in the wire's definition.
const maxChunkBytes = 64 << 10

// liveNode returns a client of a node that has just given a sign of life: what is
// streamed from it may be quiet for long, which is then no sign of a hanging agent.
func (c *Coordinator) liveNode(ctx context.Context, name string) (api.NodeClient, error) {
	info, err := c.node(ctx, name)
	if err != nil {
		return nil, err
	}
	client, err := c.nodes.Client(name, info.GetAddress())
	if err != nil {
		return nil, err
	}
	if _, err := c.deployer.Describe(ctx, nodeOf(info)); err != nil {
		return nil, err
	}
	return client, nil
}

// console hands on what a guest printed, until its node has no more or, when
// the reader follows, until the reader goes away.
func (c *Coordinator) console(ctx context.Context, req *api.ConsoleRequest, send func(*api.ConsoleChunk) error) error {
	rec, err := c.store.Cluster(ctx, req.GetCluster())
	if err != nil {
		return err
	}
	name, assigned := rec.Assignments[req.GetGuest()]
	if !assigned {
		return fault.New(fault.NotFound, "guest %s of cluster %s is on no node", req.GetGuest(), req.GetCluster())
	}
	client, err := c.liveNode(ctx, name)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if !req.GetFollow() {
		alarm := time.AfterFunc(consoleSilence, func() {
			cancel(fault.New(fault.Deadline, "node %s sent nothing for %s", name, consoleSilence))
		})
		defer alarm.Stop()
		forward := send
		send = func(chunk *api.ConsoleChunk) error {
			alarm.Stop() // a slow reader is not the node's fault
			defer alarm.Reset(consoleSilence)
			return forward(chunk)
		}
	}
	stream, err := client.ReadConsole(ctx, req)
	if err != nil {
		return fmt.Errorf("console of guest %s on node %s: %w", req.GetGuest(), name, err)
	}
	for {
		chunk, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			var silent *fault.Error
			if errors.As(context.Cause(ctx), &silent) {
				err = silent
			}
			return fmt.Errorf("console of guest %s on node %s: %w", req.GetGuest(), name, err)
		case len(chunk.GetData()) > maxChunkBytes:
			return fault.New(fault.Internal, "console of guest %s on node %s: chunk of %d bytes, at most %d", req.GetGuest(), name, len(chunk.GetData()), maxChunkBytes)
		}
		if err := send(chunk); err != nil {
			return err
		}
	}
}
