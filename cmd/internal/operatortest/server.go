// Package operatortest serves the coordinator's Operator service from fixed
// answers, for tests of what operators see. It speaks over a real socket, so
// that the connection is tested as well.
package operatortest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"fermata/protocol/api"
	"fermata/protocol/fault"
	"fermata/protocol/fault/faultgrpc"
)

// Server answers every call from the state in state.go. A call about
// something that is not there is of class not-found.
type Server struct {
	api.UnimplementedOperatorServer

	// Address is what --coordinator takes.
	Address string

	// Fail makes every call end with this error. Set before the first call.
	Fail error
	// Hold makes TakeCheckpoint wait, after its first event, until the call is
	// cancelled, or CancelCheckpoint is called; it then ends with Verdict. Set
	// before the first call.
	Hold    bool
	Verdict error
	// Old makes the server one that does not know CancelCheckpoint.
	Old bool
	// Silent makes TakeCheckpoint end without a result. Set before the first call.
	Silent bool

	mu        sync.Mutex
	requests  []proto.Message // guarded by mu
	cancelled chan struct{}   // closed when a held call was cancelled
}

// New starts a server that ends with the test.
func New(t testing.TB, opts ...grpc.ServerOption) *Server {
	t.Helper()
	// Not t.TempDir(): the path of a socket has at most 107 bytes, and a test's
	// name is part of that directory.
	dir, err := os.MkdirTemp("", "operator")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "s")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{Address: "unix:" + path, cancelled: make(chan struct{})}
	s.Serve(t, listener, opts...)
	return s
}

// Serve serves s on one more listener until the test ends.
func (s *Server) Serve(t testing.TB, listener net.Listener, opts ...grpc.ServerOption) {
	t.Helper()
	server := grpc.NewServer(append(faultgrpc.ServerOptions(), opts...)...)
	api.RegisterOperatorServer(server, s)
	done := make(chan struct{})
	go func() {
		defer close(done)
		// A test may end before it has begun to serve.
		if err := server.Serve(listener); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			t.Errorf("serve: %v", err)
		}
	}()
	t.Cleanup(func() {
		server.Stop()
		<-done
	})
}

// Requests returns what was asked, in order.
func (s *Server) Requests() []proto.Message {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]proto.Message(nil), s.requests...)
}

// Cancelled is closed when a held call was cancelled.
func (s *Server) Cancelled() <-chan struct{} { return s.cancelled }

func (s *Server) note(m proto.Message) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.requests = append(s.requests, proto.Clone(m))
	return s.Fail
}

func (s *Server) cluster(name string) (*api.Cluster, error) {
	for _, c := range Clusters() {
		if c.GetName() == name {
			return c, nil
		}
	}
	return nil, fault.New(fault.NotFound, "no cluster %s", name)
}

func (s *Server) checkpoint(id string) (*api.Checkpoint, error) {
	for _, c := range Checkpoints() {
		if c.GetId() == id {
			return c, nil
		}
	}
	return nil, fault.New(fault.NotFound, "no checkpoint %s", id)
}

// CreateCluster answers with a cluster of no guests and the specification.
func (s *Server) CreateCluster(_ context.Context, r *api.CreateClusterRequest) (*api.Cluster, error) {
	if err := s.note(r); err != nil {
		return nil, err
	}
	return &api.Cluster{Name: "created", State: api.ClusterState_CLUSTER_STATE_STOPPED, SpecYaml: r.GetSpecYaml()}, nil
}

// ListClusters answers with all.
func (s *Server) ListClusters(_ context.Context, r *api.ListClustersRequest) (*api.ListClustersReply, error) {
	return &api.ListClustersReply{Clusters: Clusters()}, s.note(r)
}

// GetCluster answers with one.
func (s *Server) GetCluster(_ context.Context, r *api.GetClusterRequest) (*api.Cluster, error) {
	if err := s.note(r); err != nil {
		return nil, err
	}
	return s.cluster(r.GetName())
}

// StartCluster tells a step and the cluster.
func (s *Server) StartCluster(r *api.StartClusterRequest, stream grpc.ServerStreamingServer[api.Event]) error {
	if err := s.note(r); err != nil {
		return err
	}
	return s.sendCluster(r.GetName(), "release", stream)
}

