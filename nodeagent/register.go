package nodeagent

import (
	"context"
	"fmt"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"fermata/protocol/address"
	"fermata/protocol/api"
	"fermata/protocol/fault"
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
	said := make([]string, len(conns)) // by each coordinator, since the node was registered last
	for next := 0; ; {
		wait := registerRetry
		ttl, err := a.registerOnce(ctx, conns[next])
		switch {
		case err == nil:
			wait = ttl / 3
			if !registered {
				a.log.Info("registered", "coordinator", a.cfg.Coordinators[next])
			}
			clear(said)
		case ctx.Err() != nil:
			return nil
		default:
			if registered {
				a.log.Warn("lost the coordinator, guests run on", "coordinator", a.cfg.Coordinators[next], "error", err)
			}
			if text := err.Error(); text != said[next] {
				a.notRegistered(a.cfg.Coordinators[next], err)
				said[next] = text
			}
			next = (next + 1) % len(conns)
		}
		registered = err == nil
		a.awaitNews(ctx, wait)
		if ctx.Err() != nil {
			return nil
		}
	}
}

// notRegistered logs why a coordinator did not take the node. One that does not lead, or
// is not there, is nothing that somebody has to mend as long as another one leads.
func (a *Agent) notRegistered(coordinator string, err error) {
	level := hclog.Warn
	if class := fault.ClassOf(err); class == fault.Unavailable || class == fault.Unknown {
		level = hclog.Info
	}
	a.log.Log(level, "not registered, trying again", "coordinator", coordinator, "error", err)
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
	a.order(reply.GetSuperseded())
	return max(time.Duration(reply.LeaseTtlMs)*time.Millisecond, 3*registerRetry/10), nil
}

func (a *Agent) dialCoordinator(addr string) (*grpc.ClientConn, error) {
	creds := grpc.WithTransportCredentials(insecure.NewCredentials())
	if a.cfg.Identity != nil {
		creds = a.cfg.Identity.DialOption(identity.RoleCoordinator, "")
	}
	opts := append(faultgrpc.DialOptions(), creds, address.DialOption(addr))
	conn, err := grpc.NewClient(address.Target, opts...)
	if err != nil {
		return nil, fmt.Errorf("coordinator address %q: %w", addr, err)
	}
	return conn, nil
}
