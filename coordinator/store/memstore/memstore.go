// Package memstore is a store.Store that lives in memory, for unit tests of
// the coordinator. It keeps the same contract as etcdstore (storetest), and
// adds what tests need: Elect deposes the present leader, Expire ends a node's lease.
package memstore

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"fermata/coordinator/store"
	"fermata/protocol/api"
)

// Config holds what a Store needs.
type Config struct {
	Now func() time.Time // optional: time.Now when nil; measures leases
}

// Store keeps the coordinator's state in memory.
type Store struct {
	now func() time.Time // immutable

	mu         sync.Mutex
	token      uint64                     // guarded by mu; of the present leader
	id         uint64                     // guarded by mu; stands for the identity of an etcd
	clusters   map[string]store.Cluster   // guarded by mu; their Epoch is in epochs
	epochs     map[string]uint64          // guarded by mu
	operations map[string]store.Operation // guarded by mu; by cluster
	aside      []store.Operation          // guarded by mu; by cluster and epoch
	nodes      map[string]node            // guarded by mu
}

type node struct {
	info    *api.NodeInfo
	expires time.Time
}

var _ store.Store = (*Store)(nil)

// New returns an empty store without a leader.
func New(cfg Config) *Store {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Store{
		now:        cfg.Now,
		id:         1,
		clusters:   map[string]store.Cluster{},
		epochs:     map[string]uint64{},
		operations: map[string]store.Operation{},
		nodes:      map[string]node{},
	}
}

// Elect makes a new leader and returns its fence. The fence of the leader
// before is worthless from now on.
func (s *Store) Elect() store.Fence {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.token++
	return s.fence()
}

// Expire ends the lease of a node at once, as if its agent had died long ago.
func (s *Store) Expire(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n, there := s.nodes[name]; there {
		n.expires = time.Time{}
		s.nodes[name] = n
	}
}

// fence is the present leader's.
//
// Preconditions: mu is held.
func (s *Store) fence() store.Fence {
	return store.Fence{Key: fmt.Sprintf("leader/%d", s.token), Token: s.token, Store: s.id}
}

// write runs change under the lock unless the fence is old or ctx has ended.
func (s *Store) write(ctx context.Context, f store.Fence, change func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.token == 0 || f != s.fence() {
		return store.Fenced(f)
	}
	return change()
}

// cluster returns a copy of the record with its epoch.
//
// Preconditions: mu is held.
func (s *Store) cluster(name string) (store.Cluster, error) {
	c, there := s.clusters[name]
	if !there {
		return store.Cluster{}, store.NotFound("cluster", name)
	}
	c = c.Clone()
	c.Epoch = s.epochs[name]
	return c, nil
}

