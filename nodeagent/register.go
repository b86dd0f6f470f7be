package nodeagent

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"fermata/protocol/api"
	"fermata/protocol/fault/faultgrpc"
	"fermata/protocol/identity"
)

const (
	registerBudget = 3 * time.Second // of one call
	registerRetry  = time.Second     // after a coordinator that did not take us
)

// register announces the node to whichever coordinator leads and keeps its
// lease, until ctx ends, which is no error.
func (a *Agent) register(ctx context.Context) error {
	if len(a.cfg.Coordinators) == 0 {
		<-ctx.Done()
		return nil
	}
	conns := make([]*grpc.ClientConn, 0, len(a.cfg.Coordinators))
	for _, addr := range a.cfg.Coordinators {
		conn, err := a.dialCoordinator(addr)
		if err != nil {
			return err
		}
		defer conn.Close()
		conns = append(conns, conn)
	}
	registered := false
	for next := 0; ; {
		wait := registerRetry
		ttl, err := a.registerOnce(ctx, conns[next])
		switch {
		case err == nil:
			wait = ttl / 3
			if !registered {
				a.log.Info("registered", "coordinator", a.cfg.Coordinators[next])
			}
		case ctx.Err() != nil:
			return nil
		default:
			if registered {
				a.log.Warn("lost the coordinator, guests run on", "coordinator", a.cfg.Coordinators[next], "error", err)
			}
			a.log.Debug("register refused", "coordinator", a.cfg.Coordinators[next], "error", err)
			next = (next + 1) % len(conns)
		}
		registered = err == nil
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
	}
}

func (a *Agent) registerOnce(ctx context.Context, conn *grpc.ClientConn) (ttl time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, registerBudget)
	defer cancel()
	info, err := a.Describe(ctx)
	if err != nil {
		return 0, err
	}
	reply, err := api.NewRegistryClient(conn).Register(ctx, &api.RegisterRequest{Node: info, NewestFences: a.newestFences()})
	if err != nil {
		return 0, err
	}
	return max(time.Duration(reply.LeaseTtlMs)*time.Millisecond, 3*registerRetry/10), nil
}

func (a *Agent) dialCoordinator(addr string) (*grpc.ClientConn, error) {
	creds := grpc.WithTransportCredentials(insecure.NewCredentials())
	if a.cfg.Identity != nil {
		creds = a.cfg.Identity.DialOption(identity.RoleCoordinator, "")
	}
	opts := append(faultgrpc.DialOptions(), creds)
	conn, err := grpc.NewClient(addr, opts...)
	if err != nil {
		return nil, fmt.Errorf("coordinator address %q: %w", addr, err)
	}
	return conn, nil
}
