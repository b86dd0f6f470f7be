package nodeagent

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"golang.org/x/sync/errgroup"

	"fermata/imageio/extent"
	"fermata/nodeagent/journal"
	"fermata/protocol/api"
	"fermata/protocol/round"
	"fermata/vmm"
	"fermata/vmm/qemu"
)

const (
	// attachBudget bounds the search for one guest. A monitor that does not
	// answer must not keep the other guests without their wire.
	attachBudget = 5 * time.Second

	// attachWidth bounds how many guests are searched for at once.
	attachWidth = 16
)

// recover finds the guests an earlier agent made and joins them to the wire
// again. Guests that stood still for a checkpoint run again: their round lost
// this member and cannot commit. What was half made is removed. A guest that
// ended, or cannot be reached, is listed as such until it is destroyed; it does
// not keep the others waiting.
func (a *Agent) recover(ctx context.Context) error {
	clusters, err := a.journal.Clusters()
	if err != nil {
		return err
	}
	guests, err := a.journal.Guests()
	if err != nil {
		return err
	}
	epochs, err := a.epochs(clusters)
	if err != nil {
		return err
	}
	a.mu.Lock()
	for name, rec := range clusters {
		a.clusters[name] = newCluster(rec)
	}
	a.mu.Unlock()
	if err := a.forgetUnknown(clusters, guests); err != nil {
		return err
	}
	known := map[string]ports{}
	for _, rec := range guests {
		if known[rec.Cluster] != nil {
			continue
		}
		c, err := a.clusterOf(rec)
		if err != nil {
			return err
		}
		c.wired = a.plane.Incarnation()
		if known[c.name], err = a.wireCluster(c, epochs[c.name]); err != nil {
			return err
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(attachWidth)
	for _, rec := range guests {
		g.Go(func() error {
			if err := a.recoverGuest(gctx, rec, known[rec.Cluster]); err != nil {
				return fmt.Errorf("guest %s of cluster %s: %w", rec.Name, rec.Cluster, err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for _, c := range a.allClusters() {
		if err := a.leaveFabric(c); err != nil {
			return err
		}
		if c.record().Released {
			if err := a.letRun(ctx, c); err != nil { // finishReleases tries again
				a.log.Error("guests that were released do not run", "cluster", c.name, "error", err)
			}
		}
	}
	return a.recoverRounds()
}

// epochs returns, for each cluster, the newest epoch that a guest of it on this node can
// have the colour of: that of the last round its member was asked to prepare, which the
// member journals before it does anything for it.
func (a *Agent) epochs(clusters map[string]journal.Cluster) (map[string]uint64, error) {
	records, err := a.journal.Rounds()
	if err != nil {
		return nil, err
	}
	epochs := map[string]uint64{}
	for name, c := range clusters {
		epochs[name] = c.Epoch
		record, ok := records[name]
		if !ok {
			continue
		}
		var last round.Journal
		if err := json.Unmarshal(record, &last); err != nil {
			return nil, fmt.Errorf("rounds of cluster %s: decode journal: %w", name, err)
		}
		epochs[name] = max(c.Epoch, uint64(last.Epoch))
	}
	return epochs, nil
}

func (a *Agent) clusterOf(rec journal.Guest) (*cluster, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	c := a.clusters[rec.Cluster]
	if c == nil {
		return nil, fmt.Errorf("journal names guest %s of cluster %s, which it does not know", rec.Name, rec.Cluster)
	}
	return c, nil
}

// recoverGuest finds one guest. Its error is one of the journal; whatever is
// the matter with the guest is logged, and the guest set aside.
func (a *Agent) recoverGuest(ctx context.Context, rec journal.Guest, known ports) error {
	c, err := a.clusterOf(rec)
	if err != nil {
		return err
	}
	spec, err := decodeSpec(rec.Spec)
	if err != nil {
		return err
	}
	state, err := a.machineState(rec)
	if err != nil {
		return err
	}
	g := &guest{cluster: rec.Cluster, spec: spec, dir: a.guestDir(rec.Cluster, rec.Name), epoch: cmp.Or(rec.Epoch, c.record().Epoch)}
	g.boot = bootFiles{Kernel: state.Config.Kernel, Initrd: state.Config.Initrd}
	if state.PID != 0 {
		g.process = &state
	}
	log := a.log.With("cluster", rec.Cluster, "guest", rec.Name)
	ctx, cancel := context.WithTimeout(ctx, attachBudget)
	defer cancel()
	if !rec.Created {
		log.Warn("guest was half made when its agent ended")
		// It may have died before it had noted the process.
		if ended, err := qemu.EndStrays(ctx, a.memoryDir(rec.Cluster, rec.Name)); err != nil || ended > 0 {
			log.Warn("machines that no record names were ended", "processes", ended, "error", err)
		}
		if err := a.destroyGuest(ctx, c, g); err != nil {
			log.Error("half made guest cannot be removed", "error", err)
		}
		return nil
	}
	switch err := a.takeBack(ctx, c, g, rec, state, known); {
	case err == nil:
		a.openTool(c, g)
		c.complete(g)
		a.watch(c, g)
		if g.bases.files = decodeBases(rec.Bases); g.bases.files == nil {
			a.identifyLater(g)
		}
		log.Info("guest found again", "pid", g.machine.PID())
	case errors.Is(err, vmm.ErrGone):
		if err := a.plane.Leave(rec.Cluster, rec.Name); err != nil {
			log.Error("guest that ended is still on the data plane", "error", err)
		}
		a.endedMeanwhile(c, g, rec, err)
	default:
		log.Error("guest cannot be reached", "error", err)
		c.setAside(g, api.GuestState_GUEST_STATE_UNKNOWN)
	}
	return nil
}

// takeBack finds the guest's process and joins those of its cards to the data plane that
// it does not know.
func (a *Agent) takeBack(ctx context.Context, c *cluster, g *guest, rec journal.Guest, state qemu.State, known ports) error {
	m, err := attach(ctx, state)
	if err != nil {
		return fmt.Errorf("find machine: %w", err)
	}
	g.machine, g.process = m, nil
	if err := a.hides(ctx, g, extent.Of(rec.Confidential...), extent.Of(rec.Zeroed...)); err != nil {
		return err
	}
	g.nics = fabricCards(g.spec)
	g.injected, err = a.wireGuest(c, g, known)
	return err
}

// attach takes the process over; a guest that never had one is gone.
func attach(ctx context.Context, state qemu.State) (machine, error) {
	if state.PID == 0 {
		return nil, vmm.ErrGone
	}
	m, err := qemu.Attach(ctx, state)
	if err != nil {
		return nil, err
	}
	return m, nil
}

// machineState returns the record of a guest's process. An agent that died
// before it journalled that record left it in the guest's directory; the zero
// State stands for a guest that never had a process.
func (a *Agent) machineState(rec journal.Guest) (qemu.State, error) {
	var state qemu.State
	if len(rec.Machine) > 0 {
		if err := json.Unmarshal(rec.Machine, &state); err != nil {
			return state, fmt.Errorf("decode machine: %w", err)
		}
		return state, nil
	}
	state, err := qemu.ReadState(a.guestDir(rec.Cluster, rec.Name))
	if errors.Is(err, fs.ErrNotExist) {
		return qemu.State{}, nil
	}
	return state, err
}