// Clusters implements store.Store.
func (s *Store) Clusters(ctx context.Context) ([]store.Cluster, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []store.Cluster
	for _, name := range slices.Sorted(maps.Keys(s.clusters)) {
		c, err := s.cluster(name)
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, ctx.Err()
}

// Cluster implements store.Store.
func (s *Store) Cluster(ctx context.Context, name string) (store.Cluster, error) {
	if err := ctx.Err(); err != nil {
		return store.Cluster{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cluster(name)
}

// CreateCluster implements store.Store.
func (s *Store) CreateCluster(ctx context.Context, f store.Fence, c store.Cluster) error {
	return s.write(ctx, f, func() error {
		if err := c.Validate(); err != nil {
			return err
		}
		if _, there := s.clusters[c.Name]; there {
			return store.Exists("cluster", c.Name)
		}
		s.clusters[c.Name] = c.Clone()
		return nil
	})
}

// UpdateCluster implements store.Store.
func (s *Store) UpdateCluster(ctx context.Context, f store.Fence, name string, change func(*store.Cluster) error) error {
	return s.write(ctx, f, func() error { return s.changeCluster(name, change) })
}

// changeCluster applies change.
//
// Preconditions: mu is held.
func (s *Store) changeCluster(name string, change func(*store.Cluster) error) error {
	c, err := s.cluster(name)
	if err != nil {
		return err
	}
	next, err := c.Changed(change)
	if err != nil {
		return err
	}
	s.clusters[name] = next.Clone()
	return nil
}

// DeleteCluster implements store.Store.
func (s *Store) DeleteCluster(ctx context.Context, f store.Fence, name string) error {
	return s.write(ctx, f, func() error {
		if running, there := s.operations[name]; there {
			return store.Busy(running)
		}
		delete(s.clusters, name)
		return nil
	})
}

// NextEpoch implements store.Store.
func (s *Store) NextEpoch(ctx context.Context, f store.Fence, cluster string, atLeast uint64) (uint64, error) {
	var next uint64
	err := s.write(ctx, f, func() error {
		if err := store.CheckName("cluster", cluster); err != nil {
			return err
		}
		if err := store.CheckEpoch(cluster, atLeast); err != nil {
			return err
		}
		next = max(s.epochs[cluster]+1, atLeast)
		s.epochs[cluster] = next
		return nil
	})
	return next, err
}

// BeginOperation implements store.Store.
func (s *Store) BeginOperation(ctx context.Context, f store.Fence, op store.Operation, change func(*store.Cluster) error) error {
	return s.write(ctx, f, func() error {
		if err := op.Validate(); err != nil {
			return err
		}
		running, busy := s.operations[op.Cluster]
		if busy && running.ID == op.ID {
			return nil
		}
		if _, err := s.cluster(op.Cluster); err != nil {
			return err
		}
		if busy {
			return store.Busy(running)
		}
		if err := s.changeCluster(op.Cluster, change); err != nil {
			return err
		}
		s.operations[op.Cluster] = op.Clone()
		return nil
	})
}

// AdvanceOperation implements store.Store.
func (s *Store) AdvanceOperation(ctx context.Context, f store.Fence, cluster, id string, phase []byte) error {
	return s.write(ctx, f, func() error {
		if err := store.CheckPhase(id, phase); err != nil {
			return err
		}
		running, there := s.operations[cluster]
		if !there || running.ID != id {
			return store.NotFound("operation", id)
		}
		running.Phase = phase
		s.operations[cluster] = running.Clone()
		return nil
	})
}

// EndOperation implements store.Store.
func (s *Store) EndOperation(ctx context.Context, f store.Fence, cluster, id string, change func(*store.Cluster) error) error {
	return s.write(ctx, f, func() error {
		if running, there := s.operations[cluster]; !there || running.ID != id {
			return nil
		}
		if err := s.changeCluster(cluster, change); err != nil {
			return err
		}
		delete(s.operations, cluster)
		return nil
	})
}

// Operations implements store.Store.
func (s *Store) Operations(ctx context.Context) ([]store.Operation, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []store.Operation
	for _, op := range s.operations {
		all = append(all, op.Clone())
	}
	slices.SortFunc(all, func(a, b store.Operation) int { return cmp.Compare(a.Cluster, b.Cluster) })
	return all, ctx.Err()
}

// SetAside implements store.Store.
func (s *Store) SetAside(ctx context.Context, f store.Fence, cluster, id string, phase []byte) error {
	return s.write(ctx, f, func() error {
		if err := store.CheckPhase(id, phase); err != nil {
			return err
		}
		op, there := s.operations[cluster]
		if !there || op.ID != id {
			return nil
		}
		if err := store.CheckAside(op); err != nil {
			return err
		}
		op.Phase = phase
		delete(s.operations, cluster)
		s.aside = append(s.aside, op.Clone())
		slices.SortFunc(s.aside, store.CompareAside)
		return nil
	})
}

// Unsettled implements store.Store.
func (s *Store) Unsettled(ctx context.Context) ([]store.Operation, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []store.Operation
	for _, op := range s.aside {
		all = append(all, op.Clone())
	}
	return all, ctx.Err()
}

// Settle implements store.Store.
func (s *Store) Settle(ctx context.Context, f store.Fence, cluster string, epoch uint64) error {
	return s.write(ctx, f, func() error {
		s.aside = slices.DeleteFunc(s.aside, func(op store.Operation) bool { return op.Cluster == cluster && op.Epoch == epoch })
		return nil
	})
}

// PutNode implements store.Store.
func (s *Store) PutNode(ctx context.Context, f store.Fence, info *api.NodeInfo, ttl time.Duration) error {
	return s.write(ctx, f, func() error {
		if err := store.CheckNode(info, ttl); err != nil {
			return err
		}
		now := s.now()
		kept := proto.CloneOf(info)
		kept.LastSeenUnixNs = now.UnixNano()
		s.nodes[info.GetName()] = node{info: kept, expires: now.Add(ttl)}
		return nil
	})
}

// Nodes implements store.Store.
func (s *Store) Nodes(ctx context.Context) ([]*api.NodeInfo, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*api.NodeInfo
	for _, name := range slices.Sorted(maps.Keys(s.nodes)) {
		n := s.nodes[name]
		info := proto.CloneOf(n.info)
		info.Alive = s.now().Before(n.expires)
		all = append(all, info)
	}
	return all, ctx.Err()
}

// ForgetNode implements store.Store.
func (s *Store) ForgetNode(ctx context.Context, f store.Fence, name string) error {
	return s.write(ctx, f, func() error {
		delete(s.nodes, name)
		return nil
	})
}

// Maintain implements store.Store: there is nothing to do.
func (s *Store) Maintain(ctx context.Context, f store.Fence) error {
	return s.write(ctx, f, func() error { return nil })
}

// Renew implements store.Store.
func (s *Store) Renew(ctx context.Context, f store.Fence) error {
	return s.write(ctx, f, func() error {
		s.id++
		return nil
	})
}
