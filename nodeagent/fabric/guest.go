package fabric

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"
)

// PortStatus is a NIC and its counters.
type PortStatus struct {
	PortKey
	PortStats
}

// Lives returns the floor of each cluster of the fabric: the epoch in which its life
// began.
func (f *Fabric) Lives() (map[string]uint64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil, ErrClosed
	}
	lives := map[string]uint64{}
	for name, c := range f.clusters {
		lives[name] = c.floor
	}
	return lives, nil
}

// Incarnation is that of the configuration.
func (f *Fabric) Incarnation() string { return f.cfg.Incarnation }

// Join is Attach for callers that name the NIC in later calls.
func (f *Fabric) Join(cfg PortConfig) error {
	_, err := f.Attach(cfg)
	return err
}

// Leave detaches all NICs of a guest. A guest without any is no error.
func (f *Fabric) Leave(cluster, guest string) error {
	ports, err := f.portsOf(cluster, guest)
	if err != nil {
		return ignoreUnknown(err)
	}
	var errs []error
	for _, p := range ports {
		errs = append(errs, p.Detach())
	}
	return errors.Join(errs...)
}

// Inject puts the recorded frames of a restart to the front of a NIC's closed gate:
// see Port.Inject.
func (f *Fabric) Inject(cluster string, nic PortKey, frames [][]byte) error {
	ports, err := f.portsOf(cluster, nic.Guest)
	if err != nil {
		return fmt.Errorf("inject %d frames into nic %s of cluster %s: %w", len(frames), nic, cluster, err)
	}
	for _, p := range ports {
		if p.key == nic {
			return p.Inject(frames)
		}
	}
	return fmt.Errorf("inject %d frames into nic %s of cluster %s: %w", len(frames), nic, cluster, ErrUnknownNIC)
}

// Gate closes the ingress of all NICs of a guest: see Port.Gate. Who closes them and
// does not open them within limit has died or hangs: then they open by themselves. early
// is for how long frames from behind the open cut had waited for the guest.
func (f *Fabric) Gate(cluster, guest string, limit time.Duration) (early time.Duration, err error) {
	c, err := f.clusterNamed(cluster)
	if err != nil {
		return 0, fmt.Errorf("gate guest %s of cluster %s: %w", guest, cluster, err)
	}
	ports := c.portsOf(guest)
	c.limitGate(guest, ports, limit)
	for _, p := range ports {
		early = max(early, p.Stats().EarlyFor)
		if err := p.Gate(); err != nil {
			return early, err
		}
	}
	return early, nil
}

// Ungate opens the ingress of all NICs of a guest: see Port.Ungate. A guest without any
// is no error.
func (f *Fabric) Ungate(cluster, guest string) error {
	c, err := f.clusterNamed(cluster)
	if err != nil {
		return ignoreUnknown(err)
	}
	c.forgetGate(guest)
	for _, p := range c.portsOf(guest) {
		p.Ungate()
	}
	return nil
}

// Drain waits until a guest has taken what was on its way to all its NICs, at most for
// budget: see Port.Drain. undrained counts the NICs whose frames it has not taken.
//
// On error ErrNotDrained: the fabric is behind with the guest's own frames; a stop now
// may lose one.
func (f *Fabric) Drain(ctx context.Context, cluster, guest string, budget time.Duration) (undrained int, err error) {
	ports, err := f.portsOf(cluster, guest)
	if err != nil {
		return 0, fmt.Errorf("drain guest %s of cluster %s: %w", guest, cluster, err)
	}
	until := time.Now().Add(budget)
	for _, p := range ports {
		until, err = drainUntil(ctx, until, budget, p.Drain)
		switch {
		case errors.Is(err, ErrUndrained):
			undrained++
		case err != nil:
			return undrained, err
		}
	}
	return undrained, nil
}

// stoodStill is how late the process notices that a time is over only if it did not
// run: it was stopped, or its machine was.
const stoodStill = 250 * time.Millisecond

