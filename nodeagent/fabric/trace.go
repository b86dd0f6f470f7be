package fabric

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync/atomic"
	"time"
)

// Traced is what a trace tells: a frame that a guest of this node has sent, or the
// point of a guest on a cut.
type Traced struct {
	At    time.Time
	NIC   PortKey // of the sender
	MAC   net.HardwareAddr
	Epoch uint64 // colour of the frame; of a point, the epoch that begins
	Point bool
	Data  []byte // the frame, shared with the queues: not to be changed; nil of a point
}

// traceRoom is how many events wait for whoever traces; more are lost to the trace,
// never to guests.
const traceRoom = 1 << 14

// traceBatch and traceBytes bound what is told at once, the latter but for a frame.
const (
	traceBatch = 256
	traceBytes = 1 << 20
)

// trace is one observer of a network.
type trace struct {
	events chan Traced
	lost   atomic.Uint64
}

// Trace tells what guests of this node send into a network, and their points on cuts,
// in order, until ctx ends or tell fails. lost counts what came faster than it was told,
// so far. Traced on all nodes, a network's frames are each told once.
//
// The end of ctx is no error. On error ErrUnknownNetwork: no guest of this node has a
// NIC there. On error ErrClosed: the cluster has ended.
func (f *Fabric) Trace(ctx context.Context, cluster, network string, tell func(events []Traced, lost uint64) error) error {
	c, err := f.clusterNamed(cluster)
	if err == nil {
		err = c.traceNetwork(ctx, network, tell)
	}
	if err != nil {
		return fmt.Errorf("trace network %s of cluster %s: %w", network, cluster, err)
	}
	return nil
}

func (c *cluster) traceNetwork(ctx context.Context, name string, tell func([]Traced, uint64) error) error {
	c.mu.Lock()
	n := c.networks[name]
	c.mu.Unlock()
	if n == nil {
		return ErrUnknownNetwork
	}
	t := &trace{events: make(chan Traced, traceRoom)}
	n.addTrace(t)
	defer n.dropTrace(t)
	batch := make([]Traced, 0, traceBatch)
	for {
		select {
		case e := <-t.events:
			batch = append(batch[:0], e)
		case <-ctx.Done():
			return nil
		case <-c.done:
			return ErrClosed
		}
		size := len(batch[0].Data)
		for more := true; more && len(batch) < traceBatch && size < traceBytes; {
			select {
			case e := <-t.events:
				batch = append(batch, e)
				size += len(e.Data)
			default:
				more = false
			}
		}
		if err := tell(batch, t.lost.Load()); err != nil {
			return err
		}
	}
}

// addTrace begins to tell t; dropTrace ends it. The list is replaced, never changed in
// place, so that a frame is told without a lock.
func (n *network) addTrace(t *trace) {
	n.mu.Lock()
	defer n.mu.Unlock()
	all := append(slices.Clone(*n.traces.Load()), t)
	n.traces.Store(&all)
}

func (n *network) dropTrace(t *trace) {
	n.mu.Lock()
	defer n.mu.Unlock()
	all := slices.DeleteFunc(slices.Clone(*n.traces.Load()), func(o *trace) bool { return o == t })
	n.traces.Store(&all)
}

// tell tells all traces of what happened at p; data is nil for its guest's point.
func (n *network) tell(p *Port, epoch uint64, data []byte) {
	all := *n.traces.Load()
	if len(all) == 0 {
		return
	}
	e := Traced{At: time.Now(), NIC: p.key, MAC: p.mac[:], Epoch: epoch, Point: data == nil, Data: data}
	for _, t := range all {
		select {
		case t.events <- e:
		default:
			t.lost.Add(1)
		}
	}
}
