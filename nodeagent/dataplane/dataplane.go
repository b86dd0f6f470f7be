// Package dataplane keeps a node's fabric apart from its agent. The agent may be killed,
// upgraded or started anew at any moment, and the frames of its guests go on meanwhile.
package dataplane

import (
	"context"
	"time"

	"fermata/nodeagent/fabric"
)

// Plane is a node's fabric as its agent uses it. Every method but Belongs is described
// at *fabric.Fabric.
//
// Calls name guests and NICs instead of holding objects, so that they mean the same to a
// fabric that another agent has used before, or that took the place of one that was lost.
type Plane interface {
	// Incarnation names this life of the fabric. A new one knows nothing of the last.
	Incarnation() string
	Lives() (map[string]uint64, error)

	ContinueCluster(name string, floor, epoch uint64) error
	RemoveCluster(name string) error
	SetPeers(cluster string, peers []fabric.Peer) error
	ClusterStats(cluster string) (fabric.ClusterStats, error)

	Join(cfg fabric.PortConfig) error
	Leave(cluster, guest string) error
	// Belongs names the process of a guest. A fabric without an agent lives as long as
	// one of these does.
	Belongs(cluster, guest string, pid int) error
	Inject(cluster string, nic fabric.PortKey, frames [][]byte) error
	AttachUplink(cfg fabric.UplinkConfig) error
	Durable(cluster string, epoch uint64)

	BeginCut(cluster string, epoch uint64, members []string, patience time.Duration) error
	Gate(cluster, guest string, limit time.Duration) (early time.Duration, err error)
	Drain(ctx context.Context, cluster, guest string, budget time.Duration) (undrained int, err error)
	PassCut(ctx context.Context, cluster string, epoch uint64, guest string) error
	Ungate(cluster, guest string) error
	SendMarkers(cluster string, epoch uint64) error
	WaitMarkers(ctx context.Context, cluster string, epoch uint64) error
	ChannelState(cluster string, epoch uint64) (map[fabric.PortKey][][]byte, error)
	EndCut(cluster string, epoch uint64)

	Trace(ctx context.Context, cluster, network string, tell func(events []fabric.Traced, lost uint64) error) error
}