// drainUntil drains a NIC, and returns until when the others may be drained. A process
// that stood still itself finds the time over, in which the guest had no part: one frame
// may be inside QEMU, and the stop would lose it. Then the budget begins anew.
func drainUntil(ctx context.Context, until time.Time, budget time.Duration, drain func(context.Context) error) (time.Time, error) {
	for {
		limited, cancel := context.WithDeadline(ctx, until)
		err := drain(limited)
		cancel()
		if !errors.Is(err, ErrUndrained) || time.Since(until) <= stoodStill || ctx.Err() != nil {
			return until, err
		}
		until = time.Now().Add(budget)
	}
}

// PassCut puts a stopped guest's point on the cut: it takes back what the guest has not
// read on any NIC (Port.Reclaim), then Recolour. It is one call because the guest stands
// still meanwhile.
func (f *Fabric) PassCut(ctx context.Context, cluster string, epoch uint64, guest string) error {
	ports, err := f.portsOf(cluster, guest)
	if err != nil {
		return cutError("pass guest "+guest, cluster, epoch, err)
	}
	for _, p := range ports {
		if _, err := p.Reclaim(); err != nil {
			return cutError("pass guest "+guest, cluster, epoch, err)
		}
	}
	return f.Recolour(ctx, cluster, epoch, guest)
}

// Abandon ends what the fabric's user had begun and cannot end any more, since it has
// died: open cuts end, and the gates that Gate has closed open. Gates that were closed
// from the beginning of a guest stay closed.
func (f *Fabric) Abandon() {
	f.mu.Lock()
	clusters := slices.Collect(maps.Values(f.clusters))
	f.mu.Unlock()
	for _, c := range clusters {
		c.mu.Lock()
		gated := slices.Collect(maps.Keys(c.gates))
		var epoch uint64
		if c.cut != nil {
			epoch = c.cut.epoch
		}
		c.mu.Unlock()
		for _, guest := range gated {
			_ = f.Ungate(c.name, guest) // no error but that the cluster has ended
		}
		f.EndCut(c.name, epoch)
	}
}

// limitGate opens the gates of a guest after limit, unless forgetGate or another limit
// comes before. It leaves gates alone that are closed from the guest's beginning.
func (c *cluster) limitGate(guest string, ports []*Port, limit time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return
	}
	if old := c.gates[guest]; old != nil {
		old.Stop()
	} else if slices.ContainsFunc(ports, func(p *Port) bool { return p.checkGated() == nil }) {
		return
	}
	var timer *time.Timer
	timer = time.AfterFunc(limit, func() {
		c.mu.Lock()
		due := c.gates[guest] == timer
		c.mu.Unlock()
		if !due {
			return
		}
		c.fabric.log.Error("nobody has opened the gate of a guest in time: it opens by itself", "cluster", c.name, "guest", guest, "limit", limit)
		c.forgetGate(guest)
		for _, p := range c.portsOf(guest) {
			p.Ungate()
		}
	})
	c.gates[guest] = timer
}

func (c *cluster) forgetGate(guest string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t := c.gates[guest]; t != nil {
		t.Stop()
		delete(c.gates, guest)
	}
}

func (f *Fabric) portsOf(cluster, guest string) ([]*Port, error) {
	c, err := f.clusterNamed(cluster)
	if err != nil {
		return nil, err
	}
	return c.portsOf(guest), nil
}

// ignoreUnknown is err unless it says that there is no such cluster.
func ignoreUnknown(err error) error {
	if errors.Is(err, ErrUnknownCluster) {
		return nil
	}
	return err
}

// portStatus returns all NICs of the cluster, in the order of their names.
func (c *cluster) portStatus() []PortStatus {
	var all []PortStatus
	for _, p := range c.allPorts() {
		all = append(all, PortStatus{p.key, p.Stats()})
	}
	return all
}
