package etcdstore_test

import (
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"fermata/coordinator/etcdembed/etcdtest"
	"fermata/coordinator/store"
	"fermata/coordinator/store/etcdstore"
	"fermata/protocol/api"
)

// TestEndEarlier leaves a leader and a node in an etcd, as a process does that is killed
// together with it. Afterwards nobody leads and the node is not alive.
func TestEndEarlier(t *testing.T) {
	client := etcdtest.Client(t)
	ctx := t.Context()
	lease, err := client.Grant(ctx, 600)
	if err != nil {
		t.Fatal(err)
	}
	leader := etcdstore.ElectionPrefix("") + "/1"
	put, err := client.Put(ctx, leader, "somewhere", clientv3.WithLease(lease.ID))
	if err != nil {
		t.Fatal(err)
	}
	id, err := etcdstore.Identity(ctx, client, "")
	if err != nil {
		t.Fatal(err)
	}
	s, err := etcdstore.New(etcdstore.Config{Client: client})
	if err != nil {
		t.Fatal(err)
	}
	f := store.Fence{Key: leader, Token: uint64(put.Header.Revision), Store: id}
	if err := s.PutNode(ctx, f, &api.NodeInfo{Name: "n1"}, 10*time.Minute); err != nil {
		t.Fatal(err)
	}
	if err := etcdstore.EndEarlier(ctx, client, ""); err != nil {
		t.Fatal(err)
	}
	if resp, err := client.Get(ctx, leader); err != nil || len(resp.Kvs) != 0 {
		t.Errorf("the leader's key: %v, %v", resp, err)
	}
	nodes, err := s.Nodes(ctx)
	if err != nil || len(nodes) != 1 || nodes[0].GetAlive() {
		t.Errorf("nodes %v, %v, want n1, not alive", nodes, err)
	}
}
