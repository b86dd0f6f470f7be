package dataplane

import (
	"context"
	"fmt"
	"os"
	"time"

	"fermata/nodeagent/fabric"
)

// Lives implements Plane.
func (c *Client) Lives() (map[string]uint64, error) {
	answer, _, err := c.call(context.Background(), request{Op: opLives}, nil)
	return answer.Lives, err
}

// ContinueCluster implements Plane.
func (c *Client) ContinueCluster(name string, floor, epoch uint64) error {
	return c.do(request{Op: opContinue, Cluster: name, Floor: floor, Epoch: epoch})
}

// RemoveCluster implements Plane.
func (c *Client) RemoveCluster(name string) error { return c.do(request{Op: opRemove, Cluster: name}) }

// SetPeers implements Plane.
func (c *Client) SetPeers(cluster string, peers []fabric.Peer) error {
	return c.do(request{Op: opPeers, Cluster: cluster, Peers: peers})
}

// ClusterStats implements Plane.
func (c *Client) ClusterStats(cluster string) (fabric.ClusterStats, error) {
	ctx, cancel := context.WithTimeout(context.Background(), statsBudget)
	defer cancel()
	answer, _, err := c.call(ctx, request{Op: opStats, Cluster: cluster}, nil)
	if err != nil || answer.Stats == nil {
		return fabric.ClusterStats{}, err
	}
	return *answer.Stats, nil
}

// Join implements Plane.
func (c *Client) Join(cfg fabric.PortConfig) error {
	if cfg.FabricEnd == nil || cfg.GuestEnd == nil {
		return fmt.Errorf("join nic %s/%s of cluster %s: an end of the socket pair is missing", cfg.Guest, cfg.NIC, cfg.Cluster)
	}
	// The process has descriptors of its own by now, or wants none.
	defer cfg.FabricEnd.Close()
	defer cfg.GuestEnd.Close()
	_, _, err := c.call(context.Background(), request{
		Op: opJoin, Cluster: cfg.Cluster, Network: cfg.Network, Guest: cfg.Guest, NIC: cfg.NIC, MAC: cfg.MAC, Gated: cfg.Gated,
	}, nil, cfg.FabricEnd, cfg.GuestEnd)
	return err
}

// Leave implements Plane.
func (c *Client) Leave(cluster, guest string) error {
	return c.do(request{Op: opLeave, Cluster: cluster, Guest: guest})
}

// Belongs implements Plane.
func (c *Client) Belongs(cluster, guest string, pid int) error {
	return c.do(request{Op: opBelongs, Cluster: cluster, Guest: guest, PID: pid})
}

// Inject implements Plane.
func (c *Client) Inject(cluster string, nic fabric.PortKey, frames [][]byte) error {
	_, _, err := c.call(context.Background(), request{Op: opInject, Cluster: cluster, Guest: nic.Guest, NIC: nic.NIC}, fabric.EncodeFrames(frames))
	return err
}

// AttachUplink implements Plane.
func (c *Client) AttachUplink(cfg fabric.UplinkConfig) error {
	defer cfg.Device.Close()
	device, ok := cfg.Device.(*os.File)
	if !ok {
		return fmt.Errorf("attach uplink of network %s of cluster %s: its device is no file", cfg.Network, cfg.Cluster)
	}
	_, _, err := c.call(context.Background(), request{Op: opUplink, Cluster: cfg.Cluster, Network: cfg.Network, Outside: cfg.Outside}, nil, device)
	return err
}

// Durable implements Plane. What waits for a checkpoint goes on waiting when the
// process cannot be told: for the next one.
func (c *Client) Durable(cluster string, epoch uint64) {
	if err := c.do(request{Op: opDurable, Cluster: cluster, Epoch: epoch}); err != nil {
		c.cfg.Logger.Warn("frames to the outside wait for the next checkpoint", "cluster", cluster, "epoch", epoch, "error", err)
	}
}

// BeginCut implements Plane.
func (c *Client) BeginCut(cluster string, epoch uint64, members []string, patience time.Duration) error {
	return c.do(request{Op: opBeginCut, Cluster: cluster, Epoch: epoch, Members: members, For: patience})
}

// Gate implements Plane.
func (c *Client) Gate(cluster, guest string, limit time.Duration) (early time.Duration, err error) {
	answer, _, err := c.call(context.Background(), request{Op: opGate, Cluster: cluster, Guest: guest, For: limit}, nil)
	return answer.Early, err
}

