package coordinator_test

import (
	"testing"

	"google.golang.org/grpc"

	"fermata/protocol/api"
	"fermata/protocol/fault"
)

// What names nothing is of one class, whichever verb names it, and the closest name that
// there is is suggested.
func TestNotFound_OneClassAndTheClosestName(t *testing.T) {
	l := newLab(t, "node1")
	c := l.ready(0)
	c.create("simulation", "a")
	ctx := t.Context()
	event := func(stream grpc.ServerStreamingClient[api.Event], err error) error {
		_, err = follow(stream, err)
		return err
	}
	one := func(_ any, err error) error { return err }
	const name = "simulatoin"
	for verb, err := range map[string]error{
		"cluster show":     one(c.GetCluster(ctx, &api.GetClusterRequest{Name: name})),
		"cluster start":    event(c.StartCluster(ctx, &api.StartClusterRequest{Name: name})),
		"cluster stop":     event(c.StopCluster(ctx, &api.StopClusterRequest{Name: name})),
		"cluster delete":   one(c.DeleteCluster(ctx, &api.DeleteClusterRequest{Name: name})),
		"checkpoint":       event(c.TakeCheckpoint(ctx, &api.CheckpointRequest{Cluster: name})),
		"checkpoints list": one(c.ListCheckpoints(ctx, &api.ListCheckpointsRequest{Cluster: name})),
		"console": func() error {
			stream, err := c.Console(ctx, &api.ConsoleRequest{Cluster: name, Guest: "a"})
			if err == nil {
				_, err = stream.Recv()
			}
			return err
		}(),
	} {
		if fault.ClassOf(err) != fault.NotFound || fault.HintOf(err) != "did you mean simulation?" {
			t.Errorf("%s: %v of class %v, hint %q", verb, err, fault.ClassOf(err), fault.HintOf(err))
		}
	}
	for verb, err := range map[string]error{
		"restart":            event(c.Restart(ctx, &api.RestartRequest{Cluster: name})),
		"checkpoints show":   one(c.GetCheckpoint(ctx, &api.GetCheckpointRequest{Id: name + "@1"})),
		"checkpoints verify": event(c.VerifyCheckpoint(ctx, &api.VerifyCheckpointRequest{Id: name + "@1"})),
		"checkpoints delete": one(c.DeleteCheckpoint(ctx, &api.DeleteCheckpointRequest{Id: name + "@1"})),
		"cluster of no like": one(c.GetCluster(ctx, &api.GetClusterRequest{Name: "zzz"})),
	} {
		if fault.ClassOf(err) != fault.NotFound {
			t.Errorf("%s: %v of class %v, want not-found", verb, err, fault.ClassOf(err))
		}
	}
	_, err := c.GetNode(ctx, &api.GetNodeRequest{Name: "node2"})
	if fault.HintOf(err) != "did you mean node1?" {
		t.Errorf("node show: %v", err)
	}
	if _, err := c.ListCheckpoints(ctx, &api.ListCheckpointsRequest{Cluster: "simulation"}); err != nil {
		t.Errorf("a cluster without checkpoints has an empty list: %v", err)
	}
}
