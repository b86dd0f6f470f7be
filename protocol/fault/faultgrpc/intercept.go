package faultgrpc

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc"
)

// MaxMessageBytes bounds one message, in both directions and on both sides of every
// connection. The largest names all packs and guests of a checkpoint, as its manifest
// does, which the repository bounds at 64 MiB; the rest is room for specifications.
const MaxMessageBytes = 96 << 20

// ServerOptions makes a server apply To to what its handlers and the
// interceptors that follow return, and accept what clients with DialOptions send.
func ServerOptions() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.MaxRecvMsgSize(MaxMessageBytes),
		grpc.MaxSendMsgSize(MaxMessageBytes),
		grpc.ChainUnaryInterceptor(UnaryServer),
		grpc.ChainStreamInterceptor(StreamServer),
	}
}

// DialOptions makes a client apply From to the errors of its calls, and accept what
// servers with ServerOptions send.
func DialOptions() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(MaxMessageBytes), grpc.MaxCallSendMsgSize(MaxMessageBytes)),
		grpc.WithChainUnaryInterceptor(UnaryClient),
		grpc.WithChainStreamInterceptor(StreamClient),
	}
}

// UnaryServer applies To.
func UnaryServer(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	reply, err := handler(ctx, req)
	return reply, To(err)
}

// StreamServer applies To. Errors of the stream itself that a handler hands on
// come from the transport to the client, which will hardly read the answer.
func StreamServer(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	return To(handler(srv, stream))
}

// UnaryClient applies From.
func UnaryClient(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	return From(invoke(ctx, method, req, reply, conn, opts...))
}

// StreamClient applies From to every operation of the stream. io.EOF, which
// tells the end of a stream and not an error, stays as it is.
func StreamClient(ctx context.Context, desc *grpc.StreamDesc, conn *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	s, err := open(ctx, desc, conn, method, opts...)
	if err != nil {
		return nil, From(err)
	}
	return clientStream{s}, nil
}

type clientStream struct{ grpc.ClientStream }

func (s clientStream) RecvMsg(m any) error { return fromUnlessEOF(s.ClientStream.RecvMsg(m)) }
func (s clientStream) SendMsg(m any) error { return fromUnlessEOF(s.ClientStream.SendMsg(m)) }
func (s clientStream) CloseSend() error    { return fromUnlessEOF(s.ClientStream.CloseSend()) }

func fromUnlessEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return err
	}
	return From(err)
}