// Drain implements Plane.
func (c *Client) Drain(ctx context.Context, cluster, guest string, budget time.Duration) (undrained int, err error) {
	answer, _, err := c.call(ctx, request{Op: opDrain, Cluster: cluster, Guest: guest, For: budget}, nil)
	return answer.Count, err
}

// PassCut implements Plane.
func (c *Client) PassCut(ctx context.Context, cluster string, epoch uint64, guest string) error {
	_, _, err := c.call(ctx, request{Op: opPassCut, Cluster: cluster, Epoch: epoch, Guest: guest}, nil)
	return err
}

// Ungate implements Plane.
func (c *Client) Ungate(cluster, guest string) error {
	return c.do(request{Op: opUngate, Cluster: cluster, Guest: guest})
}

// SendMarkers implements Plane.
func (c *Client) SendMarkers(cluster string, epoch uint64) error {
	return c.do(request{Op: opSendMarkers, Cluster: cluster, Epoch: epoch})
}

// WaitMarkers implements Plane.
func (c *Client) WaitMarkers(ctx context.Context, cluster string, epoch uint64) error {
	_, _, err := c.call(ctx, request{Op: opWaitMarkers, Cluster: cluster, Epoch: epoch}, nil)
	return err
}

// ChannelState implements Plane.
func (c *Client) ChannelState(cluster string, epoch uint64) (map[fabric.PortKey][][]byte, error) {
	answer, frames, err := c.call(context.Background(), request{Op: opChannelState, Cluster: cluster, Epoch: epoch}, nil)
	if err != nil {
		return nil, err
	}
	state := map[fabric.PortKey][][]byte{}
	for _, card := range answer.Cards {
		if card.Bytes < 0 || card.Bytes > len(frames) {
			return nil, fmt.Errorf("channel state of nic %s: %d of %d bytes: %w", card.PortKey, card.Bytes, len(frames), fabric.ErrMalformed)
		}
		if state[card.PortKey], err = fabric.DecodeFrames(frames[:card.Bytes]); err != nil {
			return nil, fmt.Errorf("channel state of nic %s: %w", card.PortKey, err)
		}
		frames = frames[card.Bytes:]
	}
	return state, nil
}

// EndCut implements Plane.
func (c *Client) EndCut(cluster string, epoch uint64) {
	if err := c.do(request{Op: opEndCut, Cluster: cluster, Epoch: epoch}); err != nil {
		c.cfg.Logger.Warn("data plane cannot be told that a cut has ended", "cluster", cluster, "epoch", epoch, "error", err)
	}
}

// Trace implements Plane.
func (c *Client) Trace(ctx context.Context, cluster, network string, tell func(events []fabric.Traced, lost uint64) error) error {
	a := c.agency()
	if a == nil {
		return errGone()
	}
	conn, err := a.take(ctx)
	if err != nil {
		return err
	}
	defer conn.close() // that is how the process hears of the end
	release := context.AfterFunc(ctx, conn.close)
	defer release()
	answer, frames, err := exchange(ctx, conn, request{Op: opTrace, Cluster: cluster, Network: network}, nil)
	for err == nil && answer.More {
		var events []fabric.Traced
		if events, err = answer.traced(frames); err == nil {
			err = tell(events, answer.Lost)
		}
		if err != nil {
			return err
		}
		answer = reply{}
		frames, err = conn.read(&answer)
	}
	switch {
	case ctx.Err() != nil:
		return nil
	case err != nil:
		return fmt.Errorf("trace network %s of cluster %s: %w", network, cluster, errGone())
	case answer.Error != nil:
		return answer.Error
	}
	return nil
}

// traced puts events and their frames together again.
func (r reply) traced(frames []byte) ([]fabric.Traced, error) {
	events := make([]fabric.Traced, len(r.Events))
	for i, e := range r.Events {
		if e.Bytes < 0 || e.Bytes > len(frames) {
			return nil, fmt.Errorf("traced frame of %d bytes, %d are left: %w", e.Bytes, len(frames), fabric.ErrMalformed)
		}
		events[i] = e.Traced
		if !e.Point {
			events[i].Data = frames[:e.Bytes:e.Bytes]
		}
		frames = frames[e.Bytes:]
	}
	return events, nil
}
