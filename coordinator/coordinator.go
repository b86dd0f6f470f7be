// Package coordinator serves operators and agents: it knows the clusters,
// decides where guests go, drives checkpoint rounds and restarts, and owns the
// outcome records in the repository.
//
// Several coordinators may run; one leads, elected in etcd, and serves what
// changes something. Its fencing token goes with every write to the store and
// every call of an agent, so that a coordinator which has been replaced without
// knowing it changes nothing. What it must not forget is in the store; what a
// restart needs is in the repository alone.
//
// A Coordinator is the process; a term is the time it leads, with one file for
// each operation: life.go (start, stop), checkpoint.go, restart.go, recover.go.
// The parts that decide are pure and elsewhere: round.Lead in protocol/round,
// and the packages spec and placement below this one. The parts that call nodes
// are the packages deploy and rounds.
//
// Invariants:
//
//  1. A cluster has one operation at a time.
//  2. Checkpoints are not deleted beside anything that reads or writes packs.
//  3. An operation is in the store before the first call it makes, and leaves
//     the store together with the state it led to.
//
// Lock order: Coordinator.mu, term.mu and operations.mu are never held together
// nor across a call that can block.
package coordinator

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"fermata/coordinator/deploy"
	"fermata/coordinator/nodeconn"
	"fermata/coordinator/rounds"
	"fermata/coordinator/store"
	"fermata/imageio/repository"
	"fermata/protocol/address"
	"fermata/protocol/api"
	"fermata/protocol/failpoint"
	"fermata/protocol/fault"
	"fermata/protocol/fault/faultgrpc"
	"fermata/protocol/identity"
)

// Coordinator is one coordinator.
//
// Concurrency: its exported methods may be called by several goroutines.
type Coordinator struct {
	cfg Config // immutable
	log hclog.Logger

	// Made by Run before anything is served, immutable afterwards.
	store    store.Store
	elector  Elector
	repo     *repository.Repository // see storage
	nodes    *nodeconn.Pool
	deployer *deploy.Deployer

	mu        sync.Mutex
	term      *term    // guarded by mu; nil while another coordinator leads
	addresses []string // guarded by mu; where Run listens
}

// New checks cfg and returns a coordinator that has not touched anything yet.
func New(cfg Config) (*Coordinator, error) {
	cfg.applyDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	c := &Coordinator{cfg: cfg, log: cfg.Logger}
	if cfg.State != nil {
		c.store, c.elector = cfg.State.Store, cfg.State.Elector
	}
	return c, nil
}

// Addresses returns where the services are reached, in the order of
// Config.Listen, once Run listens; port 0 has become a port.
func (c *Coordinator) Addresses() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.addresses
}

// Run serves until ctx ends or something it needs fails. Guests, and the agents
// that hold them, outlive it.
func (c *Coordinator) Run(ctx context.Context) (err error) {
	listeners, err := listenAll(c.cfg.Listen)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeAll(listeners)) }()
	c.noteAddresses(listeners)
	return c.withState(ctx, func(ctx context.Context) error { return c.run(ctx, listeners) })
}

func (c *Coordinator) run(ctx context.Context, listeners []net.Listener) (err error) {
	if c.repo, err = openRepository(ctx, c.cfg.Repository); err != nil {
		return err
	}
	if err := c.own(ctx); err != nil {
		return err
	}
	c.nodes = nodeconn.New(c.cfg.Identity)
	defer func() { err = errors.Join(err, c.nodes.Close()) }()
	t := c.cfg.Timeouts
	c.deployer, err = deploy.New(deploy.Config{
		Nodes: c.nodes, Describe: t.Describe, Create: t.Create, Release: t.Release, Destroy: t.Destroy, Logger: c.log,
	})
	if err != nil {
		return err
	}

	// The leadership outlives the calls that depend on it: when ctx ends they
	// are cancelled first, and what they abort is still recorded.
	lead, depose := context.WithCancelCause(context.WithoutCancel(ctx))
	defer depose(nil)
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		ending := func() { depose(errors.New("the coordinator is ending")) }
		defer ending()
		return c.serve(gctx, listeners, ending)
	})
	g.Go(func() error {
		err := c.elector.Run(lead, c.lead)
		switch {
		case lead.Err() == nil && err == nil:
			return fault.New(fault.Internal, "the election has ended")
		case lead.Err() == nil:
			return err
		case err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, context.Cause(lead)):
			// The lease runs out by itself; a successor only waits longer.
			c.log.Warn("leadership not given back", "error", err)
		}
		return nil
	})
	return g.Wait()
}

func (c *Coordinator) noteAddresses(listeners []net.Listener) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, l := range listeners {
		a := l.Addr().String()
		if l.Addr().Network() == "unix" {
			a = "unix:" + a
		}
		c.addresses = append(c.addresses, a)
	}
}

// advertised is the address that callers of other coordinators are told.
func (c *Coordinator) advertised() string {
	if c.cfg.Advertise != "" {
		return c.cfg.Advertise
	}
	addresses := c.Addresses()
	for _, a := range addresses {
		if _, isUnix := address.Unix(a); !isUnix {
			return nameable(a)
		}
	}
	return addresses[0]
}

// nameable is an address that other machines can dial where a is one to listen on.
func nameable(a string) string {
	if !address.Wildcard(a) {
		return a
	}
	host, err := os.Hostname()
	if err != nil {
		host = "localhost"
	}
	_, port, _ := net.SplitHostPort(a) // it is that of a listener
	return net.JoinHostPort(host, port)
}

