package coordinator

import (
	"context"
	"errors"

	"google.golang.org/grpc"

	"fermata/coordinator/store"
	"fermata/protocol/api"
	"fermata/protocol/fault"
	"fermata/protocol/text"
)

// Limits of requests, beyond those of the specification.
const (
	maxRestrictions = 1024 // guests placed, or nodes listed, by one request
)

// MaxLabelBytes bounds the label of a checkpoint.
const MaxLabelBytes = 256

// CheckLabel refuses what cannot be the label of a checkpoint.
func CheckLabel(label string) error {
	if n := len(label); n > MaxLabelBytes {
		return fault.New(fault.Invalid, "label: %d bytes, at most %d", n, MaxLabelBytes)
	}
	return fault.Wrap(fault.Invalid, text.Check(label), "label")
}

// operatorServer is the gRPC face towards operators: it checks a request,
// calls, and nothing else. Interceptors check the caller's role and translate
// errors.
type operatorServer struct {
	api.UnimplementedOperatorServer
	c *Coordinator
}

// registryServer is the gRPC face towards agents.
type registryServer struct {
	api.UnimplementedRegistryServer
	c *Coordinator
}

// led runs a call that only the leader serves. Its context ends with the term.
func led[T any](ctx context.Context, c *Coordinator, call func(ctx context.Context, t *term) (T, error)) (T, error) {
	t, err := c.leading(ctx)
	if err == nil {
		err = t.enter()
	}
	if err != nil {
		var none T
		return none, err
	}
	defer t.work.Done()
	ctx, cancel := joined(ctx, t.ctx)
	defer cancel()
	return call(ctx, t)
}

// ledEvents is led for a call that reports progress.
func ledEvents(stream grpc.ServerStreamingServer[api.Event], c *Coordinator, call func(ctx context.Context, t *term, p progress) (*api.Event, error)) error {
	return sendEvents(stream, func(ctx context.Context, p progress) (*api.Event, error) {
		return led(ctx, c, func(ctx context.Context, t *term) (*api.Event, error) { return call(ctx, t, p) })
	})
}

func (s *operatorServer) CreateCluster(ctx context.Context, req *api.CreateClusterRequest) (*api.Cluster, error) {
	return led(ctx, s.c, func(ctx context.Context, t *term) (*api.Cluster, error) { return t.createCluster(ctx, req) })
}

func (s *operatorServer) ListClusters(ctx context.Context, _ *api.ListClustersRequest) (*api.ListClustersReply, error) {
	clusters, err := s.c.describeClusters(ctx)
	if err != nil {
		return nil, err
	}
	return &api.ListClustersReply{Clusters: clusters}, nil
}

func (s *operatorServer) GetCluster(ctx context.Context, req *api.GetClusterRequest) (*api.Cluster, error) {
	if err := store.CheckName("cluster", req.GetName()); err != nil {
		return nil, err
	}
	return s.c.describeCluster(ctx, req.GetName())
}

func (s *operatorServer) StartCluster(req *api.StartClusterRequest, stream grpc.ServerStreamingServer[api.Event]) error {
	if err := errors.Join(store.CheckName("cluster", req.GetName()), checkRestriction(req.GetOn(), nil)); err != nil {
		return err
	}
	return ledEvents(stream, s.c, func(ctx context.Context, t *term, p progress) (*api.Event, error) { return t.start(ctx, req, p) })
}

func (s *operatorServer) StopCluster(req *api.StopClusterRequest, stream grpc.ServerStreamingServer[api.Event]) error {
	if err := store.CheckName("cluster", req.GetName()); err != nil {
		return err
	}
	return ledEvents(stream, s.c, func(ctx context.Context, t *term, p progress) (*api.Event, error) { return t.stop(ctx, req, p) })
}

func (s *operatorServer) DeleteCluster(ctx context.Context, req *api.DeleteClusterRequest) (*api.DeleteClusterReply, error) {
	if err := store.CheckName("cluster", req.GetName()); err != nil {
		return nil, err
	}
	return led(ctx, s.c, func(ctx context.Context, t *term) (*api.DeleteClusterReply, error) {
		return &api.DeleteClusterReply{}, t.deleteCluster(ctx, req.GetName())
	})
}

func (s *operatorServer) TakeCheckpoint(req *api.CheckpointRequest, stream grpc.ServerStreamingServer[api.Event]) error {
	if err := store.CheckName("cluster", req.GetCluster()); err != nil {
		return err
	}
	if err := CheckLabel(req.GetLabel()); err != nil {
		return err
	}
	return ledEvents(stream, s.c, func(ctx context.Context, t *term, p progress) (*api.Event, error) { return t.checkpoint(ctx, req, p) })
}

