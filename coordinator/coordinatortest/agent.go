// Package coordinatortest has a node agent without guests, for tests of the
// coordinator: a server of the Node service whose guests are a few pages of
// memory, written to and read from a real repository. It keeps the promises of
// the wire (idempotence, fencing, one outcome a round), notes when its caller
// breaks one, and fails on request at any call.
//
// Only tests import it.
package coordinatortest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"fermata/imageio/repository"
	"fermata/protocol/api"
	"fermata/protocol/fault"
	"fermata/protocol/fault/faultgrpc"
	"fermata/protocol/identity"
)

// Config holds what an Agent needs.
type Config struct {
	Name         string
	Repository   repository.Config
	MemoryBytes  uint64   // for guests
	Coordinators []string // addresses to register with
	Socket       string   // unix socket path to serve on; empty: a loopback port

	Identity *identity.Identity // nil: plain text
}

// Agent is the fake.
//
// Concurrency: safe for use by several goroutines.
type Agent struct {
	api.UnimplementedNodeServer
	cfg  Config // immutable
	repo *repository.Repository

	mu          sync.Mutex
	address     string              // guarded by mu
	incarnation int                 // guarded by mu
	clusters    map[string]*cluster // guarded by mu
	faults      map[Call][]Fault    // guarded by mu
	calls       []Call              // guarded by mu; in the order of arrival
	broken      []string            // guarded by mu; promises the caller broke
	ahead       time.Duration       // guarded by mu; of the node's clock
}

// cluster is what the agent has of one cluster.
type cluster struct {
	fence    *api.Fence
	retired  []uint64
	epoch    uint64 // of the present life
	released bool
	guests   map[string]*guest
	peers    []*api.Peer
	rounds   map[uint64]*roundState
}

// guest is a machine of a few pages.
type guest struct {
	spec     *api.GuestSpec
	memory   []byte
	ended    string // why it has ended by itself; empty: it has not
	frames   uint64 // recorded ones, injected at its restart
	injected uint64
}

// New opens the repository and returns an agent that does not serve yet.
func New(ctx context.Context, cfg Config) (*Agent, error) {
	repo, err := repository.Open(ctx, cfg.Repository)
	if err != nil {
		return nil, err
	}
	return &Agent{
		cfg: cfg, repo: repo, incarnation: 1,
		clusters: map[string]*cluster{}, faults: map[Call][]Fault{},
	}, nil
}

// Run serves and registers until ctx ends.
func (a *Agent) Run(ctx context.Context) error {
	network, address := "tcp", "127.0.0.1:0"
	if a.cfg.Socket != "" {
		network, address = "unix", a.cfg.Socket
	}
	lis, err := net.Listen(network, address)
	if err != nil {
		return err
	}
	a.mu.Lock()
	a.address = lis.Addr().String()
	if network == "unix" {
		a.address = "unix:" + a.address
	}
	a.mu.Unlock()
	opts := []grpc.ServerOption{grpc.WaitForHandlers(true)}
	opts = append(opts, faultgrpc.ServerOptions()...)
	if a.cfg.Identity != nil {
		opts = append(opts, a.cfg.Identity.ServerOptions(identity.ServiceRules())...)
	}
	server := grpc.NewServer(opts...)
	api.RegisterNodeServer(server, a)
	served := make(chan error, 1)
	go func() { served <- server.Serve(lis) }()
	err = a.register(ctx)
	<-ctx.Done()
	server.Stop()
	return errors.Join(err, <-served)
}

// register announces the node to each coordinator in turn until ctx ends.
func (a *Agent) register(ctx context.Context) error {
	creds := grpc.WithTransportCredentials(insecure.NewCredentials())
	if a.cfg.Identity != nil {
		creds = a.cfg.Identity.DialOption(identity.RoleCoordinator, "")
	}
	var conns []*grpc.ClientConn
	for _, address := range a.cfg.Coordinators {
		target := address
		if !strings.HasPrefix(address, "unix:") {
			target = "passthrough:///" + address
		}
		conn, err := grpc.NewClient(target, append(faultgrpc.DialOptions(), creds)...)
		if err != nil {
			return err
		}
		defer conn.Close()
		conns = append(conns, conn)
	}
	for next := 0; ctx.Err() == nil && len(conns) > 0; {
		wait := 20 * time.Millisecond
		reply, err := api.NewRegistryClient(conns[next]).Register(ctx, &api.RegisterRequest{Node: a.info(), NewestFences: a.newestFences()})
		if err == nil {
			wait = time.Duration(reply.GetLeaseTtlMs()) * time.Millisecond / 3
			a.endSuperseded(reply.GetSuperseded())
		} else {
			next = (next + 1) % len(conns)
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
	return nil
}

// newestFences returns the newest fence that was obeyed of each store.
func (a *Agent) newestFences() []*api.Fence {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []*api.Fence
	for _, c := range a.clusters {
		i := slices.IndexFunc(out, func(f *api.Fence) bool { return f.GetStore() == c.fence.GetStore() })
		switch {
		case c.fence == nil:
		case i < 0:
			out = append(out, c.fence)
		case c.fence.GetToken() > out[i].GetToken():
			out[i] = c.fence
		}
	}
	return out
}

// endSuperseded ends guests of earlier lives, as it was told.
func (a *Agent) endSuperseded(orders []*api.SupersededLife) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, o := range orders {
		c, err := a.admit(o.GetCluster(), o.GetFence())
		if err == nil && c.epoch < o.GetBeforeEpoch() {
			c.guests, c.released = map[string]*guest{}, false
		}
	}
}

// Address is where the agent serves, once Run does.
func (a *Agent) Address() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.address
}

