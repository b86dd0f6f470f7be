// Package deploy puts the guests of one cluster on nodes, lets them run
// together and ends them: the calls of the Node service that are no part of a
// round, each made on many nodes at once.
//
// It decides nothing: where guests go, and what happens after a failure, is
// the caller's business. Every call is bounded and idempotent, and an error
// names the node and the step.
package deploy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"fermata/coordinator/nodeconn"
	"fermata/protocol/api"
	"fermata/protocol/failpoint"
	"fermata/protocol/fault"
)

// The steps, as they are called in events, logs and errors.
const (
	StepCheck   = "check-guests"
	StepCreate  = "create-guests"
	StepClocks  = "step-clocks"
	StepRelease = "release-guests"
	StepDestroy = "destroy-guests"
)

// Node is where a node is reached.
type Node struct {
	Name          string
	Address       string // of its Node service
	FabricAddress string // of its fabric listener
}

// Part is what one node gets.
type Part struct {
	Node   Node
	Guests []*api.GuestSpec
	Images []*api.GuestImage // in the order of Guests; nil: boot afresh
	Packs  []string          // that hold the images

	Uplinks []*api.Uplink // that the node opens
}

// Life is one life of a cluster: from one start or restart to its end.
type Life struct {
	Cluster string
	Epoch   uint64 // the guests start in
	Fence   *api.Fence
}

// Config holds what a Deployer needs. All fields are required.
type Config struct {
	Nodes *nodeconn.Pool

	Describe time.Duration // bound of one question for a node's state
	Create   time.Duration // longest silence of a node that makes guests
	Release  time.Duration // bound of a node's release
	Destroy  time.Duration // bound of a node's destroy

	Logger hclog.Logger
}

// Deployer makes the calls.
//
// Concurrency: safe for use by several goroutines.
type Deployer struct {
	cfg Config // immutable
}

// New returns a Deployer.
func New(cfg Config) (*Deployer, error) {
	if cfg.Nodes == nil || cfg.Logger == nil || min(cfg.Describe, cfg.Create, cfg.Release, cfg.Destroy) <= 0 {
		return nil, errors.New("deploy: every field of the configuration is required")
	}
	return &Deployer{cfg: cfg}, nil
}

// Describe asks one node for its present state.
func (d *Deployer) Describe(ctx context.Context, n Node) (*api.NodeInfo, error) {
	client, err := d.cfg.Nodes.Client(n.Name, n.Address)
	if err != nil {
		return nil, err
	}
	info, err := nodeconn.Ask(ctx, d.cfg.Describe, func(ctx context.Context) (*api.NodeInfo, error) {
		return client.Describe(ctx, &api.DescribeRequest{})
	})
	if err != nil {
		return nil, fmt.Errorf("describe node %s: %w", n.Name, err)
	}
	if info.GetName() != n.Name {
		return nil, fault.New(fault.Mismatch, "describe node %s: node %s answers at %s", n.Name, info.GetName(), n.Address)
	}
	return info, nil
}

// Create makes the guests of every part, stopped. Its first failure ends the
// other nodes' work. progress may be called by several goroutines at once.
//
// On error some nodes may have guests: destroy them.
func (d *Deployer) Create(ctx context.Context, life Life, parts []Part, progress func(*api.Event)) (framesInjected uint64, err error) {
	injected := make([]uint64, len(parts))
	g, gctx := errgroup.WithContext(ctx)
	for i, p := range parts {
		g.Go(func() error {
			return d.timed(life, p.Node, StepCreate, func() (err error) {
				injected[i], err = d.createOn(gctx, life, p, peersOf(p.Node, parts), progress)
				return err
			})
		})
	}
	if err := g.Wait(); err != nil {
		return 0, err
	}
	for _, n := range injected {
		framesInjected += n
	}
	return framesInjected, nil
}

func (d *Deployer) createOn(ctx context.Context, life Life, p Part, peers []*api.Peer, progress func(*api.Event)) (injected uint64, err error) {
	client, err := d.cfg.Nodes.Client(p.Node.Name, p.Node.Address)
	if err != nil {
		return 0, err
	}
	req := requestFor(life, p, peers)
	created := make(map[string]bool, len(p.Guests))
	frames := make(map[string]uint64, len(p.Guests)) // a stream opened again repeats itself
	err = nodeconn.Follow(ctx, d.cfg.Create, func(ctx context.Context) (grpc.ServerStreamingClient[api.CreateGuestsUpdate], error) {
		return client.CreateGuests(ctx, req)
	}, func(u *api.CreateGuestsUpdate) {
		created[u.GetGuest()] = created[u.GetGuest()] || u.GetCreated()
		frames[u.GetGuest()] = max(frames[u.GetGuest()], u.GetFramesInjected())
		progress(&api.Event{
			Step: StepCreate, Node: p.Node.Name, Guest: u.GetGuest(),
			DoneBytes: u.GetDoneBytes(), TotalBytes: u.GetTotalBytes(),
		})
	})
	if err != nil {
		return 0, err
	}
	for _, spec := range p.Guests {
		if !created[spec.GetName()] {
			return 0, fault.New(fault.Internal, "the node ended the call without having made guest %s", spec.GetName())
		}
		injected += frames[spec.GetName()]
	}
	return injected, nil
}