// StopCluster tells a step and the cluster.
func (s *Server) StopCluster(r *api.StopClusterRequest, stream grpc.ServerStreamingServer[api.Event]) error {
	if err := s.note(r); err != nil {
		return err
	}
	return s.sendCluster(r.GetName(), "destroy", stream)
}

func (s *Server) sendCluster(name, step string, stream grpc.ServerStreamingServer[api.Event]) error {
	c, err := s.cluster(name)
	if err != nil {
		return err
	}
	return send(stream, &api.Event{Step: step, Node: "node1"}, &api.Event{Result: &api.Event_Cluster{Cluster: c}})
}

// DeleteCluster answers when there is one.
func (s *Server) DeleteCluster(_ context.Context, r *api.DeleteClusterRequest) (*api.DeleteClusterReply, error) {
	if err := s.note(r); err != nil {
		return nil, err
	}
	_, err := s.cluster(r.GetName())
	return &api.DeleteClusterReply{}, err
}

// TakeCheckpoint tells the steps of a round and the first checkpoint.
func (s *Server) TakeCheckpoint(r *api.CheckpointRequest, stream grpc.ServerStreamingServer[api.Event]) error {
	if err := s.note(r); err != nil {
		return err
	}
	if _, err := s.cluster(r.GetCluster()); err != nil {
		return err
	}
	if err := send(stream, &api.Event{Step: "prepare"}); err != nil {
		return err
	}
	if s.Hold {
		select {
		case <-stream.Context().Done():
			close(s.cancelled)
			return stream.Context().Err()
		case <-s.cancelled:
			if s.Verdict != nil {
				return s.Verdict
			}
		}
	}
	err := send(stream,
		&api.Event{Step: "persist", Node: "node1", DoneBytes: 1 << 20, TotalBytes: 2 << 20},
		&api.Event{Step: "persist", Node: "node1", DoneBytes: 2 << 20, TotalBytes: 2 << 20})
	if err != nil || s.Silent {
		return err
	}
	return send(stream, &api.Event{Result: &api.Event_Checkpoint{Checkpoint: Checkpoints()[0]}})
}

// CancelCheckpoint ends a call that is held.
func (s *Server) CancelCheckpoint(_ context.Context, r *api.CancelCheckpointRequest) (*api.CancelCheckpointReply, error) {
	if s.Old {
		return nil, fault.New(fault.Internal, "unknown method CancelCheckpoint")
	}
	if err := s.note(r); err != nil {
		return nil, err
	}
	close(s.cancelled)
	return &api.CancelCheckpointReply{}, nil
}

// ListCheckpoints answers with those of the cluster.
func (s *Server) ListCheckpoints(_ context.Context, r *api.ListCheckpointsRequest) (*api.ListCheckpointsReply, error) {
	reply := &api.ListCheckpointsReply{}
	for _, c := range Checkpoints() {
		if r.GetCluster() == "" || r.GetCluster() == c.GetCluster() {
			reply.Checkpoints = append(reply.Checkpoints, c)
		}
	}
	return reply, s.note(r)
}

// GetCheckpoint answers with one.
func (s *Server) GetCheckpoint(_ context.Context, r *api.GetCheckpointRequest) (*api.Checkpoint, error) {
	if err := s.note(r); err != nil {
		return nil, err
	}
	return s.checkpoint(r.GetId())
}

// VerifyCheckpoint finds damage in epoch 2 of cluster demo.
func (s *Server) VerifyCheckpoint(r *api.VerifyCheckpointRequest, stream grpc.ServerStreamingServer[api.Event]) error {
	if err := s.note(r); err != nil {
		return err
	}
	c, err := s.checkpoint(r.GetId())
	if err != nil {
		return err
	}
	report := &api.VerifyReport{CheckpointId: c.GetId(), Bytes: c.GetRawBytes()}
	if c.GetEpoch() == 2 {
		report.Damage = []*api.Damage{
			{Object: "pack 9f", Reason: "digest of frame 3 differs", Guests: []string{"b", "a"}},
			{Object: "pack 1c", Reason: "missing", Guests: []string{"a"}},
		}
	}
	return send(stream, &api.Event{Step: "verify", DoneBytes: 1, TotalBytes: 2}, &api.Event{Result: &api.Event_Verify{Verify: report}})
}

