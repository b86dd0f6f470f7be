package nodeconn_test

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"fermata/coordinator/nodeconn"
	"fermata/protocol/api"
	"fermata/protocol/fault"
	"fermata/protocol/fault/faultgrpc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// agent answers with what its functions say.
type agent struct {
	api.UnimplementedNodeServer
	describe func(ctx context.Context) (*api.NodeInfo, error)
	persist  func(s grpc.ServerStreamingServer[api.PersistRoundUpdate]) error
}

func (a *agent) Describe(ctx context.Context, _ *api.DescribeRequest) (*api.NodeInfo, error) {
	return a.describe(ctx)
}

func (a *agent) PersistRound(_ *api.PersistRoundRequest, s grpc.ServerStreamingServer[api.PersistRoundUpdate]) error {
	return a.persist(s)
}

// serve runs an agent on a unix socket of its own and returns a client to it.
func serve(t *testing.T, a *agent) api.NodeClient {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	lis, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer(faultgrpc.ServerOptions()...)
	api.RegisterNodeServer(srv, a)
	done := make(chan error, 1)
	go func() { done <- srv.Serve(lis) }()
	pool := nodeconn.New(nil)
	t.Cleanup(func() {
		if err := pool.Close(); err != nil {
			t.Error(err)
		}
		srv.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	client, err := pool.Client("n1", "unix:"+path)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func ask(ctx context.Context, c api.NodeClient, timeout time.Duration) (*api.NodeInfo, error) {
	return nodeconn.Ask(ctx, timeout, func(ctx context.Context) (*api.NodeInfo, error) {
		return c.Describe(ctx, &api.DescribeRequest{})
	})
}

func TestAsk_RepeatsWhenTheAnswerIsLost(t *testing.T) {
	var calls atomic.Int32
	c := serve(t, &agent{describe: func(context.Context) (*api.NodeInfo, error) {
		if calls.Add(1) < 3 {
			// What a client reads when the connection breaks under its call.
			return nil, status.Error(codes.Unavailable, "connection reset")
		}
		return &api.NodeInfo{Name: "n1"}, nil
	}})
	info, err := ask(t.Context(), c, 10*time.Second)
	if err != nil || info.GetName() != "n1" || calls.Load() != 3 {
		t.Fatalf("Ask = %v, %v after %d calls, want n1 after 3", info, err, calls.Load())
	}
}

func TestAsk_DoesNotRepeatARefusal(t *testing.T) {
	var calls atomic.Int32
	c := serve(t, &agent{describe: func(context.Context) (*api.NodeInfo, error) {
		calls.Add(1)
		return nil, fault.New(fault.NoSpace, "memory is full")
	}})
	_, err := ask(t.Context(), c, 10*time.Second)
	if fault.ClassOf(err) != fault.NoSpace || calls.Load() != 1 {
		t.Fatalf("Ask = %v (%v) after %d calls, want no-space after 1", err, fault.ClassOf(err), calls.Load())
	}
}

func TestAsk_HangingNodeIsUnknown(t *testing.T) {
	c := serve(t, &agent{describe: func(ctx context.Context) (*api.NodeInfo, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}})
	begun := time.Now()
	_, err := ask(t.Context(), c, 100*time.Millisecond)
	if fault.ClassOf(err) != fault.Unknown || !strings.Contains(err.Error(), "no answer in time") {
		t.Fatalf("Ask = %v (%v), want unknown-outcome", err, fault.ClassOf(err))
	}
	if took := time.Since(begun); took > 5*time.Second {
		t.Errorf("Ask took %s for a timeout of 100ms", took)
	}
}

func TestAsk_CallerGivesUp(t *testing.T) {
	entered := make(chan struct{})
	c := serve(t, &agent{describe: func(ctx context.Context) (*api.NodeInfo, error) {
		close(entered)
		<-ctx.Done()
		return nil, ctx.Err()
	}})
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("interrupted")
	go func() { <-entered; cancel(why) }()
	_, err := ask(ctx, c, 10*time.Second)
	if fault.ClassOf(err) != fault.Unknown || !errors.Is(err, why) {
		t.Fatalf("Ask = %v (%v), want unknown-outcome because of %v", err, fault.ClassOf(err), why)
	}
}

func TestFollow_EachMessageRenewsThePatience(t *testing.T) {
	const messages = 6
	c := serve(t, &agent{persist: func(s grpc.ServerStreamingServer[api.PersistRoundUpdate]) error {
		for i := range messages {
			select {
			case <-time.After(60 * time.Millisecond):
			case <-s.Context().Done():
				return s.Context().Err()
			}
			if err := s.Send(&api.PersistRoundUpdate{DoneBytes: uint64(i)}); err != nil {
				return err
			}
		}
		return nil
	}})
	got := 0
	err := nodeconn.Follow(t.Context(), 200*time.Millisecond, openPersist(c), func(*api.PersistRoundUpdate) { got++ })
	if err != nil || got != messages {
		t.Fatalf("Follow = %v with %d messages, want %d", err, got, messages)
	}
}

func TestFollow_SilenceEndsIt(t *testing.T) {
	c := serve(t, &agent{persist: func(s grpc.ServerStreamingServer[api.PersistRoundUpdate]) error {
		if err := s.Send(&api.PersistRoundUpdate{}); err != nil {
			return err
		}
		<-s.Context().Done()
		return s.Context().Err()
	}})
	err := nodeconn.Follow(t.Context(), 100*time.Millisecond, openPersist(c), func(*api.PersistRoundUpdate) {})
	if fault.ClassOf(err) != fault.Unknown || !strings.Contains(err.Error(), "no answer in time") {
		t.Fatalf("Follow = %v (%v), want unknown-outcome", err, fault.ClassOf(err))
	}
}

func TestFollow_OpensABrokenStreamAgain(t *testing.T) {
	var opened atomic.Int32
	c := serve(t, &agent{persist: func(s grpc.ServerStreamingServer[api.PersistRoundUpdate]) error {
		if err := s.Send(&api.PersistRoundUpdate{DoneBytes: 1}); err != nil {
			return err
		}
		if opened.Add(1) == 1 {
			return status.Error(codes.Unavailable, "connection reset")
		}
		return nil
	}})
	got := 0
	err := nodeconn.Follow(t.Context(), 5*time.Second, openPersist(c), func(*api.PersistRoundUpdate) { got++ })
	if err != nil || got != 2 || opened.Load() != 2 {
		t.Fatalf("Follow = %v with %d messages of %d streams, want 2 of 2", err, got, opened.Load())
	}
}

func openPersist(c api.NodeClient) func(context.Context) (grpc.ServerStreamingClient[api.PersistRoundUpdate], error) {
	return func(ctx context.Context) (grpc.ServerStreamingClient[api.PersistRoundUpdate], error) {
		return c.PersistRound(ctx, &api.PersistRoundRequest{})
	}
}

func TestPool_PlainTextStaysOnThisMachine(t *testing.T) {
	pool := nodeconn.New(nil)
	defer pool.Close()
	if _, err := pool.Client("n1", "192.0.2.1:7000"); fault.ClassOf(err) != fault.Denied {
		t.Fatalf("Client on a foreign address in plain text = %v, want denied", err)
	}
}

func TestPool_NodeNobodyServes(t *testing.T) {
	pool := nodeconn.New(nil)
	defer pool.Close()
	c, err := pool.Client("n1", "unix:"+filepath.Join(t.TempDir(), "nobody"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = ask(t.Context(), c, 400*time.Millisecond)
	if fault.ClassOf(err) != fault.Unavailable {
		t.Fatalf("Ask = %v (%v), want unavailable", err, fault.ClassOf(err))
	}
}
