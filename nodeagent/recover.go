package nodeagent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"

	"fermata/nodeagent/journal"
	"fermata/vmm"
	"fermata/vmm/qemu"
)

// recover finds the guests an earlier agent made and joins them to the wire
// again. Guests that stood still for a checkpoint run again: their round lost
// this member and cannot commit. What was half made is removed.
func (a *Agent) recover(ctx context.Context) error {
	clusters, err := a.journal.Clusters()
	if err != nil {
		return err
	}
	guests, err := a.journal.Guests()
	if err != nil {
		return err
	}
	a.mu.Lock()
	for name, rec := range clusters {
		a.clusters[name] = &cluster{name: name, rec: rec, guests: map[string]*guest{}}
	}
	a.mu.Unlock()
	for _, c := range a.allClusters() {
		if err := a.joinFabric(c); err != nil {
			return err
		}
	}
	for _, rec := range guests {
		if err := a.recoverGuest(ctx, rec); err != nil {
			return fmt.Errorf("guest %s of cluster %s: %w", rec.Name, rec.Cluster, err)
		}
	}
	if err := a.recoverRounds(ctx); err != nil {
		return err
	}
	var errs []error
	for _, c := range a.allClusters() {
		if c.record().Released {
			errs = append(errs, runGuests(ctx, c.alive(ctx)))
		}
		if len(c.list()) == 0 {
			errs = append(errs, a.fabric.RemoveCluster(c.name))
		}
	}
	return errors.Join(errs...)
}

func (a *Agent) recoverGuest(ctx context.Context, rec journal.Guest) error {
	a.mu.Lock()
	c := a.clusters[rec.Cluster]
	a.mu.Unlock()
	if c == nil {
		return errors.New("journal names a guest of a cluster it does not know")
	}
	spec, err := decodeSpec(rec.Spec)
	if err != nil {
		return err
	}
	state, err := a.machineState(rec)
	if err != nil {
		return err
	}
	machine, err := attach(ctx, state)
	switch {
	case errors.Is(err, vmm.ErrGone):
		a.log.Warn("guest ended while no agent ran", "cluster", rec.Cluster, "guest", rec.Name)
		if err := a.removeFiles(rec.Cluster, rec.Name); err != nil {
			return err
		}
		return a.journal.DeleteGuest(rec.Cluster, rec.Name)
	case err != nil:
		return fmt.Errorf("find running machine: %w", err)
	}
	g := &guest{cluster: rec.Cluster, spec: spec, dir: a.guestDir(rec.Cluster, rec.Name), machine: machine}
	g.boot = bootFiles{Kernel: state.Config.Kernel, Initrd: state.Config.Initrd}
	if !rec.Created {
		a.log.Warn("guest was half made when its agent ended", "cluster", rec.Cluster, "guest", rec.Name)
		return a.destroyGuest(ctx, c, g)
	}
	for _, n := range spec.Nics {
		near, far, err := machine.NICFiles(n.Name)
		if err != nil {
			return fmt.Errorf("take card %s back: %w", n.Name, err)
		}
		port, err := a.attachPort(g, n, near, far)
		if err != nil {
			return err
		}
		g.nics = append(g.nics, nic{spec: n, port: port})
	}
	c.mu.Lock()
	c.guests[rec.Name] = g
	c.mu.Unlock()
	a.log.Info("guest found again", "cluster", rec.Cluster, "guest", rec.Name, "pid", machine.PID())
	return nil
}

// attach takes the process over; a guest that never had one is gone.
func attach(ctx context.Context, state qemu.State) (*qemu.Machine, error) {
	if state.PID == 0 {
		return nil, vmm.ErrGone
	}
	return qemu.Attach(ctx, state)
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

// alive returns the guests whose process runs.
func (c *cluster) alive(ctx context.Context) []*guest {
	var out []*guest
	for _, g := range c.list() {
		if s, err := g.machine.Status(ctx); err == nil && s != vmm.StatusDead {
			out = append(out, g)
		}
	}
	return out
}
