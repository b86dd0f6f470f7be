package etcdstore

import (
	"context"
	"fmt"
	"strconv"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"fermata/coordinator/store"
)

// Clusters implements store.Store.
func (s *Store) Clusters(ctx context.Context) ([]store.Cluster, error) {
	resp, err := s.transact(ctx, nil,
		clientv3.OpGet(s.keys.clusters(), clientv3.WithPrefix()),
		clientv3.OpGet(s.keys.specs(), clientv3.WithPrefix()),
		clientv3.OpGet(s.keys.epochs(), clientv3.WithPrefix()))
	if err != nil {
		return nil, s.readError(err, "list clusters")
	}
	specs := byName(s.keys.specs(), resp.Responses[1].GetResponseRange().GetKvs())
	epochs := byName(s.keys.epochs(), resp.Responses[2].GetResponseRange().GetKvs())
	var all []store.Cluster
	for _, kv := range resp.Responses[0].GetResponseRange().GetKvs() {
		name := nameIn(s.keys.clusters(), kv.Key)
		c, err := decodeCluster(name, kv, specs[name], epochs[name])
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, nil
}

func byName(prefix string, kvs []*mvccpb.KeyValue) map[string]*mvccpb.KeyValue {
	m := make(map[string]*mvccpb.KeyValue, len(kvs))
	for _, kv := range kvs {
		m[nameIn(prefix, kv.Key)] = kv
	}
	return m
}

// Cluster implements store.Store.
func (s *Store) Cluster(ctx context.Context, name string) (store.Cluster, error) {
	resp, err := s.transact(ctx, nil,
		clientv3.OpGet(s.keys.cluster(name)), clientv3.OpGet(s.keys.spec(name)), clientv3.OpGet(s.keys.epoch(name)))
	if err != nil {
		return store.Cluster{}, s.readError(err, "read cluster "+name)
	}
	found := make(records, len(resp.Responses))
	for _, r := range resp.Responses {
		for _, kv := range r.GetResponseRange().GetKvs() {
			found[string(kv.Key)] = kv
		}
	}
	return s.clusterIn(found, name)
}

// clusterIn finds a cluster among records that were read.
func (s *Store) clusterIn(found records, name string) (store.Cluster, error) {
	kv := found[s.keys.cluster(name)]
	if kv == nil {
		return store.Cluster{}, store.NotFound("cluster", name)
	}
	return decodeCluster(name, kv, found[s.keys.spec(name)], found[s.keys.epoch(name)])
}

// CreateCluster implements store.Store.
func (s *Store) CreateCluster(ctx context.Context, f store.Fence, c store.Cluster) error {
	if err := c.Validate(); err != nil {
		return err
	}
	value, err := encodeCluster(c)
	if err != nil {
		return err
	}
	key := s.keys.cluster(c.Name)
	return s.update(ctx, f, "create cluster "+c.Name, []string{key}, func(found records) ([]clientv3.Op, error) {
		if found[key] != nil {
			return nil, store.Exists("cluster", c.Name)
		}
		return []clientv3.Op{clientv3.OpPut(key, value), clientv3.OpPut(s.keys.spec(c.Name), string(c.Spec))}, nil
	})
}

// UpdateCluster implements store.Store.
func (s *Store) UpdateCluster(ctx context.Context, f store.Fence, name string, change func(*store.Cluster) error) error {
	return s.update(ctx, f, "change cluster "+name, s.clusterKeys(name), func(found records) ([]clientv3.Op, error) {
		return s.changed(found, name, change)
	})
}

// clusterKeys are the keys of one cluster's records.
func (s *Store) clusterKeys(name string) []string {
	return []string{s.keys.cluster(name), s.keys.spec(name), s.keys.epoch(name)}
}

// changed computes the write of a changed cluster.
func (s *Store) changed(found records, name string, change func(*store.Cluster) error) ([]clientv3.Op, error) {
	c, err := s.clusterIn(found, name)
	if err != nil {
		return nil, err
	}
	next, err := c.Changed(change)
	if err != nil {
		return nil, err
	}
	value, err := encodeCluster(next)
	if err != nil {
		return nil, err
	}
	return []clientv3.Op{clientv3.OpPut(s.keys.cluster(name), value)}, nil
}

// DeleteCluster implements store.Store.
func (s *Store) DeleteCluster(ctx context.Context, f store.Fence, name string) error {
	key, opKey := s.keys.cluster(name), s.keys.operation(name)
	return s.update(ctx, f, "delete cluster "+name, []string{key, opKey}, func(found records) ([]clientv3.Op, error) {
		if kv := found[opKey]; kv != nil {
			running, err := decodeOperation(name, kv)
			if err != nil {
				return nil, err
			}
			return nil, store.Busy(running)
		}
		if found[key] == nil {
			return nil, nil
		}
		return []clientv3.Op{clientv3.OpDelete(key), clientv3.OpDelete(s.keys.spec(name))}, nil
	})
}

// NextEpoch implements store.Store.
func (s *Store) NextEpoch(ctx context.Context, f store.Fence, cluster string, atLeast uint64) (uint64, error) {
	if err := store.CheckName("cluster", cluster); err != nil {
		return 0, err
	}
	if err := store.CheckEpoch(cluster, atLeast); err != nil {
		return 0, err
	}
	var next uint64
	key := s.keys.epoch(cluster)
	err := s.update(ctx, f, fmt.Sprintf("allocate epoch of cluster %s", cluster), []string{key}, func(found records) ([]clientv3.Op, error) {
		last, err := decodeEpoch(found[key])
		if err != nil {
			return nil, err
		}
		next = max(last+1, atLeast)
		return []clientv3.Op{clientv3.OpPut(key, strconv.FormatUint(next, 10))}, nil
	})
	if err != nil {
		return 0, err
	}
	return next, nil
}
