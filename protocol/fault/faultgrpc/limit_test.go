package faultgrpc_test

import (
	"fmt"
	"net"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"fermata/protocol/api"
	"fermata/protocol/fault"
	"fermata/protocol/fault/faultgrpc"
)

// echo answers with the number of packs that it was sent.
type echo struct{ api.UnimplementedNodeServer }

func (echo) CreateGuests(req *api.CreateGuestsRequest, stream grpc.ServerStreamingServer[api.CreateGuestsUpdate]) error {
	if len(req.GetPacks()) == 0 {
		return fault.New(fault.Invalid, "no packs")
	}
	return stream.Send(&api.CreateGuestsUpdate{DoneBytes: uint64(len(req.GetPacks()))})
}

// TestLimits_TakeThePacksOfTheLargestCheckpoint: a manifest may name 400,000 packs, and a
// restart sends all of them to each agent.
func TestLimits_TakeThePacksOfTheLargestCheckpoint(t *testing.T) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(faultgrpc.ServerOptions()...)
	api.RegisterNodeServer(server, echo{})
	served := make(chan error, 1)
	go func() { served <- server.Serve(lis) }()
	defer func() {
		server.Stop()
		<-served
	}()
	conn, err := grpc.NewClient(lis.Addr().String(), append(faultgrpc.DialOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, n := range []int{130_000, 400_000, 1_000_000} {
		req := &api.CreateGuestsRequest{Cluster: "c"}
		for i := range n {
			req.Packs = append(req.Packs, fmt.Sprintf("%032x", i))
		}
		stream, err := api.NewNodeClient(conn).CreateGuests(t.Context(), req)
		if err != nil {
			t.Fatal(err)
		}
		if u, err := stream.Recv(); err != nil || u.GetDoneBytes() != uint64(n) {
			t.Errorf("%d packs: %v, %v", n, u, err)
		}
	}
}
