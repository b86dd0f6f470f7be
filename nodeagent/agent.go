// Package nodeagent runs the guests of one node: it makes them, owns the wire
// between them, takes its part in checkpoint rounds and puts guests back from
// the repository. It obeys one coordinator at a time and promises what it
// promised even when the coordinator, or the agent itself, dies.
//
// The Agent is the state; the gRPC service in server.go is a thin shell around
// it. One file holds one phase: create, release, destroy, save, persist,
// recover. The order of a checkpoint's steps is not decided here but by the
// state machine of package round, driven in rounds.go.
//
// Lock order (outermost first):
//
//	cluster.op    one of create, release, destroy at a time, held across slow work
//	  Agent.room
//	    Agent.mu
//	    cluster.mu
//
// Agent.mu and cluster.mu are never held across a call that can block, except
// that a journal record is made durable under cluster.mu, so that what the
// journal says and what others see change in the same order. Neither the owner
// of a round nor its worker takes cluster.mu while guests stand still.
package nodeagent

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"fermata/nodeagent/capture"
	"fermata/nodeagent/dataplane"
	"fermata/nodeagent/guard"
	"fermata/nodeagent/journal"
	"fermata/protocol/api"
	"fermata/vmm/qemu"
)

// Agent is one node's agent.
//
// Concurrency: its methods may be called by several goroutines while Run runs.
type Agent struct {
	cfg         Config    // immutable
	paths       pathRules // immutable
	log         hclog.Logger
	incarnation string // immutable; new with every start of the agent

	// Set by Run before anything is served, immutable afterwards.
	journal *journal.Journal
	repo    lateRepository // of its own lock; opened while guests run already
	plane   dataplane.Plane
	process *dataplane.Client // is plane; nil when that is in this process (tests)
	guard   *guard.Guard
	budget  *capture.Budget
	digests *digests
	pacer   *pacer
	qemu    qemu.Info
	jail    jail

	news   chan struct{}            // has room for one; something to register with at once
	orders chan *api.SupersededLife // of the coordinator, to be carried out

	unidentified chan *guest // whose base images are to be read

	room sync.Mutex // serialises reservations of memory

	mu       sync.Mutex
	clusters map[string]*cluster // guarded by mu
}

// New checks cfg and returns an agent that has not touched anything yet.
func New(cfg Config) (*Agent, error) {
	if err := cfg.applyDefaults(); err != nil {
		return nil, err
	}
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	id := make([]byte, 8)
	if _, err := rand.Read(id); err != nil {
		return nil, fmt.Errorf("draw incarnation: %w", err)
	}
	return &Agent{
		cfg:         cfg,
		log:         cfg.Logger,
		incarnation: hex.EncodeToString(id),
		clusters:    map[string]*cluster{},
		pacer:       newPacer(),
		paths:       pathRules{allowed: cfg.AllowedPaths, reserved: []string{cfg.StateDir, cfg.MemoryDir}},
		news:        make(chan struct{}, 1),
		orders:      make(chan *api.SupersededLife, maxOrders),

		unidentified: make(chan *guest, maxGuests),
	}, nil
}

// Run finds the guests of an earlier agent again, then serves until ctx ends.
// Guests outlive it unless DestroyOnExit is set.
func (a *Agent) Run(ctx context.Context) (err error) {
	for _, dir := range []string{a.cfg.StateDir, a.guestsDir(), a.cfg.MemoryDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("create directory: %w", err)
		}
	}
	if a.journal, err = journal.Open(a.cfg.StateDir); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.journal.Close()) }()
	if err := a.probe(ctx); err != nil {
		return err
	}
	if a.jail, err = a.makeJail(); err != nil {
		return err
	}
	defer a.tidy()
	a.budget = capture.NewBudget(a.cfg.CaptureBytes)
	a.digests = newDigests(a.journal, a.beside)

	serviceListener, err := net.Listen("tcp", a.cfg.Listen)
	if err != nil {
		return fmt.Errorf("listen for the coordinator: %w", err)
	}
	defer serviceListener.Close()
	if err := a.openPlane(ctx); err != nil {
		return err
	}
	defer a.process.Close()
	if err := a.startGuard(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.guard.Close()) }()

	g, gctx := errgroup.WithContext(ctx)
	repositoryTried := make(chan struct{})
	g.Go(func() error {
		a.openRepository(gctx, repositoryTried)
		return nil
	})
	g.Go(func() error {
		err := a.recover(gctx)
		switch {
		case gctx.Err() != nil:
			err = nil // asked to end, which cut the search short
		case err != nil:
			err = fmt.Errorf("recover: %w", err)
		default:
			// Where all is well the first call finds the repository open.
			<-repositoryTried
			a.log.Info("agent runs", "node", a.cfg.Name, "address", a.cfg.Advertise, "incarnation", a.incarnation)
			err = a.serve(gctx, serviceListener)
		}
		return errors.Join(err, a.leave(context.WithoutCancel(gctx)))
	})
	return g.Wait()
}

