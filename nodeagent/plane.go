package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"fermata/nodeagent/dataplane"
	"fermata/nodeagent/fabric"
	"fermata/nodeagent/journal"
	"fermata/protocol/api"
	"fermata/protocol/fault"
	"fermata/vmm"
)

// planeRetry spaces attempts to come by a data plane after the last one has died.
const planeRetry = time.Second

// openPlane takes over the data plane of the agent before, or starts one.
func (a *Agent) openPlane(ctx context.Context) error {
	command := a.cfg.DataPlane
	if len(command) == 0 {
		var err error
		if command, err = dataplane.Command(); err != nil {
			return err
		}
	}
	cfg := dataplane.Config{
		Dir: a.cfg.StateDir, Command: command, Log: os.Stderr, Logger: a.log.Named("data-plane"),
		Settings: dataplane.Settings{
			Node: a.cfg.Name, Listen: a.cfg.FabricListen, Plaintext: a.cfg.Plaintext || a.cfg.FabricPlaintext,
			FrameBytes: a.cfg.frameBytes(), LogLevel: a.log.GetLevel().String(),
		},
	}
	if !cfg.Settings.Plaintext {
		cfg.Settings.Identity = a.cfg.Identity.Files()
	}
	a.process = dataplane.NewClient(cfg)
	a.plane = a.process
	return a.process.Connect(ctx)
}

// closePlane ends the data plane if no guest of this node needs it any more, else lets
// go of it.
func (a *Agent) closePlane(ctx context.Context) error {
	for _, c := range a.allClusters() {
		if len(c.list()) > 0 && !a.cfg.DestroyOnExit {
			a.process.Close()
			return nil
		}
	}
	return a.process.End(ctx)
}

// keepPlane replaces the data plane whenever it dies, and joins the guests to the new
// one, until ctx ends.
func (a *Agent) keepPlane(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-a.process.Lost():
		}
		if ctx.Err() != nil {
			return
		}
		a.log.Error("data plane has died: frames in it are lost, another takes its place")
		for a.process.Incarnation() == "" || isLost(a.process) {
			err := a.process.Connect(ctx)
			if err == nil {
				break
			}
			a.log.Error("data plane does not start", "error", err)
			select {
			case <-ctx.Done():
				return
			case <-time.After(planeRetry):
			}
		}
		var wg sync.WaitGroup
		for _, c := range a.allClusters() {
			wg.Go(func() {
				if err := a.rewireInTurn(ctx, c); err != nil && ctx.Err() == nil {
					a.log.Error("guests have no network", "cluster", c.name, "error", err)
				}
			})
		}
		wg.Wait()
	}
}

func isLost(c *dataplane.Client) bool {
	select {
	case <-c.Lost():
		return true
	default:
		return false
	}
}

func (a *Agent) rewireInTurn(ctx context.Context, c *cluster) error {
	if err := c.begin(ctx); err != nil {
		return err
	}
	defer c.end()
	return a.rewire(c)
}

