package faultgrpc_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"fermata/protocol/fault"
	"fermata/protocol/fault/faultgrpc"
)

// failing serves the health service with the error that answer returns.
type failing struct {
	healthpb.UnimplementedHealthServer
	answer func(context.Context) error
}

func (f failing) Check(ctx context.Context, _ *healthpb.HealthCheckRequest) (*healthpb.HealthCheckResponse, error) {
	return &healthpb.HealthCheckResponse{}, f.answer(ctx)
}

func (f failing) Watch(_ *healthpb.HealthCheckRequest, s healthpb.Health_WatchServer) error {
	if err := s.Send(&healthpb.HealthCheckResponse{}); err != nil {
		return err
	}
	return f.answer(s.Context())
}

func serve(t *testing.T, answer func(context.Context) error, opts ...grpc.ServerOption) (*grpc.Server, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(append(opts, faultgrpc.ServerOptions()...)...)
	healthpb.RegisterHealthServer(s, failing{answer: answer})
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = s.Serve(l)
	}()
	t.Cleanup(func() { s.Stop(); <-served })
	return s, l.Addr().String()
}

func dial(t *testing.T, addr string, creds credentials.TransportCredentials) healthpb.HealthClient {
	t.Helper()
	conn, err := grpc.NewClient(addr, append(faultgrpc.DialOptions(), grpc.WithTransportCredentials(creds))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return healthpb.NewHealthClient(conn)
}

func check(ctx context.Context, c healthpb.HealthClient) error {
	_, err := c.Check(ctx, &healthpb.HealthCheckRequest{})
	return err
}

func watch(ctx context.Context, c healthpb.HealthClient) error {
	s, err := c.Watch(ctx, &healthpb.HealthCheckRequest{})
	if err != nil {
		return err
	}
	if _, err := s.Recv(); err != nil {
		return fmt.Errorf("first message: %w", err)
	}
	_, err = s.Recv()
	return err
}

func TestRoundTrip_AllClasses(t *testing.T) {
	for _, class := range fault.Classes() {
		t.Run(class.String(), func(t *testing.T) {
			_, far := serve(t, func(context.Context) error {
				return fmt.Errorf("cut: %w", fault.New(class, "guest %s: 5%% left", "a"))
			})
			// The second hop hands on what its own call returned.
			farClient := dial(t, far, insecure.NewCredentials())
			_, near := serve(t, func(ctx context.Context) error { return check(ctx, farClient) })
			nearClient := dial(t, near, insecure.NewCredentials())
			for name, err := range map[string]error{
				"unary":    check(t.Context(), farClient),
				"stream":   watch(t.Context(), farClient),
				"two hops": check(t.Context(), nearClient),
			} {
				if got := fault.ClassOf(err); got != class {
					t.Errorf("%s: class %v, want %v (%v)", name, got, class, err)
				}
				if want := "cut: guest a: 5% left"; err.Error() != want {
					t.Errorf("%s: message %q, want %q", name, err, want)
				}
			}
		})
	}
}

func TestRoundTrip_Success(t *testing.T) {
	_, addr := serve(t, func(context.Context) error { return nil })
	c := dial(t, addr, insecure.NewCredentials())
	if err := check(t.Context(), c); err != nil {
		t.Error(err)
	}
	if err := watch(t.Context(), c); err != io.EOF {
		t.Errorf("end of stream = %v, want io.EOF itself", err)
	}
}

func TestTo(t *testing.T) {
	if faultgrpc.To(nil) != nil || faultgrpc.From(nil) != nil {
		t.Error("nil must stay nil")
	}
	once := faultgrpc.To(fault.New(fault.Busy, "x"))
	if twice := faultgrpc.To(once); twice != once {
		t.Errorf("To of a status with a class = %v, want it unchanged", twice)
	}
	if got := fault.ClassOf(faultgrpc.From(faultgrpc.To(status.Error(codes.Unauthenticated, "who")))); got != fault.Denied {
		t.Errorf("bare status: class %v, want denied", got)
	}
	if got := fault.ClassOf(faultgrpc.From(faultgrpc.To(context.Canceled))); got != fault.Aborted {
		t.Errorf("handler's own cancelled context: class %v, want aborted", got)
	}
	long := faultgrpc.From(faultgrpc.To(fault.New(fault.Corrupt, "%s", "\xff"+strings.Repeat("ä", 1<<20))))
	if fault.ClassOf(long) != fault.Corrupt || len(long.Error()) > 3<<10 {
		t.Errorf("long message: class %v, %d bytes", fault.ClassOf(long), len(long.Error()))
	}
	if err := faultgrpc.From(io.ErrUnexpectedEOF); err != io.ErrUnexpectedEOF {
		t.Errorf("From of a local error = %v, want it unchanged", err)
	}
}

func TestFrom_Transport(t *testing.T) {
	t.Run("nobody listens", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addr := l.Addr().String()
		l.Close()
		err = check(t.Context(), dial(t, addr, insecure.NewCredentials()))
		if got := fault.ClassOf(err); got != fault.Unavailable {
			t.Errorf("class %v, want unavailable (%v)", got, err)
		}
	})
	t.Run("not our server", func(t *testing.T) {
		_, addr := serve(t, func(context.Context) error { return nil })
		err := check(t.Context(), dial(t, addr, credentials.NewTLS(&tls.Config{})))
		if got := fault.ClassOf(err); got != fault.Unavailable {
			t.Errorf("class %v, want unavailable (%v)", got, err)
		}
	})
	t.Run("server dies while it serves", func(t *testing.T) {
		entered := make(chan struct{})
		s, addr := serve(t, func(ctx context.Context) error {
			close(entered)
			<-ctx.Done()
			return nil
		})
		answered := make(chan error, 1)
		c := dial(t, addr, insecure.NewCredentials())
		go func() { answered <- check(t.Context(), c) }()
		<-entered
		s.Stop()
		if err := <-answered; fault.ClassOf(err) != fault.Unknown {
			t.Errorf("class %v, want unknown-outcome (%v)", fault.ClassOf(err), err)
		}
	})
	t.Run("answer too late", func(t *testing.T) {
		release := make(chan struct{})
		defer close(release)
		_, addr := serve(t, func(context.Context) error {
			<-release
			return nil
		})
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		err := check(ctx, dial(t, addr, insecure.NewCredentials()))
		if fault.ClassOf(err) != fault.Unknown || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("class %v, want unknown-outcome and DeadlineExceeded (%v)", fault.ClassOf(err), err)
		}
	})
}