// probe asks QEMU what it can do. Guests that run already must not wait for a QEMU that
// somebody is just replacing: new ones ask it again.
func (a *Agent) probe(ctx context.Context) (err error) {
	if a.qemu, err = qemu.Probe(ctx, a.cfg.QEMU); err == nil {
		return nil
	}
	guests, listErr := a.journal.Guests()
	if listErr != nil || len(guests) == 0 {
		return errors.Join(err, listErr)
	}
	a.log.Error("QEMU does not say what it can do: guests that run are found again, new ones may fail", "error", err)
	return nil
}

// serve answers calls and keeps the node registered until ctx ends, which is no
// error.
func (a *Agent) serve(ctx context.Context, l net.Listener) error {
	opts := []grpc.ServerOption{
		// A coordinator that vanished without a word must not keep calls alive.
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: 20 * time.Second, Timeout: 10 * time.Second}),
	}
	opts = append(opts, serverOptions(a.cfg.Identity)...)
	server := grpc.NewServer(opts...)
	api.RegisterNodeServer(server, &nodeServer{agent: a})

	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := server.Serve(l); !errors.Is(err, grpc.ErrServerStopped) {
			return err
		}
		return nil
	})
	g.Go(func() error { return a.register(gctx) })
	g.Go(func() error {
		a.finishReleases(gctx)
		return nil
	})
	g.Go(func() error {
		a.endSuperseded(gctx)
		return nil
	})
	g.Go(func() error {
		a.identifyGuests(gctx)
		return nil
	})
	g.Go(func() error {
		a.keepPlane(gctx)
		return nil
	})
	g.Go(func() error {
		a.trimConsoles(gctx)
		return nil
	})
	g.Go(func() error {
		a.watchDisks(gctx)
		return nil
	})
	g.Go(func() error {
		<-gctx.Done()
		server.Stop() // cancels calls
		return nil
	})
	return g.Wait()
}

// leave is the end of a clean exit: guests that stand still for a round run
// again, then they are ended or let go of.
func (a *Agent) leave(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, exitBudget)
	defer cancel()
	clusters := a.allClusters()
	errs := make([]error, len(clusters))
	var wg sync.WaitGroup
	for i, c := range clusters {
		wg.Go(func() { errs[i] = a.leaveCluster(ctx, c) })
	}
	wg.Wait()
	return errors.Join(append(errs, a.closePlane(ctx))...)
}

func (a *Agent) leaveCluster(ctx context.Context, c *cluster) error {
	err := c.endRound(ctx) // first: a call that has the turn may take long to end
	if turnErr := c.begin(ctx); turnErr != nil {
		return errors.Join(err, turnErr) // what the call has made is in the journal
	}
	defer c.end()
	if a.cfg.DestroyOnExit {
		return a.destroy(ctx, c)
	}
	return errors.Join(err, a.detach(c))
}

// startGuard starts the process that resumes stopped guests if we die.
func (a *Agent) startGuard() (err error) {
	command := a.cfg.Guard
	if len(command) == 0 {
		if command, err = guard.Command(); err != nil {
			return err
		}
	}
	a.guard, err = guard.Start(command, os.Stderr)
	return err
}

func (a *Agent) guestsDir() string { return filepath.Join(a.cfg.StateDir, "guests") }

func (a *Agent) allClusters() []*cluster {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make([]*cluster, 0, len(a.clusters))
	for _, c := range a.clusters {
		out = append(out, c)
	}
	return out
}
