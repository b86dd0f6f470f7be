package nodeagent

import (
	"context"
	"errors"

	"fermata/nodeagent/fabric"
	"fermata/protocol/api"
)

// TraceFrames sends what the node's guests send into a network, until ctx ends. A node
// without a guest on that network has nothing to send.
func (a *Agent) TraceFrames(ctx context.Context, req *api.TraceRequest, send func(*api.TraceChunk) error) error {
	err := a.plane.Trace(ctx, req.GetCluster(), req.GetNetwork(), func(events []fabric.Traced, lost uint64) error {
		chunk := &api.TraceChunk{Node: a.cfg.Name, Lost: lost}
		for _, e := range events {
			chunk.Frames = append(chunk.Frames, &api.TracedFrame{
				UnixNs: e.At.UnixNano(), Guest: e.NIC.Guest, Nic: e.NIC.NIC, Mac: e.MAC, Epoch: e.Epoch, Data: e.Data, Point: e.Point,
			})
		}
		return send(chunk)
	})
	if errors.Is(err, fabric.ErrUnknownNetwork) {
		<-ctx.Done()
		return nil
	}
	return fabricFault(err)
}
