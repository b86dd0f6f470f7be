package etcdstore

import (
	"context"
	"errors"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	"fermata/coordinator/store"
	"fermata/protocol/api"
)

// recordEvery bounds how old the last-seen time in a node's record may be. It is
// what a new leader knows of a node that was lost together with the leader before.
const recordEvery = 10 * time.Minute

// heard is what this store remembers of a node between two writes of its record: a
// heartbeat renews the node's lease, which adds no revision to etcd, and the rest of
// its news stays here.
type heard struct {
	info  *api.NodeInfo // immutable; nil: nothing since this store was opened
	lease clientv3.LeaseID
	ttl   time.Duration // of lease
}

// PutNode implements store.Store.
func (s *Store) PutNode(ctx context.Context, f store.Fence, info *api.NodeInfo, ttl time.Duration) error {
	if err := store.CheckNode(info, ttl); err != nil {
		return err
	}
	name := info.GetName()
	info = proto.CloneOf(info)
	info.LastSeenUnixNs, info.Alive = s.now().UnixNano(), false
	value, err := encodeNode(info)
	if err != nil {
		return err
	}
	err = s.putNode(ctx, f, info, value, ttl)
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		// It ran out between its renewal and the write.
		s.setLease(name, clientv3.NoLease, 0)
		err = s.putNode(ctx, f, info, value, ttl)
		if errors.Is(err, rpctypes.ErrLeaseNotFound) {
			return s.readError(err, "register node "+name) // refused, so nothing was written
		}
	}
	if err == nil {
		s.hear(info)
	}
	return err
}

// putNode renews the node's lease, and writes its record if there is news in it.
func (s *Store) putNode(ctx context.Context, f store.Fence, info *api.NodeInfo, value string, ttl time.Duration) error {
	name := info.GetName()
	what, nodeKey, aliveKey := "register node "+name, s.keys.node(name), s.keys.alive(name)
	return s.update(ctx, f, what, []string{nodeKey, aliveKey}, func(found records) ([]clientv3.Op, error) {
		lease, err := s.renewedLease(ctx, name, ttl)
		if err != nil {
			return nil, s.readError(err, what)
		}
		var ops []clientv3.Op
		if !recorded(found[nodeKey], info) {
			ops = append(ops, clientv3.OpPut(nodeKey, value))
		}
		if alive := found[aliveKey]; alive == nil || clientv3.LeaseID(alive.Lease) != lease {
			ops = append(ops, clientv3.OpPut(aliveKey, "", clientv3.WithLease(lease)))
		}
		return ops, nil
	})
}

// recorded reports whether the record kv says the same as info, but for counters and
// a moment of last-seen time.
func recorded(kv *mvccpb.KeyValue, info *api.NodeInfo) bool {
	if kv == nil {
		return false
	}
	was, err := decodeNode(kv)
	if err != nil {
		return false // written anew, it can be read again
	}
	age := time.Duration(info.GetLastSeenUnixNs() - was.GetLastSeenUnixNs())
	return age >= 0 && age < recordEvery && proto.Equal(lasting(was), lasting(info))
}

// lasting is info without what changes from one heartbeat to the next.
func lasting(info *api.NodeInfo) *api.NodeInfo {
	info = proto.CloneOf(info)
	info.LastSeenUnixNs, info.Alive = 0, false
	for _, g := range info.GetGuests() {
		g.Nics = nil
	}
	for _, u := range info.GetUplinks() {
		u.FramesReceived, u.FramesSent, u.FramesWaiting, u.FramesDropped = 0, 0, 0, 0
	}
	return info
}

// renewedLease returns a lease that lives for ttl from now. A new leader knows
// none and asks for new ones; the old ones run out.
func (s *Store) renewedLease(ctx context.Context, name string, ttl time.Duration) (clientv3.LeaseID, error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	s.mu.Lock()
	was := s.heard[name]
	s.mu.Unlock()
	if was.lease != clientv3.NoLease && was.ttl == ttl {
		_, err := s.client.KeepAliveOnce(ctx, was.lease)
		if err == nil {
			return was.lease, nil
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
	s.setLease(name, granted.ID, ttl)
	return granted.ID, nil
}

func (s *Store) setLease(name string, id clientv3.LeaseID, ttl time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.heard[name]
	h.lease, h.ttl = id, ttl
	s.heard[name] = h
}

// hear remembers what a node said last.
func (s *Store) hear(info *api.NodeInfo) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.heard[info.GetName()]
	h.info = info
	s.heard[info.GetName()] = h
}

// newest returns what is known of a node: its record, or what it said since.
func (s *Store) newest(record *api.NodeInfo) *api.NodeInfo {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.heard[record.GetName()].info
	if h == nil || h.GetIncarnation() != record.GetIncarnation() || h.GetLastSeenUnixNs() <= record.GetLastSeenUnixNs() {
		return record
	}
	return proto.CloneOf(h)
}

// Nodes implements store.Store.
func (s *Store) Nodes(ctx context.Context) ([]*api.NodeInfo, error) {
	resp, err := s.transact(ctx, nil,
		clientv3.OpGet(s.keys.nodes(), clientv3.WithPrefix()),
		clientv3.OpGet(s.keys.living(), clientv3.WithPrefix(), clientv3.WithKeysOnly()))
	if err != nil {
		return nil, s.readError(err, "list nodes")
	}
	living := byName(s.keys.living(), resp.Responses[1].GetResponseRange().GetKvs())
	var all []*api.NodeInfo
	for _, kv := range resp.Responses[0].GetResponseRange().GetKvs() {
		record, err := decodeNode(kv)
		if err != nil {
			return nil, err
		}
		info := s.newest(record)
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
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.heard, name)
	}
	return err
}
