package etcdstore

import (
	"context"
	"errors"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	"fermata/coordinator/store"
	"fermata/protocol/api"
)

// nodeLease is the lease that keeps a node alive. A new leader knows none and
// asks for new ones; the old ones run out.
type nodeLease struct {
	id  clientv3.LeaseID
	ttl time.Duration
}

// PutNode implements store.Store.
func (s *Store) PutNode(ctx context.Context, f store.Fence, info *api.NodeInfo, ttl time.Duration) error {
	if err := store.CheckNode(info, ttl); err != nil {
		return err
	}
	info = proto.CloneOf(info)
	info.LastSeenUnixNs = s.now().UnixNano()
	value, err := encodeNode(info)
	if err != nil {
		return err
	}
	err = s.putNode(ctx, f, info.GetName(), value, ttl)
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		// It ran out between its renewal and the write.
		s.setLease(info.GetName(), nodeLease{})
		err = s.putNode(ctx, f, info.GetName(), value, ttl)
		if errors.Is(err, rpctypes.ErrLeaseNotFound) {
			return readError(err, "register node "+info.GetName()) // refused, so nothing was written
		}
	}
	return err
}

func (s *Store) putNode(ctx context.Context, f store.Fence, name, value string, ttl time.Duration) error {
	what := "register node " + name
	// The node's record is no condition: the newest word of a node counts.
	return s.update(ctx, f, what, nil, func(records) ([]clientv3.Op, error) {
		lease, err := s.renewedLease(ctx, name, ttl)
		if err != nil {
			return nil, readError(err, what)
		}
		return []clientv3.Op{
			clientv3.OpPut(s.keys.node(name), value),
			clientv3.OpPut(s.keys.alive(name), "", clientv3.WithLease(lease)),
		}, nil
	})
}

// renewedLease returns a lease that lives for ttl from now.
func (s *Store) renewedLease(ctx context.Context, name string, ttl time.Duration) (clientv3.LeaseID, error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	s.mu.Lock()
	lease := s.leases[name]
	s.mu.Unlock()
	if lease.id != clientv3.NoLease && lease.ttl == ttl {
		_, err := s.client.KeepAliveOnce(ctx, lease.id)
		if err == nil {
			return lease.id, nil
		}
		if !errors.Is(err, rpctypes.ErrLeaseNotFound) {
			return clientv3.NoLease, err
		}
	}
	// etcd counts in whole seconds; rounding up never kills a node early.
	granted, err := s.client.Grant(ctx, int64((ttl+time.Second-1)/time.Second))
	if err != nil {
		return clientv3.NoLease, err
	}
	s.setLease(name, nodeLease{id: granted.ID, ttl: ttl})
	return granted.ID, nil
}

func (s *Store) setLease(name string, l nodeLease) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l.id == clientv3.NoLease {
		delete(s.leases, name)
		return
	}
	s.leases[name] = l
}

// Nodes implements store.Store.
func (s *Store) Nodes(ctx context.Context) ([]*api.NodeInfo, error) {
	resp, err := s.transact(ctx, nil,
		clientv3.OpGet(s.keys.nodes(), clientv3.WithPrefix()),
		clientv3.OpGet(s.keys.living(), clientv3.WithPrefix(), clientv3.WithKeysOnly()))
	if err != nil {
		return nil, readError(err, "list nodes")
	}
	living := byName(s.keys.living(), resp.Responses[1].GetResponseRange().GetKvs())
	var all []*api.NodeInfo
	for _, kv := range resp.Responses[0].GetResponseRange().GetKvs() {
		info, err := decodeNode(kv)
		if err != nil {
			return nil, err
		}
		info.Alive = living[info.GetName()] != nil
		all = append(all, info)
	}
	return all, nil
}

// ForgetNode implements store.Store.
func (s *Store) ForgetNode(ctx context.Context, f store.Fence, name string) error {
	if err := store.CheckName("node", name); err != nil {
		return err
	}
	err := s.update(ctx, f, "forget node "+name, nil, func(records) ([]clientv3.Op, error) {
		return []clientv3.Op{clientv3.OpDelete(s.keys.node(name)), clientv3.OpDelete(s.keys.alive(name))}, nil
	})
	if err == nil {
		s.setLease(name, nodeLease{})
	}
	return err
}