// requestFor is what a node is asked to make.
func requestFor(life Life, p Part, peers []*api.Peer) *api.CreateGuestsRequest {
	return &api.CreateGuestsRequest{
		Fence: life.Fence, Cluster: life.Cluster, Epoch: life.Epoch,
		Guests: p.Guests, Peers: peers, Images: p.Images, Packs: p.Packs, Uplinks: p.Uplinks,
	}
}

// peersOf lists the other nodes with guests of the cluster, and their NICs.
func peersOf(self Node, parts []Part) []*api.Peer {
	var peers []*api.Peer
	for _, p := range parts {
		if p.Node.Name != self.Name {
			peers = append(peers, &api.Peer{Node: p.Node.Name, FabricAddress: p.Node.FabricAddress, Cards: cardsOf(p.Guests)})
		}
	}
	slices.SortFunc(peers, func(a, b *api.Peer) int { return strings.Compare(a.Node, b.Node) })
	return peers
}

// cardsOf lists the NICs of guests that are on the fabric. An address that cannot be
// read is left to the node that makes the guest, which refuses it by name.
func cardsOf(guests []*api.GuestSpec) []*api.PeerCard {
	var cards []*api.PeerCard
	for _, g := range guests {
		for _, n := range g.GetNics() {
			mac, err := net.ParseMAC(n.GetMac())
			if n.GetBridge() == "" && err == nil {
				cards = append(cards, &api.PeerCard{Network: n.GetNetwork(), Mac: mac})
			}
		}
	}
	return cards
}

// StepClocks lets the guests run with closed NICs and sets their clocks, on all nodes
// at once. It returns those whose clock could not be set, each with the reason.
func (d *Deployer) StepClocks(ctx context.Context, life Life, nodes []Node) (failed []string, err error) {
	var mu sync.Mutex
	err = d.onEach(life, nodes, StepClocks, func(client api.NodeClient) error {
		reply, err := nodeconn.Ask(ctx, d.cfg.Release, func(ctx context.Context) (*api.StepClocksReply, error) {
			return client.StepClocks(ctx, &api.StepClocksRequest{Fence: life.Fence, Cluster: life.Cluster})
		})
		mu.Lock()
		defer mu.Unlock()
		failed = append(failed, reply.GetFailed()...)
		return err
	})
	slices.Sort(failed)
	return failed, err
}

// Release lets the guests run on all nodes at once. It tries every node,
// whatever fails: guests that run are better than guests that wait.
func (d *Deployer) Release(ctx context.Context, life Life, nodes []Node) error {
	return d.onEach(life, nodes, StepRelease, func(client api.NodeClient) error {
		_, err := nodeconn.Ask(ctx, d.cfg.Release, func(ctx context.Context) (*api.ReleaseGuestsReply, error) {
			return client.ReleaseGuests(ctx, &api.ReleaseGuestsRequest{Fence: life.Fence, Cluster: life.Cluster})
		})
		if err != nil {
			return err
		}
		return failpoint.Inject(ctx, failpoint.CoordinatorAfterRelease)
	})
}

// Destroy ends the cluster's guests on all nodes at once, and tries every node,
// whatever fails. A node without any has nothing to do.
func (d *Deployer) Destroy(ctx context.Context, life Life, nodes []Node) error {
	return d.onEach(life, nodes, StepDestroy, func(client api.NodeClient) error {
		_, err := nodeconn.Ask(ctx, d.cfg.Destroy, func(ctx context.Context) (*api.DestroyGuestsReply, error) {
			return client.DestroyGuests(ctx, &api.DestroyGuestsRequest{Fence: life.Fence, Cluster: life.Cluster})
		})
		return err
	})
}

// DestroyEach is Destroy with the error of each node, in the order of nodes.
func (d *Deployer) DestroyEach(ctx context.Context, life Life, nodes []Node) []error {
	errs := make([]error, len(nodes))
	var wg sync.WaitGroup
	for i, n := range nodes {
		wg.Go(func() { errs[i] = d.Destroy(ctx, life, []Node{n}) })
	}
	wg.Wait()
	return errs
}

// onEach calls every node at once and joins the errors in the order of nodes.
func (d *Deployer) onEach(life Life, nodes []Node, step string, call func(api.NodeClient) error) error {
	return d.onEachNode(life, nodes, step, func(_ Node, client api.NodeClient) error { return call(client) })
}

func (d *Deployer) onEachNode(life Life, nodes []Node, step string, call func(Node, api.NodeClient) error) error {
	errs := make([]error, len(nodes))
	var wg sync.WaitGroup
	for i, n := range nodes {
		wg.Go(func() {
			errs[i] = d.timed(life, n, step, func() error {
				client, err := d.cfg.Nodes.Client(n.Name, n.Address)
				if err != nil {
					return err
				}
				return call(n, client)
			})
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// timed logs how long a node took for a step and names both in its error.
func (d *Deployer) timed(life Life, n Node, step string, f func() error) error {
	begun := time.Now()
	if err := f(); err != nil {
		return fmt.Errorf("%s on node %s: %w", step, n.Name, err)
	}
	d.cfg.Logger.Info("step done", "cluster", life.Cluster, "epoch", life.Epoch, "node", n.Name, "step", step, "elapsed", time.Since(begun))
	return nil
}
