package etcdembed

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// gate ends every stream at once when it closes. etcd ends itself gracefully:
// as long as a client watches, or watches again the moment its watch is ended,
// that takes the full timeout of several seconds. See TestRun_EndsQuickly.
type gate struct {
	open  context.Context // ends when the gate closes
	close context.CancelFunc
}

func newGate() *gate {
	ctx, cancel := context.WithCancel(context.Background())
	return &gate{open: ctx, close: cancel}
}

// gatedStream is a stream whose context also ends when the gate closes. The
// handlers of etcd return when their context ends.
type gatedStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s gatedStream) Context() context.Context { return s.ctx }

func (g *gate) intercept(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	if g.open.Err() != nil {
		return status.Error(codes.Unavailable, "embedded etcd is ending")
	}
	ctx, cancel := context.WithCancel(ss.Context())
	defer cancel()
	defer context.AfterFunc(g.open, cancel)()
	return handler(srv, gatedStream{ServerStream: ss, ctx: ctx})
}
