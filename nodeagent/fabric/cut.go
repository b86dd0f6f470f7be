package fabric

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// cut is this node's part of one cut of one cluster.
type cut struct {
	epoch   uint64          // immutable; begins behind the cut
	members map[string]bool // immutable; the other nodes of the round
	marked  bool            // guarded by cluster.mu; markers are sent
	counted bool            // guarded by cluster.mu; the channel state was counted
}

// BeginCut opens the cut of an epoch: from now on links take more frames before
// they hold up a guest, and a frame of that epoch waits for its receiver's own
// point on the cut, at most for patience. When that has passed it is delivered, and
// the guest cannot be cut any more (ErrOrphan). members are the nodes of the round,
// this one included or not. It replaces an older cut that was not ended. Repeating
// it does nothing.
//
// On error ErrStale: the cluster has already come to this epoch or beyond.
func (f *Fabric) BeginCut(cluster string, epoch uint64, members []string, patience time.Duration) error {
	c, err := f.clusterNamed(cluster)
	if err == nil {
		err = c.beginCut(epoch, members, patience)
	}
	return cutError("begin cut", cluster, epoch, err)
}

func (c *cluster) beginCut(epoch uint64, members []string, patience time.Duration) error {
	others := make(map[string]bool, len(members))
	for _, m := range members {
		if m != c.fabric.cfg.Node {
			others[m] = true
		}
	}
	links, err := c.openCut(epoch, others, patience)
	for _, l := range links {
		l.relax()
	}
	return err
}

func (c *cluster) openCut(epoch uint64, members map[string]bool, patience time.Duration) (map[string]*link, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, ErrClosed
	}
	if c.cut != nil && c.cut.epoch == epoch && maps.Equal(c.cut.members, members) {
		return nil, nil
	}
	if epoch <= c.epoch.Load() || c.cut != nil && epoch <= c.cut.epoch {
		return nil, fmt.Errorf("cluster is in epoch %d: %w", c.epoch.Load(), ErrStale)
	}
	for m := range members {
		if c.links[m] == nil {
			return nil, fmt.Errorf("member %s is no peer", m)
		}
	}
	for node := range c.links {
		if !members[node] {
			return nil, fmt.Errorf("peer %s is no member: its frames would be in no channel state", node)
		}
	}
	c.cut = &cut{epoch: epoch, members: members}
	c.patience.Store(int64(patience))
	c.cutEpoch.Store(epoch)
	c.closeChannels() // of an older cut
	c.changed.raise() // who waits for an older cut waits in vain
	return c.links, nil
}

// Recolour puts a guest's point on the cut: all that it sends from here on belongs
// to the new epoch, and what reaches it of older ones is recorded, beginning with
// what waits for it. It waits until every frame the guest has sent is on its way:
// in a port's queue or on a link. Repeating it does nothing.
//
// Preconditions: the guest is stopped, its ports gated, undrained ones reclaimed.
// What the fabric can see of this is checked.
//
// On error ErrOrphan: a frame from behind the cut has been delivered to the guest,
// as the cut did not come in time. No cut of this epoch can be taken; the next
// epoch's can.
func (f *Fabric) Recolour(ctx context.Context, cluster string, epoch uint64, guest string) error {
	c, err := f.clusterNamed(cluster)
	if err == nil {
		err = c.recolour(ctx, epoch, guest)
	}
	return cutError("recolour guest "+guest, cluster, epoch, err)
}

func (c *cluster) recolour(ctx context.Context, epoch uint64, guest string) error {
	ports := c.portsOf(guest)
	for {
		if err := c.drainEgress(ctx, ports); err != nil {
			return err
		}
		// A reader may look once more at its socket, in which there is nothing, and be
		// found busy by that.
		if err := c.passCut(epoch, ports); !errors.Is(err, ErrNotDrained) {
			return err
		}
	}
}

// passCut lets a guest's ports pass a cut, all or none.
func (c *cluster) passCut(epoch uint64, ports []*Port) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, err := c.cutLocked(epoch); err != nil {
		return err
	}
	for _, p := range ports {
		if err := p.checkCut(epoch); err != nil {
			return fmt.Errorf("nic %s: %w", p.key, err)
		}
	}
	for _, p := range ports {
		if p.recolour(epoch) {
			p.network.tell(p, epoch, nil)
		}
	}
	return nil
}

