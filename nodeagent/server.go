package nodeagent

import (
	"context"

	"google.golang.org/grpc"

	"fermata/protocol/api"
	"fermata/protocol/fault/faultgrpc"
	"fermata/protocol/identity"
)

// nodeServer is the gRPC face of an agent: it calls the agent and nothing
// else. Interceptors translate errors and check the caller's role.
type nodeServer struct {
	api.UnimplementedNodeServer
	agent *Agent
}

func serverOptions(id *identity.Identity) []grpc.ServerOption {
	opts := faultgrpc.ServerOptions()
	if id != nil {
		opts = append(opts, id.ServerOptions(identity.ServiceRules())...)
	}
	return opts
}

func (s *nodeServer) Describe(ctx context.Context, _ *api.DescribeRequest) (*api.NodeInfo, error) {
	return s.agent.Describe(ctx)
}

func (s *nodeServer) CheckGuests(req *api.CheckGuestsRequest, stream grpc.ServerStreamingServer[api.CheckGuestsUpdate]) error {
	return s.agent.CheckGuests(stream.Context(), req, stream.Send)
}

func (s *nodeServer) CreateGuests(req *api.CreateGuestsRequest, stream grpc.ServerStreamingServer[api.CreateGuestsUpdate]) error {
	return s.agent.CreateGuests(stream.Context(), req, stream.Send)
}

func (s *nodeServer) StepClocks(ctx context.Context, req *api.StepClocksRequest) (*api.StepClocksReply, error) {
	return s.agent.StepClocks(ctx, req)
}

func (s *nodeServer) ReleaseGuests(ctx context.Context, req *api.ReleaseGuestsRequest) (*api.ReleaseGuestsReply, error) {
	if err := s.agent.ReleaseGuests(ctx, req); err != nil {
		return nil, err
	}
	return &api.ReleaseGuestsReply{}, nil
}

func (s *nodeServer) DestroyGuests(ctx context.Context, req *api.DestroyGuestsRequest) (*api.DestroyGuestsReply, error) {
	return &api.DestroyGuestsReply{}, s.agent.DestroyGuests(ctx, req)
}

func (s *nodeServer) ReadConsole(req *api.ConsoleRequest, stream grpc.ServerStreamingServer[api.ConsoleChunk]) error {
	return s.agent.ReadConsole(stream.Context(), req, stream.Send)
}

func (s *nodeServer) TraceFrames(req *api.TraceRequest, stream grpc.ServerStreamingServer[api.TraceChunk]) error {
	return s.agent.TraceFrames(stream.Context(), req, stream.Send)
}

func (s *nodeServer) PrepareRound(ctx context.Context, req *api.PrepareRoundRequest) (*api.PrepareRoundReply, error) {
	return s.agent.PrepareRound(ctx, req)
}

func (s *nodeServer) CutRound(ctx context.Context, req *api.CutRoundRequest) (*api.CutRoundReply, error) {
	return s.agent.CutRound(ctx, req)
}

func (s *nodeServer) PersistRound(req *api.PersistRoundRequest, stream grpc.ServerStreamingServer[api.PersistRoundUpdate]) error {
	return s.agent.PersistRound(stream.Context(), req, stream.Send)
}

func (s *nodeServer) FinishRound(ctx context.Context, req *api.FinishRoundRequest) (*api.FinishRoundReply, error) {
	return &api.FinishRoundReply{}, s.agent.FinishRound(ctx, req)
}
