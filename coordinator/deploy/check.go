package deploy

import (
	"context"

	"google.golang.org/grpc"

	"fermata/coordinator/nodeconn"
	"fermata/protocol/api"
	"fermata/protocol/fault"
)

// Check asks every node whether it could make its part, once the cluster's present guests
// are gone. With readData the nodes also read and verify all images. Nothing is changed
// anywhere. All nodes are asked, whatever fails, so that the error names every obstacle.
func (d *Deployer) Check(ctx context.Context, life Life, parts []Part, readData bool, progress func(*api.Event)) error {
	byNode := make(map[string]Part, len(parts))
	nodes := make([]Node, 0, len(parts))
	for _, p := range parts {
		byNode[p.Node.Name] = p
		nodes = append(nodes, p.Node)
	}
	return d.onEachNode(life, nodes, StepCheck, func(n Node, client api.NodeClient) error {
		p, checked := byNode[n.Name], false
		req := &api.CheckGuestsRequest{Create: requestFor(life, p, peersOf(n, parts)), ReadData: readData}
		err := nodeconn.Follow(ctx, d.cfg.Create, func(ctx context.Context) (grpc.ServerStreamingClient[api.CheckGuestsUpdate], error) {
			return client.CheckGuests(ctx, req)
		}, func(u *api.CheckGuestsUpdate) {
			checked = checked || u.GetChecked()
			progress(&api.Event{Step: StepCheck, Node: n.Name, DoneBytes: u.GetDoneBytes(), TotalBytes: u.GetTotalBytes()})
		})
		if err == nil && !checked {
			return fault.New(fault.Internal, "the node ended the check without an answer")
		}
		return err
	})
}