// Restarted makes the agent look as if it had been restarted.
func (a *Agent) Restarted() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.incarnation++
}

// Broken lists the promises that the caller broke.
func (a *Agent) Broken() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.broken)
}

// Running lists the guests of a cluster that run.
func (a *Agent) Running(name string) []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	c := a.clusters[name]
	if c == nil || !c.released {
		return nil
	}
	return slices.DeleteFunc(sortedKeys(c.guests), func(g string) bool { return c.guests[g].ended != "" })
}

// endedAt is when guests of fakes end.
var endedAt = time.Date(2026, 12, 1, 12, 3, 51, 0, time.UTC)

// End has a guest end by itself, and says why.
func (a *Agent) End(name, guest, why string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.clusters[name].guests[guest].ended = why
}

// Guests lists the guests of a cluster that exist, running or not.
func (a *Agent) Guests(name string) []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if c := a.clusters[name]; c != nil {
		return sortedKeys(c.guests)
	}
	return nil
}

// Memory returns a copy of a guest's memory; nil when it is not here.
func (a *Agent) Memory(name, guest string) []byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	c := a.clusters[name]
	if c == nil || c.guests[guest] == nil {
		return nil
	}
	return slices.Clone(c.guests[guest].memory)
}

// Write changes a guest's memory at off, as the guest itself would.
func (a *Agent) Write(name, guest string, off int, data []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	copy(a.clusters[name].guests[guest].memory[off:], data)
}

// Epoch returns the epoch in which the cluster's present life began.
func (a *Agent) Epoch(name string) uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	if c := a.clusters[name]; c != nil {
		return c.epoch
	}
	return 0
}

// Peers returns the names of the peers that the cluster's guests were made with.
func (a *Agent) Peers(name string) []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var names []string
	if c := a.clusters[name]; c != nil {
		for _, p := range c.peers {
			names = append(names, p.GetNode())
		}
	}
	return names
}

// PeerCards counts the NICs of the peers that the cluster's guests were made with.
func (a *Agent) PeerCards(name string) (n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if c := a.clusters[name]; c != nil {
		for _, p := range c.peers {
			n += len(p.GetCards())
		}
	}
	return n
}

// Lose forgets all guests without a word, as a machine that lost power.
func (a *Agent) Lose() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.clusters = map[string]*cluster{}
	a.incarnation++
}

func (a *Agent) info() *api.NodeInfo {
	a.mu.Lock()
	defer a.mu.Unlock()
	info := &api.NodeInfo{
		Name: a.cfg.Name, Address: a.address, FabricAddress: "127.0.0.1:1", MemoryBytes: a.cfg.MemoryBytes,
		MemoryFreeBytes: a.cfg.MemoryBytes - a.used(), Cpus: 8, QemuVersion: "7.2.22", Kernel: "6.18",
		Version: "test", Incarnation: fmt.Sprintf("%s-%d", a.cfg.Name, a.incarnation),
	}
	for _, name := range sortedKeys(a.clusters) {
		c := a.clusters[name]
		for _, g := range sortedKeys(c.guests) {
			state := api.GuestState_GUEST_STATE_PAUSED
			if c.released {
				state = api.GuestState_GUEST_STATE_RUNNING
			}
			spec := c.guests[g].spec
			info.Guests = append(info.Guests, &api.GuestStatus{
				Cluster: name, Name: g, Node: a.cfg.Name, State: state, MemoryBytes: spec.GetMemoryBytes(), Vcpus: spec.GetVcpus(), Pid: 1,
				Epoch: c.epoch,
			})
			if ended := c.guests[g].ended; ended != "" {
				last := info.Guests[len(info.Guests)-1]
				last.State, last.Reason, last.EndedUnixNs = api.GuestState_GUEST_STATE_DEAD, ended, endedAt.UnixNano()
			}
		}
	}
	return info
}

// used is the memory that guests have.
//
// Preconditions: mu is held.
func (a *Agent) used() uint64 {
	var sum uint64
	for _, c := range a.clusters {
		sum += c.memory()
	}
	return sum
}

// memory is what the cluster's guests have.
//
// Preconditions: the agent's mu is held.
func (c *cluster) memory() (sum uint64) {
	for _, g := range c.guests {
		sum += g.spec.GetMemoryBytes()
	}
	return sum
}

// admit returns the cluster for a call with this fence, or refuses a deposed
// coordinator.
//
// Preconditions: mu is held.
func (a *Agent) admit(name string, f *api.Fence) (*cluster, error) {
	if f.GetToken() == 0 || f.GetStore() == 0 {
		a.broken = append(a.broken, "call without a fence")
		return nil, fault.New(fault.Invalid, "fence: token or store missing")
	}
	c := a.clusters[name]
	if c == nil {
		c = &cluster{guests: map[string]*guest{}, rounds: map[uint64]*roundState{}}
		a.clusters[name] = c
	}
	switch {
	case slices.Contains(c.retired, f.GetStore()), c.fence.GetStore() == f.GetStore() && f.GetToken() < c.fence.GetToken():
		return nil, fault.New(fault.Stale, "coordinator was deposed (token %d, newest %d)", f.GetToken(), c.fence.GetToken())
	case c.fence != nil && c.fence.GetStore() != f.GetStore():
		c.retired = append(c.retired, c.fence.GetStore())
	}
	c.fence = f
	return c, nil
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
