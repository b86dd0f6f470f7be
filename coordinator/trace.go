package coordinator

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"fermata/protocol/api"
	"fermata/protocol/fault"
)

// trace hands on what the guests of all nodes send into a network, until the reader
// goes away or a node's part ends.
func (c *Coordinator) trace(ctx context.Context, req *api.TraceRequest, send func(*api.TraceChunk) error) error {
	rec, err := c.store.Cluster(ctx, req.GetCluster())
	if err != nil {
		return err
	}
	s, err := specOf(rec)
	if err != nil {
		return err
	}
	if names := networksOf(s); !slices.Contains(names, req.GetNetwork()) {
		return fault.New(fault.NotFound, "cluster %s has no network %s, but %s", req.GetCluster(), req.GetNetwork(), strings.Join(names, ", "))
	}
	nodes := map[string]bool{}
	for _, node := range rec.Assignments {
		nodes[node] = true
	}
	if len(nodes) == 0 {
		return fault.New(fault.Invalid, "cluster %s is %s, only a running one can be traced", req.GetCluster(), stateWord(rec.State))
	}
	var mu sync.Mutex
	one := func(chunk *api.TraceChunk) error {
		mu.Lock()
		defer mu.Unlock()
		return send(chunk)
	}
	g, ctx := errgroup.WithContext(ctx)
	for node := range nodes {
		g.Go(func() error {
			if err := c.traceNode(ctx, node, req, one); err != nil {
				return fmt.Errorf("trace on node %s: %w", node, err)
			}
			return nil
		})
	}
	return g.Wait()
}

func (c *Coordinator) traceNode(ctx context.Context, node string, req *api.TraceRequest, send func(*api.TraceChunk) error) error {
	client, err := c.liveNode(ctx, node)
	if err != nil {
		return err
	}
	stream, err := client.TraceFrames(ctx, req)
	if err != nil {
		return err
	}
	for {
		chunk, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		if err := send(chunk); err != nil {
			return err
		}
	}
}