// DeleteCheckpoint answers when there is one.
func (s *Server) DeleteCheckpoint(_ context.Context, r *api.DeleteCheckpointRequest) (*api.DeleteCheckpointReply, error) {
	if err := s.note(r); err != nil {
		return nil, err
	}
	_, err := s.checkpoint(r.GetId())
	return &api.DeleteCheckpointReply{FreedBytes: 3 << 20}, err
}

// Restart reports a plan for the cluster's guests.
func (s *Server) Restart(r *api.RestartRequest, stream grpc.ServerStreamingServer[api.Event]) error {
	if err := s.note(r); err != nil {
		return err
	}
	c, err := s.cluster(r.GetCluster())
	if err != nil {
		return err
	}
	report := &api.RestartReport{
		CheckpointId: fmt.Sprintf("%s@1", c.GetName()), DryRun: r.GetDryRun(),
		Skipped: []string{fmt.Sprintf("%s@2: pack 1c: missing", c.GetName())},
	}
	for _, g := range c.GetGuests() {
		report.Plan = append(report.Plan, &api.Assignment{Guest: g.GetName(), Node: g.GetNode(), MemoryBytes: g.GetMemoryBytes(), Vcpus: g.GetVcpus()})
	}
	if !r.GetDryRun() {
		report.RestartUs, report.FramesInjected = 1_234_500, 3
	}
	return send(stream, &api.Event{Step: "create", Node: "node1", Guest: "a", DoneBytes: 1, TotalBytes: 2},
		&api.Event{Result: &api.Event_Restart{Restart: report}})
}

// ListNodes answers with all.
func (s *Server) ListNodes(_ context.Context, r *api.ListNodesRequest) (*api.ListNodesReply, error) {
	return &api.ListNodesReply{Nodes: Nodes()}, s.note(r)
}

// GetNode answers with one.
func (s *Server) GetNode(_ context.Context, r *api.GetNodeRequest) (*api.NodeInfo, error) {
	if err := s.note(r); err != nil {
		return nil, err
	}
	for _, n := range Nodes() {
		if n.GetName() == r.GetName() {
			return n, nil
		}
	}
	return nil, fault.New(fault.NotFound, "no node %s", r.GetName())
}

// Console tells two lines from the offset on.
func (s *Server) Console(r *api.ConsoleRequest, stream grpc.ServerStreamingServer[api.ConsoleChunk]) error {
	if err := s.note(r); err != nil {
		return err
	}
	if _, err := s.cluster(r.GetCluster()); err != nil {
		return err
	}
	for _, chunk := range []string{"booting\r\n", "ready\r\n"} {
		if err := stream.Send(&api.ConsoleChunk{Data: []byte(chunk)}); err != nil {
			return err
		}
	}
	return nil
}

// Trace tells of a frame, of its sender's point, and of a frame behind that. A caller
// that sets a deadline hears that it has passed.
func (s *Server) Trace(r *api.TraceRequest, stream grpc.ServerStreamingServer[api.TraceChunk]) error {
	if err := s.note(r); err != nil {
		return err
	}
	if _, err := s.cluster(r.GetCluster()); err != nil {
		return err
	}
	mac := []byte{0x52, 0x54, 0, 0, 0, 1}
	frame := append(append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, mac...), 0x08, 0x06, 1, 2, 3)
	if err := stream.Send(&api.TraceChunk{Node: "node1", Lost: 2, Frames: []*api.TracedFrame{
		{UnixNs: begun, Guest: "a", Nic: "net0", Mac: mac, Epoch: 6, Data: frame},
		{UnixNs: begun + 1, Guest: "a", Nic: "net0", Mac: mac, Epoch: 7, Point: true},
		{UnixNs: begun + 2, Guest: "a", Nic: "net0", Mac: mac, Epoch: 7, Data: frame},
	}}); err != nil {
		return err
	}
	if _, deadline := stream.Context().Deadline(); deadline {
		return context.DeadlineExceeded
	}
	return nil
}

func send(stream grpc.ServerStreamingServer[api.Event], events ...*api.Event) error {
	for _, e := range events {
		if err := stream.Send(e); err != nil {
			return err
		}
	}
	return nil
}
