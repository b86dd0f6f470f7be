// Package nodeconn reaches node agents: one connection a node, kept between
// calls, and the rules by which a call is repeated when its answer is lost.
//
// A connection proves that its other end is the agent of exactly that node.
// Every call of the Node service is idempotent (protocol/api), so a lost answer
// is asked for again, a bounded number of times, until the caller's deadline.
package nodeconn

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	"fermata/protocol/address"
	"fermata/protocol/api"
	"fermata/protocol/fault"
	"fermata/protocol/fault/faultgrpc"
	"fermata/protocol/identity"
)

// redial is how fast a broken connection is made anew: a restarted agent must
// be found within the patience of one step, not after gRPC's usual two minutes.
var redial = grpc.ConnectParams{
	Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second},
	MinConnectTimeout: 3 * time.Second,
}

// Pool holds the connections.
//
// Concurrency: safe for use by several goroutines.
type Pool struct {
	identity *identity.Identity // immutable; nil: plain text

	mu     sync.Mutex
	conns  map[string]*nodeConn // guarded by mu; by node name
	closed bool                 // guarded by mu
}

type nodeConn struct {
	address string
	conn    *grpc.ClientConn
}

// New makes an empty pool. A nil identity means plain text, which Client then
// allows to loopback addresses and unix sockets only.
func New(id *identity.Identity) *Pool {
	return &Pool{identity: id, conns: make(map[string]*nodeConn)}
}

// Client returns the client of a node. It does not wait for a connection. A
// node that has moved to another address gets a new connection; calls under
// way on the old one end as unknown.
func (p *Pool) Client(name, at string) (api.NodeClient, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, fault.New(fault.Unavailable, "reach node %s: the coordinator is ending", name)
	}
	old := p.conns[name]
	if old != nil && old.address == at {
		return api.NewNodeClient(old.conn), nil
	}
	conn, err := p.dial(name, at)
	if err != nil {
		return nil, err
	}
	if old != nil {
		// The address is gone; there is nobody to tell of a failed goodbye.
		_ = old.conn.Close()
	}
	p.conns[name] = &nodeConn{address: at, conn: conn}
	return api.NewNodeClient(conn), nil
}

func (p *Pool) dial(name, at string) (*grpc.ClientConn, error) {
	opts := append(faultgrpc.DialOptions(),
		grpc.WithConnectParams(redial),
		// Retries are decided here, by class, and not by a service
		// configuration that somebody's DNS may hand out.
		grpc.WithDisableServiceConfig(),
	)
	if p.identity != nil {
		opts = append(opts, p.identity.DialOption(identity.RoleAgent, name))
	} else {
		if err := identity.PlaintextAllowed(at); err != nil {
			return nil, fault.Wrap(fault.Denied, err, "reach node %s", name)
		}
		opts = append(opts, grpc.WithTransportCredentials(insecure.NewCredentials()))
	}
	conn, err := grpc.NewClient(address.Target, append(opts, address.DialOption(at))...)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "reach node %s at %s", name, at)
	}
	return conn, nil
}

// Close ends every connection.
func (p *Pool) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	var errs []error
	for name, c := range p.conns {
		if err := c.conn.Close(); err != nil {
			errs = append(errs, fmt.Errorf("close connection to node %s: %w", name, err))
		}
	}
	clear(p.conns)
	return errors.Join(errs...)
}
