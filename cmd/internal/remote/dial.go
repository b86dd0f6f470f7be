package remote

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"fermata/protocol/address"
	"fermata/protocol/api"
	"fermata/protocol/fault"
	"fermata/protocol/fault/faultgrpc"
	"fermata/protocol/identity"
)

const (
	// callTimeout bounds a call that is not a stream. The coordinator answers
	// from etcd and, at worst, waits for nodes that do not answer.
	callTimeout = 30 * time.Second

	// leaderTimeout bounds the search for the leader. It must outlast an
	// election: the lease of a dead leader, 10 s at most, and a few rounds.
	leaderTimeout = 20 * time.Second

	// probeTimeout is how long one coordinator may take to say whether it leads.
	probeTimeout = 3 * time.Second

	// probeInterval spaces two rounds through all coordinators during an election.
	probeInterval = 250 * time.Millisecond
)

// Conn is a connection to the leading coordinator.
type Conn struct {
	api.OperatorClient
	conn *grpc.ClientConn
}

// Close ends the connection and every call on it.
func (c *Conn) Close() error { return c.conn.Close() }

// Dial opens a connection. Of several addresses it tries each until the leader
// answers; with one the first call tells whether anybody is there.
func Dial(ctx context.Context, t Target) (*Conn, error) {
	creds, err := credentialsOf(t)
	if err != nil {
		return nil, err
	}
	if len(t.Addresses) == 1 {
		return open(t.Addresses[0], creds)
	}
	return findLeader(ctx, t, creds)
}

func credentialsOf(t Target) ([]grpc.DialOption, error) {
	if t.Plaintext {
		return []grpc.DialOption{
			grpc.WithTransportCredentials(insecure.NewCredentials()),
			// With certificates it is the name in them; the path of a socket
			// would be no authority.
			grpc.WithAuthority("coordinator"),
		}, nil
	}
	id, err := identity.Load(t.Files.Cert, t.Files.Key, t.Files.CA)
	if err != nil {
		return nil, t.missing(err)
	}
	return []grpc.DialOption{id.DialOption(identity.RoleCoordinator, "")}, nil
}

func open(addr string, creds []grpc.DialOption) (*Conn, error) {
	opts := append(faultgrpc.DialOptions(),
		address.DialOption(addr),
		grpc.WithChainUnaryInterceptor(checkedText, withDeadline),
		grpc.WithChainStreamInterceptor(checkedStream))
	opts = append(opts, creds...)
	conn, err := grpc.NewClient(address.Target, opts...)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "coordinator %s", addr)
	}
	return &Conn{OperatorClient: api.NewOperatorClient(conn), conn: conn}, nil
}

func withDeadline(ctx context.Context, method string, req, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	if _, set := ctx.Deadline(); !set {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, callTimeout)
		defer cancel()
	}
	return invoke(ctx, method, req, reply, conn, opts...)
}

// findLeader goes round the addresses until one answers a call, which only the
// leader does. It gives up at once on an answer that another try cannot change.
func findLeader(ctx context.Context, t Target, creds []grpc.DialOption) (*Conn, error) {
	addrs := t.Addresses
	ctx, cancel := context.WithTimeout(ctx, leaderTimeout)
	defer cancel()
	again := time.NewTicker(probeInterval)
	defer again.Stop()
	said := make([]error, len(addrs)) // by each, last
	for {
		for i, addr := range addrs {
			conn, err := probe(ctx, addr, creds)
			if err == nil {
				return conn, nil
			}
			if ctx.Err() != nil && said[i] != nil {
				continue // the search is over: what was said before tells more
			}
			one := t
			one.Addresses = []string{addr}
			explained := one.Explain(err)
			said[i] = fmt.Errorf("coordinator %s: %w", addr, explained)
			if !passing(fault.ClassOf(explained)) {
				return nil, said[i]
			}
		}
		select {
		case <-again.C:
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return nil, ctx.Err()
			}
			return nil, fault.Wrap(fault.Unavailable, errors.Join(said...), "no coordinator leads")
		}
	}
}

// passing tells whether a coordinator that answers with the class may lead soon.
func passing(c fault.Class) bool {
	switch c {
	case fault.Unavailable, fault.Unknown, fault.Stale, fault.Busy, fault.Deadline, fault.Aborted:
		return true
	default:
		return false
	}
}

func probe(ctx context.Context, addr string, creds []grpc.DialOption) (*Conn, error) {
	conn, err := open(addr, creds)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	if _, err := conn.ListNodes(ctx, &api.ListNodesRequest{}); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// Plain takes gRPC's wrapping off the message of a connection that could not be
// made. The class and the chain of err stay.
func Plain(err error) error {
	if err == nil {
		return nil
	}
	_, text, found := strings.Cut(err.Error(), `connection error: desc = "`)
	if !found {
		return err
	}
	text = strings.TrimPrefix(strings.TrimSuffix(text, `"`), "transport: ")
	text = strings.TrimPrefix(text, "Error while dialing: ")
	return plainError{text: strings.ReplaceAll(text, `\"`, `"`), err: err}
}

type plainError struct {
	text string
	err  error
}

func (e plainError) Error() string { return e.text }
func (e plainError) Unwrap() error { return e.err }