// rewire joins the guests of a cluster to a data plane that has taken the place of the
// one they were joined to. It does nothing when they are joined to the present one.
//
// Preconditions: the caller has the cluster's turn.
func (a *Agent) rewire(c *cluster) error {
	incarnation := a.plane.Incarnation()
	if c.wired == incarnation || len(c.list()) == 0 {
		return nil
	}
	if incarnation == "" {
		return fault.Wrap(fault.Unavailable, fabric.ErrClosed, "the data plane of node %s is being replaced", a.cfg.Name)
	}
	rec := c.record()
	epochs, err := a.epochs(map[string]journal.Cluster{c.name: rec})
	if err != nil {
		return err
	}
	known, err := a.wireCluster(c, epochs[c.name])
	if err != nil {
		return err
	}
	var errs []error
	for _, g := range c.list() {
		_, err := a.wireGuest(c, g, known)
		if err == nil && rec.Released {
			err = a.ungate(g)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("guest %s: %w", g.spec.Name, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	c.wired = incarnation
	a.log.Info("guests joined to the new data plane", "cluster", c.name, "incarnation", incarnation)
	return nil
}

// ignoreClosed is err unless it says that the data plane is gone, and with it whatever
// was to be removed from it.
func ignoreClosed(err error) error {
	if errors.Is(err, fabric.ErrClosed) {
		return nil
	}
	return err
}

// ports are what a data plane has of a cluster's guests.
type ports map[fabric.PortKey]fabric.PortStatus

// wireCluster tells the data plane the life, the peers and the uplinks of a cluster, and
// the epoch that its guests have come to. What is there already stays as it is. It
// returns the NICs that are there.
func (a *Agent) wireCluster(c *cluster, epoch uint64) (ports, error) {
	rec := c.record()
	if err := a.plane.ContinueCluster(c.name, rec.Epoch, epoch); err != nil {
		return nil, err
	}
	if err := a.plane.SetPeers(c.name, peersOf(rec)); err != nil {
		return nil, err
	}
	stats, err := a.plane.ClusterStats(c.name)
	if err != nil {
		return nil, err
	}
	if err := a.openUplinks(c.name, rec.Uplinks, stats.Uplinks); err != nil {
		// Its guests run on without the world outside.
		a.log.Error("uplink cannot be opened again", "cluster", c.name, "error", err)
	}
	known := ports{}
	for _, p := range stats.Ports {
		known[p.PortKey] = p
	}
	return known, nil
}

func peersOf(rec journal.Cluster) []fabric.Peer {
	peers := make([]fabric.Peer, 0, len(rec.Peers))
	for node, addr := range rec.Peers {
		peer := fabric.Peer{Node: node, Address: addr}
		for _, card := range rec.Cards[node] {
			peer.Cards = append(peer.Cards, fabric.Card{Network: card.Network, MAC: card.MAC})
		}
		peers = append(peers, peer)
	}
	return peers
}

// wireGuest joins the cards of a guest whose machine is known to the data plane, gated,
// unless they are joined. It returns how many frames were injected for it.
func (a *Agent) wireGuest(c *cluster, g *guest, known ports) (injected uint64, err error) {
	cards := fabricCards(g.spec)
	for _, n := range cards {
		if have, ok := known[fabric.PortKey{Guest: g.spec.Name, NIC: n.Name}]; ok {
			injected += have.Injected
			continue
		}
		near, far, err := g.machine.NICFiles(n.Name)
		if err != nil {
			select {
			case <-g.machine.Exited():
				err = errors.Join(vmm.ErrGone, err)
			default:
			}
			return injected, fmt.Errorf("take card %s back: %w", n.Name, err)
		}
		if err := a.joinCard(g, n, near, far); err != nil {
			return injected, err
		}
		if c.record().Released {
			continue
		}
		count, err := a.injectKept(g, n)
		if err != nil {
			return injected, err
		}
		injected += count
	}
	if len(cards) == 0 {
		return 0, nil
	}
	return injected, a.plane.Belongs(g.cluster, g.spec.Name, g.machine.PID())
}

// fabricCards returns the cards of a guest that are on the fabric; the TAP devices of the
// others are the machine's alone.
func fabricCards(spec *api.GuestSpec) []*api.NICSpec {
	var cards []*api.NICSpec
	for _, n := range spec.Nics {
		if n.Bridge == "" {
			cards = append(cards, n)
		}
	}
	return cards
}

// forgetUnknown removes from the data plane what the journal does not know: clusters
// without guests here or of an earlier life, and guests.
func (a *Agent) forgetUnknown(clusters map[string]journal.Cluster, guests []journal.Guest) error {
	lives, err := a.plane.Lives()
	if err != nil {
		return err
	}
	ours := map[string]map[string]bool{}
	for _, g := range guests {
		if ours[g.Cluster] == nil {
			ours[g.Cluster] = map[string]bool{}
		}
		ours[g.Cluster][g.Name] = true
	}
	for name, floor := range lives {
		if ours[name] == nil || clusters[name].Epoch != floor {
			a.log.Warn("data plane has a cluster that is not in the journal", "cluster", name, "epoch", floor)
			if err := a.plane.RemoveCluster(name); err != nil {
				return err
			}
			continue
		}
		stats, err := a.plane.ClusterStats(name)
		if err != nil {
			return err
		}
		for _, p := range stats.Ports {
			if ours[name][p.Guest] {
				continue
			}
			a.log.Warn("data plane has a guest that is not in the journal", "cluster", name, "guest", p.Guest)
			if err := a.plane.Leave(name, p.Guest); err != nil {
				return err
			}
		}
	}
	return nil
}