// recolour gives the port the colour of a cut and begins to record. False: it has
// that colour already.
//
// Preconditions: checkCut has nothing against it.
func (p *Port) recolour(epoch uint64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.epoch.Load() >= epoch {
		return false
	}
	p.epoch.Store(epoch)
	p.unpark() // nothing is early any more
	p.resetChannel(true)
	for i := range p.queue.len() {
		p.record(*p.queue.at(i), epoch)
	}
	return true
}

func (c *cluster) drainEgress(ctx context.Context, ports []*Port) error {
	if idle, err := egressIdle(ports); err != nil || idle {
		return err // the usual case: the readers were faster than the stop
	}
	c.draining.Add(1)
	defer c.draining.Add(-1)
	c.relax()
	for _, p := range ports {
		if err := poll(ctx, p.egressIdle); err != nil {
			return fmt.Errorf("nic %s: %w: %w", p.key, ErrNotDrained, err)
		}
	}
	return nil
}

// relax lets everybody who waits for room look again.
func (c *cluster) relax() {
	c.mu.Lock()
	ports, links := c.portsLocked(), c.links
	c.mu.Unlock()
	for _, p := range ports {
		p.mu.Lock()
		p.room.raise()
		p.mu.Unlock()
	}
	for _, l := range links {
		l.relax()
	}
}

func egressIdle(ports []*Port) (bool, error) {
	for _, p := range ports {
		if idle, err := p.egressIdle(); err != nil || !idle {
			return false, err
		}
	}
	return true, nil
}

// egressIdle tells whether every frame the guest has sent is switched. The
// order of the two looks matters: see wire.receive.
func (p *Port) egressIdle() (bool, error) {
	n, err := p.wire.unreadByFabric()
	if err != nil {
		return false, err
	}
	return n == 0 && !p.busy.Load(), nil
}

// SendMarkers closes this node's channels to the others: a marker goes to every
// member, behind all that the node's guests have sent before their points.
// Repeating it does nothing.
//
// On error ErrNotCut: a guest has not been recoloured.
func (f *Fabric) SendMarkers(cluster string, epoch uint64) error {
	c, err := f.clusterNamed(cluster)
	if err == nil {
		err = c.sendMarkers(epoch)
	}
	return cutError("send markers", cluster, epoch, err)
}

func (c *cluster) sendMarkers(epoch uint64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	ct, err := c.cutLocked(epoch)
	if err != nil || ct.marked {
		return err
	}
	for _, p := range c.ports {
		if p.epoch.Load() != epoch {
			return fmt.Errorf("nic %s: %w", p.key, ErrNotCut)
		}
	}
	c.epoch.Store(epoch)
	for node := range ct.members {
		if l := c.links[node]; l != nil {
			l.sendMarker(epoch)
		}
	}
	ct.marked = true
	return nil
}

