package etcdstore

import (
	"context"
	"fmt"
	"slices"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"

	"fermata/coordinator/store"
)

// runningIn finds the operation on a cluster among records that were read.
func (s *Store) runningIn(found records, cluster string) (op store.Operation, runs bool, err error) {
	kv := found[s.keys.operation(cluster)]
	if kv == nil {
		return store.Operation{}, false, nil
	}
	op, err = decodeOperation(cluster, kv)
	return op, err == nil, err
}

// BeginOperation implements store.Store.
func (s *Store) BeginOperation(ctx context.Context, f store.Fence, op store.Operation, change func(*store.Cluster) error) error {
	if err := op.Validate(); err != nil {
		return err
	}
	value, err := encodeOperation(op)
	if err != nil {
		return err
	}
	key := s.keys.operation(op.Cluster)
	what := fmt.Sprintf("begin %s of cluster %s", op.Kind, op.Cluster)
	return s.update(ctx, f, what, append(s.clusterKeys(op.Cluster), key), func(found records) ([]clientv3.Op, error) {
		running, busy, err := s.runningIn(found, op.Cluster)
		if err != nil || busy && running.ID == op.ID {
			return nil, err
		}
		if _, err := s.clusterIn(found, op.Cluster); err != nil {
			return nil, err
		}
		if busy {
			return nil, store.Busy(running)
		}
		ops, err := s.changed(found, op.Cluster, change)
		if err != nil {
			return nil, err
		}
		return append(ops, clientv3.OpPut(key, value)), nil
	})
}

// AdvanceOperation implements store.Store.
func (s *Store) AdvanceOperation(ctx context.Context, f store.Fence, cluster, id string, phase []byte) error {
	if err := store.CheckPhase(id, phase); err != nil {
		return err
	}
	key := s.keys.operation(cluster)
	return s.update(ctx, f, "advance operation "+id, []string{key}, func(found records) ([]clientv3.Op, error) {
		running, runs, err := s.runningIn(found, cluster)
		if err != nil {
			return nil, err
		}
		if !runs || running.ID != id {
			return nil, store.NotFound("operation", id)
		}
		running.Phase = phase
		value, err := encodeOperation(running)
		if err != nil {
			return nil, err
		}
		return []clientv3.Op{clientv3.OpPut(key, value)}, nil
	})
}

// EndOperation implements store.Store.
func (s *Store) EndOperation(ctx context.Context, f store.Fence, cluster, id string, change func(*store.Cluster) error) error {
	key := s.keys.operation(cluster)
	return s.update(ctx, f, "end operation "+id, append(s.clusterKeys(cluster), key), func(found records) ([]clientv3.Op, error) {
		running, runs, err := s.runningIn(found, cluster)
		if err != nil || !runs || running.ID != id {
			return nil, err
		}
		ops, err := s.changed(found, cluster, change)
		if err != nil {
			return nil, err
		}
		return append(ops, clientv3.OpDelete(key)), nil
	})
}

// SetAside implements store.Store.
func (s *Store) SetAside(ctx context.Context, f store.Fence, cluster, id string, phase []byte) error {
	if err := store.CheckPhase(id, phase); err != nil {
		return err
	}
	key := s.keys.operation(cluster)
	return s.update(ctx, f, "set operation "+id+" aside", []string{key}, func(found records) ([]clientv3.Op, error) {
		running, runs, err := s.runningIn(found, cluster)
		if err != nil || !runs || running.ID != id {
			return nil, err
		}
		if err := store.CheckAside(running); err != nil {
			return nil, err
		}
		running.Phase = phase
		value, err := encodeOperation(running)
		if err != nil {
			return nil, err
		}
		return []clientv3.Op{clientv3.OpDelete(key), clientv3.OpPut(s.keys.aside(cluster, running.Epoch), value)}, nil
	})
}

// Unsettled implements store.Store.
func (s *Store) Unsettled(ctx context.Context) ([]store.Operation, error) {
	resp, err := s.transact(ctx, nil, clientv3.OpGet(s.keys.unsettled(), clientv3.WithPrefix()))
	if err != nil {
		return nil, s.readError(err, "list what is unsettled")
	}
	var all []store.Operation
	for _, kv := range resp.Responses[0].GetResponseRange().GetKvs() {
		cluster, _, _ := strings.Cut(nameIn(s.keys.unsettled(), kv.Key), "/")
		op, err := decodeOperation(cluster, kv)
		if err != nil {
			return nil, err
		}
		all = append(all, op)
	}
	slices.SortFunc(all, store.CompareAside)
	return all, nil
}

// Settle implements store.Store.
func (s *Store) Settle(ctx context.Context, f store.Fence, cluster string, epoch uint64) error {
	return s.update(ctx, f, fmt.Sprintf("settle %s@%d", cluster, epoch), nil, func(records) ([]clientv3.Op, error) {
		return []clientv3.Op{clientv3.OpDelete(s.keys.aside(cluster, epoch))}, nil
	})
}

// Operations implements store.Store.
func (s *Store) Operations(ctx context.Context) ([]store.Operation, error) {
	resp, err := s.transact(ctx, nil, clientv3.OpGet(s.keys.operations(), clientv3.WithPrefix()))
	if err != nil {
		return nil, s.readError(err, "list operations")
	}
	var all []store.Operation
	for _, kv := range resp.Responses[0].GetResponseRange().GetKvs() {
		op, err := decodeOperation(nameIn(s.keys.operations(), kv.Key), kv)
		if err != nil {
			return nil, err
		}
		all = append(all, op)
	}
	return all, nil
}
