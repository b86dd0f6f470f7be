// Package store is what the coordinator must not forget: its clusters, the
// operation that runs on each, the epochs already used and the nodes that
// registered. Implementations are etcdstore, which is real, and memstore, for
// unit tests of the coordinator; storetest holds the contract both keep.
//
// Invariants:
//
//  1. A write with the fence of a deposed leader changes nothing. It fails
//     with ErrFenced, unless it is one that nobody could make (ErrInvalid).
//  2. A cluster has at most one operation at a time.
//  3. The epoch of a cluster name only grows, also when the cluster is deleted
//     and created anew: its checkpoints may still be there.
//  4. Each write happens whole or not at all.
package store

import (
	"context"
	"errors"
	"time"

	"fermata/protocol/api"
)

// The reasons a call is refused. They come wrapped with the object they are
// about, and carry the class of package fault beside them.
var (
	ErrFenced   = errors.New("another coordinator leads")  // class stale
	ErrBusy     = errors.New("an operation is running")    // class busy
	ErrNotFound = errors.New("not found")                  // class not-found
	ErrExists   = errors.New("exists already")             // class exists
	ErrInvalid  = errors.New("not storable")               // class invalid
	ErrCorrupt  = errors.New("stored record is damaged")   // class corrupt
	ErrConflict = errors.New("record keeps being changed") // class busy
)

// Fence is the right to write: the proof of a leader that was elected.
type Fence struct {
	Key   string // the leader's key in the election
	Token uint64 // revision at which that key was created; grows from leader to leader
	Store uint64 // identity of the store that elected it
}

// API is the fence as it travels to the nodes.
func (f Fence) API() *api.Fence { return &api.Fence{Token: f.Token, Store: f.Store} }

// Cluster is what the coordinator knows of one cluster.
type Cluster struct {
	Name        string
	Spec        []byte // canonical YAML; set by CreateCluster and never changed
	Created     time.Time
	State       api.ClusterState
	Reason      string            // of a broken state
	Incarnation uint64            // counts starts and restarts
	Assignments map[string]string // guest to node
	// Life is the epoch in which the present life of the guests began: guests of an older
	// one are leftovers. 0: nobody has started the cluster.
	Life  uint64
	Epoch uint64 // last used; changed by NextEpoch alone
}

// Kind is what an operation does.
type Kind string

// The kinds of operations.
const (
	Start      Kind = "start"
	Stop       Kind = "stop"
	Restart    Kind = "restart"
	Checkpoint Kind = "checkpoint"
)

// Operation is the record of work that a new leader must finish or undo.
type Operation struct {
	// ID is chosen by the caller and unique. Calls that repeat a lost one are
	// recognised by it.
	ID      string
	Kind    Kind
	Cluster string
	Epoch   uint64 // of the round or the start; zero when it has none
	Phase   []byte // how far it has come, in the caller's own form
	Started time.Time
}

// Store keeps the coordinator's state.
//
// A change function is given the record as it stands, changes what may be
// changed and returns; the store writes the result in the same transaction as
// the rest of the call. It may be called more than once, and its error ends
// the call, unwrapped, with nothing written.
//
// On error: a write whose outcome is not known has class unknown-outcome, one
// that was not made has another. Every write may be repeated.
//
// Concurrency: safe for use by several goroutines.
type Store interface {
	// Clusters returns every cluster, by name.
	Clusters(ctx context.Context) ([]Cluster, error)
	Cluster(ctx context.Context, name string) (Cluster, error)
	// CreateCluster adds c. Its Epoch is not stored: the name may have one.
	CreateCluster(ctx context.Context, f Fence, c Cluster) error
	UpdateCluster(ctx context.Context, f Fence, name string, change func(*Cluster) error) error
	// DeleteCluster forgets the cluster but not its epoch. ErrBusy while an
	// operation runs; nil when there is no such cluster.
	DeleteCluster(ctx context.Context, f Fence, name string) error

	// NextEpoch returns a number that was never returned for this cluster name,
	// greater than every number that was and not less than atLeast.
	NextEpoch(ctx context.Context, f Fence, cluster string, atLeast uint64) (uint64, error)

	// BeginOperation claims op.Cluster for op, and changes the cluster's record
	// at the same time (change may be nil). When another operation has the
	// cluster the error is ErrBusy and names it.
	BeginOperation(ctx context.Context, f Fence, op Operation, change func(*Cluster) error) error
	// AdvanceOperation records how far the operation has come. ErrNotFound when
	// it is not the one that runs.
	AdvanceOperation(ctx context.Context, f Fence, cluster, id string, phase []byte) error
	// EndOperation forgets the operation, and changes the cluster's record at
	// the same time (change may be nil). An operation that no longer runs has
	// been ended before: that is not an error, and change is not called.
	EndOperation(ctx context.Context, f Fence, cluster, id string, change func(*Cluster) error) error
	// Operations returns what runs, by name of the cluster.
	Operations(ctx context.Context) ([]Operation, error)

	// SetAside ends an operation that has an epoch, and keeps it, with this
	// phase, among those that are unsettled: the cluster is free, and something
	// that has time is left to do. Like EndOperation, it does nothing for an
	// operation that no longer runs.
	SetAside(ctx context.Context, f Fence, cluster, id string, phase []byte) error
	// Unsettled returns what was set aside, by name of the cluster and epoch. It
	// outlives the cluster's record.
	Unsettled(ctx context.Context) ([]Operation, error)
	// Settle forgets an operation that was set aside; nil when there is none.
	Settle(ctx context.Context, f Fence, cluster string, epoch uint64) error

	// PutNode keeps what a node said of itself, and takes it for alive until
	// ttl has passed without another PutNode. LastSeenUnixNs and Alive of info
	// are set by the store. A call without news must not make the store grow.
	PutNode(ctx context.Context, f Fence, info *api.NodeInfo, ttl time.Duration) error
	// Nodes returns every node that ever registered, by name.
	Nodes(ctx context.Context) ([]*api.NodeInfo, error)
	// ForgetNode removes a node until it registers again.
	ForgetNode(ctx context.Context, f Fence, name string) error

	// Maintain keeps the store small and what it says of lost nodes true. The
	// leader calls it every MaintainEvery.
	Maintain(ctx context.Context, f Fence) error
	// Renew gives the store another identity and ends the leadership of f. A
	// leader calls it when it has learnt that the store was put back to an
	// earlier state: fences given since would look newer than all that follow.
	Renew(ctx context.Context, f Fence) error
}

// MaintainEvery is how often the leader maintains its store.
const MaintainEvery = time.Minute