// checkCut tells whether the port's guest may pass the cut of an epoch.
func (p *Port) checkCut(epoch uint64) error {
	if p.epoch.Load() >= epoch {
		return nil // it has
	}
	switch idle, err := p.egressIdle(); {
	case err != nil:
		return err
	case !idle:
		return ErrNotDrained
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.gatedLocked(); err != nil {
		return err
	}
	if p.newest >= epoch {
		return fmt.Errorf("guest has a frame of epoch %d: %w", p.newest, ErrOrphan)
	}
	return nil
}

// WaitMarkers waits until every member's marker is here. Then every frame sent to
// this node's guests before the cut and not received before it is recorded: the
// channels from the other nodes are closed.
//
// On error the cut is still open, and the call may be repeated, except with
// ErrStale (a newer cut has begun, here or at a member) and ErrClosed.
func (f *Fabric) WaitMarkers(ctx context.Context, cluster string, epoch uint64) error {
	c, err := f.clusterNamed(cluster)
	if err == nil {
		err = c.waitMarkers(ctx, epoch)
	}
	return cutError("wait for markers", cluster, epoch, err)
}

func (c *cluster) waitMarkers(ctx context.Context, epoch uint64) error {
	for {
		missing, changed, err := c.missingMarkers(epoch)
		if err != nil || len(missing) == 0 {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("none from %s: %w", strings.Join(missing, ", "), context.Cause(ctx))
		}
	}
}

// missingMarkers returns the members without a marker, and a channel that is
// closed when that may have changed.
func (c *cluster) missingMarkers(epoch uint64) ([]string, <-chan struct{}, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	ct, err := c.cutLocked(epoch)
	if err != nil {
		return nil, nil, err
	}
	var missing []string
	for _, node := range slices.Sorted(maps.Keys(ct.members)) {
		in := c.inbound[node]
		switch {
		case in == nil || in.marker < epoch:
			missing = append(missing, node)
		case in.marker > epoch:
			return nil, nil, fmt.Errorf("member %s is at epoch %d: %w", node, in.marker, ErrStale)
		}
	}
	return missing, c.changed.wait(), nil
}

// ChannelState returns, for every local NIC with any, the frames sent before
// the cut and not received before it, oldest first, and ends the recording. The
// frames are shared with the queues: they must not be changed.
//
// On error ErrChannelsOpen: this node's markers are not sent, or a member's is not
// here. On error ErrChannelFull: for one NIC there were more than twice HoldBytes, or more
// than TotalBytes leaves.
func (f *Fabric) ChannelState(cluster string, epoch uint64) (map[PortKey][][]byte, error) {
	c, err := f.clusterNamed(cluster)
	if err != nil {
		return nil, cutError("take channel state", cluster, epoch, err)
	}
	state, err := c.channelState(epoch)
	return state, cutError("take channel state", cluster, epoch, err)
}

func (c *cluster) channelState(epoch uint64) (map[PortKey][][]byte, error) {
	missing, _, err := c.missingMarkers(epoch)
	if err != nil {
		return nil, err
	}
	if len(missing) > 0 {
		return nil, fmt.Errorf("no marker from %s: %w", strings.Join(missing, ", "), ErrChannelsOpen)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	ct, err := c.cutLocked(epoch)
	if err != nil {
		return nil, err
	}
	if !ct.marked {
		return nil, fmt.Errorf("own markers not sent: %w", ErrChannelsOpen)
	}
	state := make(map[PortKey][][]byte)
	for key, p := range c.ports {
		frames, err := p.recorded()
		if err != nil {
			return nil, fmt.Errorf("nic %s: %w", key, err)
		}
		if len(frames) > 0 {
			state[key] = frames
		}
	}
	if !ct.counted {
		ct.counted = true
		for key, frames := range state {
			c.ports[key].counters.recorded.Add(uint64(len(frames)))
		}
	}
	return state, nil
}

// recorded ends the recording and returns what it has.
func (p *Port) recorded() ([][]byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.channel.open = false
	if p.channel.full {
		return nil, ErrChannelFull
	}
	return p.channel.frames, nil
}

// EndCut closes the cut of an epoch, taken or abandoned. Frames that have waited
// for a point of their receiver on it are delivered. Gates are not touched: Ungate
// them. It does nothing when that cut is not open.
func (f *Fabric) EndCut(cluster string, epoch uint64) {
	c, err := f.clusterNamed(cluster)
	if err != nil {
		return // the cut has ended with its cluster
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cut == nil || c.cut.epoch != epoch {
		return
	}
	c.cut = nil
	c.cutEpoch.Store(0)
	c.closeChannels()
	c.changed.raise()
}

// closeChannels drops what ports have recorded and lets their writers look whether
// frames still have to wait.
//
// Preconditions: mu is held.
func (c *cluster) closeChannels() {
	for _, p := range c.ports {
		p.mu.Lock()
		p.resetChannel(false)
		p.unpark()
		p.early = time.Time{}
		p.settled.Broadcast()
		p.mu.Unlock()
	}
}

// cutLocked returns the open cut of an epoch.
//
// Preconditions: mu is held.
func (c *cluster) cutLocked(epoch uint64) (*cut, error) {
	switch {
	case c.closed:
		return nil, ErrClosed
	case c.cut == nil:
		return nil, errors.New("no cut is open")
	case c.cut.epoch != epoch:
		return nil, fmt.Errorf("the open cut is of epoch %d: %w", c.cut.epoch, ErrStale)
	}
	return c.cut, nil
}

func cutError(what, cluster string, epoch uint64, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s of cluster %s in epoch %d: %w", what, cluster, epoch, err)
}
