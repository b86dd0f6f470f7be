package fabric

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
)

// Outside says what becomes of what guests send out of their cluster. What comes in is
// delivered under all of them.
type Outside int

const (
	// OutsideDrop lets nothing out.
	OutsideDrop Outside = iota
	// OutsideAllow lets everything out at once.
	OutsideAllow
	// OutsideHold lets a frame out when a checkpoint is durable that the sender passed
	// later than it sent the frame. Nobody outside ever sees what a restart from the
	// newest checkpoint undoes: the output commit of Strom and Yemini, Optimistic
	// Recovery in Distributed Systems, ACM TOCS 3(3), 1985.
	OutsideHold
)

// UplinkConfig says where a network is joined to the world.
type UplinkConfig struct {
	Cluster string // must have been created
	Network string
	Outside Outside

	// Device takes and gives one Ethernet frame with each call, as a TAP device does.
	// A write must not wait. AttachUplink owns it from the moment it is called.
	Device io.ReadWriteCloser
}

// UplinkStats counts the frames of one uplink since it was attached.
type UplinkStats struct {
	Network  string
	Received uint64 // from outside
	Sent     uint64 // to the outside
	Held     uint64 // had to wait for a checkpoint
	Waiting  uint64 // wait now
	Spoofed  uint64 // from outside, with the address of a guest's NIC; delivered, not learnt

	Dropped UplinkDrops
}

// UplinkDrops counts the frames of one uplink that were thrown away, by reason.
type UplinkDrops struct {
	Policy uint64 // to the outside, which is closed
	Full   uint64 // to the outside, with HoldBytes waiting for a checkpoint
	Device uint64 // to the outside, refused by the device
	Size   uint64 // from outside, too short or too long
	Closed uint64 // waited for a checkpoint when the uplink ended
}

// Total is the sum over all reasons.
func (d UplinkDrops) Total() uint64 { return d.Policy + d.Full + d.Device + d.Size + d.Closed }

// uplink joins a network to a device of this node.
type uplink struct {
	network *network           // immutable
	outside Outside            // immutable
	device  io.ReadWriteCloser // immutable
	done    chan struct{}      // closed when it ends
	reader  sync.WaitGroup
	spoofed atomic.Uint64

	mu      sync.Mutex  // also orders writes to device, which do not wait
	closed  bool        // guarded by mu
	durable uint64      // guarded by mu; epoch of the newest durable checkpoint known
	queue   fifo[frame] // guarded by mu; for the outside, oldest first
	bytes   int         // guarded by mu; cost of queue
	stats   UplinkStats // guarded by mu
}

// AttachUplink joins a network of a cluster to the world outside. A network has one
// uplink in all: two would be a loop.
//
// On error the device is closed.
func (f *Fabric) AttachUplink(cfg UplinkConfig) error {
	if err := f.attachUplink(cfg); err != nil {
		return fmt.Errorf("attach uplink of network %s of cluster %s: %w", cfg.Network, cfg.Cluster, errors.Join(err, cfg.Device.Close()))
	}
	return nil
}

func (f *Fabric) attachUplink(cfg UplinkConfig) error {
	if err := checkName("network", cfg.Network); err != nil {
		return err
	}
	if cfg.Outside < OutsideDrop || cfg.Outside > OutsideHold {
		return fmt.Errorf("unknown policy %d", cfg.Outside)
	}
	c, err := f.clusterNamed(cfg.Cluster)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return ErrClosed
	}
	n, err := c.networkLocked(cfg.Network)
	if err != nil {
		return err
	}
	u := &uplink{network: n, outside: cfg.Outside, device: cfg.Device, done: make(chan struct{}), stats: UplinkStats{Network: cfg.Network}}
	if !n.setUplink(u) {
		return fmt.Errorf("uplink: %w", ErrExists)
	}
	u.reader.Go(u.read)
	return nil
}

// Durable tells that a checkpoint of a cluster is durable: a restart goes back to it or
// to a newer one. An unknown cluster has nobody to tell.
func (f *Fabric) Durable(cluster string, epoch uint64) {
	c, err := f.clusterNamed(cluster)
	if err != nil {
		return
	}
	for _, u := range c.uplinks() {
		u.release(epoch)
	}
}

// uplinks returns the cluster's uplinks on this node.
func (c *cluster) uplinks() []*uplink {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []*uplink
	for _, n := range c.networks {
		if u := n.theUplink(); u != nil {
			all = append(all, u)
		}
	}
	return all
}

// send takes a frame of a guest for the outside. It does not wait: the world outside
// loses frames by itself, and a guest must not stand still until a checkpoint comes.
func (u *uplink) send(fr frame) {
	u.mu.Lock()
	defer u.mu.Unlock()
	switch {
	case u.closed:
		u.stats.Dropped.Closed++
	case u.outside == OutsideDrop:
		u.stats.Dropped.Policy++
	case u.outside == OutsideAllow || fr.epoch < u.durable:
		// What its sender has sent before is out: it is no newer.
		u.put(fr)
	case u.bytes+fr.cost() > u.network.cluster.fabric.cfg.HoldBytes, u.network.cluster.fabric.tight():
		u.stats.Dropped.Full++
	default:
		u.stats.Held++
		u.bytes += fr.cost()
		u.network.cluster.fabric.charge(fr.cost())
		u.queue.pushBack(fr)
	}
}

// put hands a frame to the device.
//
// Preconditions: mu is held.
func (u *uplink) put(fr frame) {
	if _, err := u.device.Write(fr.data); err != nil {
		u.stats.Dropped.Device++
		return
	}
	u.stats.Sent++
}

// release lets out what was sent before the cut of a durable checkpoint. Of each
// sender that is the front of what waits, so its frames stay in order.
func (u *uplink) release(epoch uint64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed || epoch <= u.durable {
		return
	}
	u.durable = epoch
	var left fifo[frame]
	before := u.bytes
	u.bytes = 0
	for i := range u.queue.len() {
		if fr := *u.queue.at(i); fr.epoch < epoch {
			u.put(fr)
		} else {
			left.pushBack(fr)
			u.bytes += fr.cost()
		}
	}
	u.queue = left
	u.network.cluster.fabric.charge(u.bytes - before)
}

// read switches what comes from outside until the uplink ends.
func (u *uplink) read() {
	buf := make([]byte, MaxFrame+1)
	for {
		n, err := u.device.Read(buf)
		if err != nil {
			select {
			case <-u.done:
			default:
				u.network.cluster.fabric.log.Error("uplink is dead", "cluster", u.network.cluster.name, "network", u.network.name, "error", err)
			}
			return
		}
		fits := n >= MinFrame && n <= MaxFrame
		u.mu.Lock()
		u.stats.Received++
		if !fits {
			u.stats.Dropped.Size++
		}
		u.mu.Unlock()
		if fits {
			u.network.switchFromUplink(u, bytes.Clone(buf[:n]))
		}
	}
}

func (u *uplink) snapshot() UplinkStats {
	u.mu.Lock()
	defer u.mu.Unlock()
	s := u.stats
	s.Waiting, s.Spoofed = uint64(u.queue.len()), u.spoofed.Load()
	return s
}

// close ends the uplink with what waits in it: a life that ends takes its frames along.
func (u *uplink) close() error {
	u.mu.Lock()
	u.closed = true
	u.stats.Dropped.Closed += uint64(u.queue.len())
	u.network.cluster.fabric.charge(-u.bytes)
	u.queue, u.bytes = fifo[frame]{}, 0
	u.mu.Unlock()
	close(u.done)
	err := u.device.Close()
	u.reader.Wait()
	return err
}