func (s *operatorServer) CancelCheckpoint(ctx context.Context, req *api.CancelCheckpointRequest) (*api.CancelCheckpointReply, error) {
	if err := store.CheckName("cluster", req.GetCluster()); err != nil {
		return nil, err
	}
	return led(ctx, s.c, func(_ context.Context, t *term) (*api.CancelCheckpointReply, error) {
		return &api.CancelCheckpointReply{}, t.cancelCheckpoint(req.GetCluster())
	})
}

func (s *operatorServer) ListCheckpoints(ctx context.Context, req *api.ListCheckpointsRequest) (*api.ListCheckpointsReply, error) {
	if name := req.GetCluster(); name != "" {
		if err := store.CheckName("cluster", name); err != nil {
			return nil, err
		}
	}
	return s.c.listCheckpoints(ctx, req.GetCluster())
}

func (s *operatorServer) GetCheckpoint(ctx context.Context, req *api.GetCheckpointRequest) (*api.Checkpoint, error) {
	cluster, epoch, err := parseID(req.GetId())
	if err != nil {
		return nil, err
	}
	return s.c.showCheckpoint(ctx, cluster, epoch)
}

func (s *operatorServer) VerifyCheckpoint(req *api.VerifyCheckpointRequest, stream grpc.ServerStreamingServer[api.Event]) error {
	cluster, epoch, err := parseID(req.GetId())
	if err != nil {
		return err
	}
	return ledEvents(stream, s.c, func(ctx context.Context, t *term, p progress) (*api.Event, error) {
		return t.verifyCheckpoint(ctx, cluster, epoch, p)
	})
}

func (s *operatorServer) DeleteCheckpoint(ctx context.Context, req *api.DeleteCheckpointRequest) (*api.DeleteCheckpointReply, error) {
	cluster, epoch, err := parseID(req.GetId())
	if err != nil {
		return nil, err
	}
	return led(ctx, s.c, func(ctx context.Context, t *term) (*api.DeleteCheckpointReply, error) {
		return t.deleteCheckpoint(ctx, cluster, epoch)
	})
}

func (s *operatorServer) Restart(req *api.RestartRequest, stream grpc.ServerStreamingServer[api.Event]) error {
	if err := errors.Join(store.CheckName("cluster", req.GetCluster()), checkRestriction(req.GetOn(), req.GetNodes())); err != nil {
		return err
	}
	return ledEvents(stream, s.c, func(ctx context.Context, t *term, p progress) (*api.Event, error) { return t.restart(ctx, req, p) })
}

func (s *operatorServer) ListNodes(ctx context.Context, _ *api.ListNodesRequest) (*api.ListNodesReply, error) {
	// When nodes were last seen is what the leader knows, and a client finds it by this call.
	return led(ctx, s.c, func(ctx context.Context, _ *term) (*api.ListNodesReply, error) { return s.c.listNodes(ctx) })
}

func (s *operatorServer) GetNode(ctx context.Context, req *api.GetNodeRequest) (*api.NodeInfo, error) {
	if err := store.CheckName("node", req.GetName()); err != nil {
		return nil, err
	}
	return s.c.describeNode(ctx, req.GetName())
}

func (s *operatorServer) Console(req *api.ConsoleRequest, stream grpc.ServerStreamingServer[api.ConsoleChunk]) error {
	if err := errors.Join(store.CheckName("cluster", req.GetCluster()), store.CheckName("guest", req.GetGuest())); err != nil {
		return err
	}
	return s.c.console(stream.Context(), req, stream.Send)
}

func (s *operatorServer) Trace(req *api.TraceRequest, stream grpc.ServerStreamingServer[api.TraceChunk]) error {
	if err := errors.Join(store.CheckName("cluster", req.GetCluster()), store.CheckName("network", req.GetNetwork())); err != nil {
		return err
	}
	return s.c.trace(stream.Context(), req, stream.Send)
}

func (s *registryServer) Register(ctx context.Context, req *api.RegisterRequest) (*api.RegisterReply, error) {
	return led(ctx, s.c, func(ctx context.Context, t *term) (*api.RegisterReply, error) { return t.register(ctx, req) })
}

// checkRestriction refuses wishes for a placement that cannot be meant.
func checkRestriction(on map[string]string, nodes []string) error {
	if len(on) > maxRestrictions || len(nodes) > maxRestrictions {
		return fault.New(fault.Invalid, "placement: more than %d entries", maxRestrictions)
	}
	var errs []error
	for guest, node := range on {
		errs = append(errs, store.CheckName("guest", guest), store.CheckName("node", node))
	}
	for _, node := range nodes {
		errs = append(errs, store.CheckName("node", node))
	}
	return errors.Join(errs...)
}