// serve answers calls until ctx ends; then the calls under way are cancelled
// and given the grace to end in order. After the grace the leadership goes,
// without which no call lasts, and what they leave is the successor's to mend.
func (c *Coordinator) serve(ctx context.Context, listeners []net.Listener, depose func()) error {
	calls, cancelCalls := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancelCalls(nil)
	server := grpc.NewServer(c.serverOptions(calls)...)
	api.RegisterOperatorServer(server, &operatorServer{c: c})
	api.RegisterRegistryServer(server, &registryServer{c: c})

	g, gctx := errgroup.WithContext(ctx)
	for _, l := range listeners {
		g.Go(func() error {
			if err := server.Serve(l); !errors.Is(err, grpc.ErrServerStopped) { // which is no error of an end that came early
				return err
			}
			return nil
		})
	}
	c.log.Info("coordinator serves", "addresses", c.Addresses(), "repository", c.cfg.Repository.Dir)
	g.Go(func() error {
		<-gctx.Done()
		cancelCalls(fault.New(fault.Unavailable, "the coordinator is ending"))
		hard := time.AfterFunc(c.cfg.ShutdownGrace, func() {
			depose()
			server.Stop()
		})
		defer hard.Stop()
		server.GracefulStop()
		return nil
	})
	return g.Wait()
}

// serverOptions makes every call end when calls ends.
func (c *Coordinator) serverOptions(calls context.Context) []grpc.ServerOption {
	opts := []grpc.ServerOption{
		grpc.WaitForHandlers(true),
		// An operator whose machine vanished must not keep a round's call open.
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 20 * time.Second, Timeout: 10 * time.Second}),
	}
	opts = append(opts, faultgrpc.ServerOptions()...)
	if c.cfg.Identity != nil {
		opts = append(opts, c.cfg.Identity.ServerOptions(identity.ServiceRules())...)
	}
	return append(opts,
		grpc.ChainUnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
			ctx, cancel := joined(ctx, calls)
			defer cancel()
			reply, err := handler(ctx, req)
			return reply, c.suggest(ctx, err)
		}),
		grpc.ChainStreamInterceptor(func(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
			ctx, cancel := joined(stream.Context(), calls)
			defer cancel()
			return c.suggest(ctx, handler(srv, &joinedStream{ServerStream: stream, ctx: ctx}))
		}))
}

// joinedStream is a stream with a context of ours.
type joinedStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (s *joinedStream) Context() context.Context { return s.ctx }

// joined returns ctx, ended also by other, with other's cause.
func joined(ctx, other context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(other, func() { cancel(context.Cause(other)) })
	return ctx, func() {
		stop()
		cancel(nil)
	}
}

// lead is one term: it takes over what the leader before left, serves changes
// until ctx ends, and returns when nothing of the term runs any more.
func (c *Coordinator) lead(ctx context.Context, f store.Fence) error {
	termCtx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(errDeposed)
	defer context.AfterFunc(ctx, func() { cancel(errDeposed) })()
	drive, err := rounds.New(rounds.Config{
		Nodes: c.nodes, Prepare: c.cfg.Timeouts.Prepare, Cut: c.cfg.Timeouts.Cut,
		Persist: c.cfg.Timeouts.Persist, Finish: c.cfg.Timeouts.Finish, Writers: c.cfg.Writers, Logger: c.log,
	})
	if err != nil {
		return err
	}
	t := &term{
		c: c, ctx: termCtx, fence: f, ops: newOperations(), drive: drive, begun: time.Now(), incarnations: map[string]string{},
		cancels: map[string]context.CancelCauseFunc{}, lost: map[string]time.Time{},
		aside: make(chan struct{}, 1),
	}
	c.log.Info("this coordinator leads", "fence", f.Token, "store", fmt.Sprintf("%x", f.Store))
	t.work.Go(t.maintain)
	t.work.Go(t.watchNodes)
	if err = failpoint.Inject(termCtx, failpoint.CoordinatorAfterElection); err == nil {
		err = t.adopt(termCtx)
	}
	if err == nil {
		t.settleInBackground()
		c.setTerm(t)
		<-ctx.Done()
		c.setTerm(nil)
	}
	cancel(errDeposed)
	t.close()
	drive.Wait()
	c.log.Warn("this coordinator does not lead any more", "fence", f.Token, "reason", context.Cause(ctx))
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("take over: %w", err)
	}
	return nil
}

func (c *Coordinator) setTerm(t *term) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.term = t
}

// takeoverWait bounds how long a call waits for this coordinator to take over:
// it was just started, or the leader has just died. It covers the default time
// after which a dead leader's lease ends.
const takeoverWait = 12 * time.Second

// leading returns the present term. It waits a while when no other coordinator
// is known to lead. On error (unavailable) another one does, and the message
// says where it is.
func (c *Coordinator) leading(ctx context.Context) (*term, error) {
	ctx, cancel := context.WithTimeout(ctx, takeoverWait)
	defer cancel()
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for {
		c.mu.Lock()
		t := c.term
		c.mu.Unlock()
		if t != nil {
			return t, nil
		}
		leader, err := c.elector.Leader(ctx)
		known := err == nil && leader != ""
		if known && leader != c.advertised() {
			return nil, fault.New(fault.Unavailable, "this coordinator does not lead; ask the one at %s", leader)
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil, fault.New(fault.Unavailable, "no coordinator leads at present; try again")
		}
	}
}
