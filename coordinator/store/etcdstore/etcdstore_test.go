package etcdstore_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"

	"fermata/coordinator/etcdembed/etcdtest"
	"fermata/coordinator/store"
	"fermata/coordinator/store/etcdstore"
	"fermata/coordinator/store/storetest"
	"fermata/protocol/api"
	"fermata/protocol/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T, client *clientv3.Client, prefix string) *etcdstore.Store {
	t.Helper()
	s, err := etcdstore.New(etcdstore.Config{Client: client, Prefix: prefix})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// elect makes a leader as package leader does, and removes the one before.
func elect(t *testing.T, client *clientv3.Client, prefix, key string) store.Fence {
	t.Helper()
	id, err := etcdstore.Identity(t.Context(), client, prefix)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Delete(t.Context(), etcdstore.ElectionPrefix(prefix)+"/", clientv3.WithPrefix()); err != nil {
		t.Fatal(err)
	}
	key = etcdstore.ElectionPrefix(prefix) + "/" + key
	put, err := client.Put(t.Context(), key, "here")
	if err != nil {
		t.Fatal(err)
	}
	return store.Fence{Key: key, Token: uint64(put.Header.Revision), Store: id}
}

// environments makes stores that share an etcd, each below its own prefix.
func environments(client *clientv3.Client) func(t *testing.T) storetest.Environment {
	stores := 0
	return func(t *testing.T) storetest.Environment {
		stores++
		prefix := fmt.Sprintf("/test/%d", stores)
		return storetest.Environment{
			Store: open(t, client, prefix),
			// Always the same key: the revision alone tells leaders apart.
			Elect: func() store.Fence { return elect(t, client, prefix, "lease") },
			Expire: func(node string) {
				resp, err := client.Get(t.Context(), prefix+"/alive/"+node)
				if err != nil || len(resp.Kvs) != 1 {
					t.Fatalf("lease of %s: %v, %v", node, resp, err)
				}
				if _, err := client.Revoke(t.Context(), clientv3.LeaseID(resp.Kvs[0].Lease)); err != nil {
					t.Fatal(err)
				}
			},
		}
	}
}

func TestEtcdStore(t *testing.T) {
	storetest.Run(t, environments(etcdtest.Client(t)))
}

// TestEtcdStore_RealProcess runs the contract against the oldest etcd that is
// supported, and against one that is killed.
func TestEtcdStore_RealProcess(t *testing.T) {
	p := etcdtest.StartProcess(t)
	client := etcdtest.Dial(t, p.Endpoint)
	storetest.Run(t, environments(client))

	ctx := t.Context()
	s, err := etcdstore.New(etcdstore.Config{Client: client, Timeout: 300 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	f := elect(t, client, "", "lease")
	if err := s.CreateCluster(ctx, f, cluster("c")); err != nil {
		t.Fatal(err)
	}
	p.Kill(t)
	if _, err := s.Cluster(ctx, "c"); fault.ClassOf(err) != fault.Unavailable {
		t.Errorf("read without etcd: %v, want class unavailable", err)
	}
	if err := s.DeleteCluster(ctx, f, "c"); fault.ClassOf(err) != fault.Unavailable {
		t.Errorf("write without etcd: %v, want class unavailable: it read nothing yet", err)
	}
	p.Restart(t)
	deadline, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		c, err := s.Cluster(deadline, "c")
		if err == nil {
			if string(c.Spec) != "name: c\n" {
				t.Errorf("after the restart: %+v", c)
			}
			break
		}
		if deadline.Err() != nil {
			t.Fatal(err)
		}
	}
	if err := s.DeleteCluster(ctx, f, "c"); err != nil {
		t.Error(err)
	}
}

func cluster(name string) store.Cluster {
	return store.Cluster{Name: name, Spec: []byte("name: " + name + "\n"), State: api.ClusterState_CLUSTER_STATE_STOPPED}
}

func TestPutNode_LeaseRunsOut(t *testing.T) {
	client := etcdtest.Client(t)
	s := open(t, client, "")
	f := elect(t, client, "", "lease")
	info := &api.NodeInfo{Name: "n1"}
	for range 3 { // the second and third renew
		if err := s.PutNode(t.Context(), f, info, time.Second); err != nil {
			t.Fatal(err)
		}
	}
	leases, err := client.Leases(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(leases.Leases) != 1 {
		t.Errorf("%d leases for one node, want one", len(leases.Leases))
	}
	waitAlive(t, s, false)
	if err := s.PutNode(t.Context(), f, info, time.Minute); err != nil {
		t.Fatal(err)
	}
	waitAlive(t, s, true)
}

// TestPutNode_ForgottenLease has the lease vanish behind the store's back.
func TestPutNode_ForgottenLease(t *testing.T) {
	client := etcdtest.Client(t)
	s := open(t, client, "")
	f := elect(t, client, "", "lease")
	for range 2 {
		if err := s.PutNode(t.Context(), f, &api.NodeInfo{Name: "n1"}, time.Minute); err != nil {
			t.Fatal(err)
		}
		waitAlive(t, s, true)
		leases, err := client.Leases(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range leases.Leases {
			if _, err := client.Revoke(t.Context(), l.ID); err != nil {
				t.Fatal(err)
			}
		}
		waitAlive(t, s, false)
	}
}

func waitAlive(t *testing.T, s *etcdstore.Store, want bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
	defer cancel()
	for {
		nodes, err := s.Nodes(ctx)
		if err != nil {
			t.Fatalf("node never became alive=%v: %v", want, err)
		}
		if len(nodes) == 1 && nodes[0].GetAlive() == want {
			return
		}
	}
}

func TestIdentity_WrittenOnceAStore(t *testing.T) {
	client := etcdtest.Client(t)
	ask := func(prefix string) uint64 {
		id, err := etcdstore.Identity(t.Context(), client, prefix)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	first, again, other := ask(""), ask("/fermata"), ask("/other")
	if first == 0 || first != again || first == other {
		t.Errorf("identities %x, %x of one store and %x of another", first, again, other)
	}
}

// A snapshot restored as another etcd cluster is another store: the first may come back.
func TestIdentity_ChangesWithTheEtcdCluster(t *testing.T) {
	client := etcdtest.Client(t)
	f := elect(t, client, "", "lease")
	if again := elect(t, client, "", "lease"); again.Store != f.Store {
		t.Errorf("identity %x, then %x of the same etcd", f.Store, again.Store)
	}
	if _, err := client.Put(t.Context(), "/fermata/etcd", "0123456789abcdef"); err != nil {
		t.Fatal(err)
	}
	if restored := elect(t, client, "", "lease"); restored.Store == f.Store || restored.Store == 0 {
		t.Errorf("identity %x of another etcd cluster, want another than %x", restored.Store, f.Store)
	}
	f = elect(t, client, "", "lease")
	// Written by a program that did not note the etcd cluster.
	if _, err := client.Delete(t.Context(), "/fermata/etcd"); err != nil {
		t.Fatal(err)
	}
	if old := elect(t, client, "", "lease"); old.Store != f.Store {
		t.Errorf("identity %x after an upgrade, want %x", old.Store, f.Store)
	}
}

func TestRead_DamagedRecords(t *testing.T) {
	client := etcdtest.Client(t)
	s := open(t, client, "")
	f := elect(t, client, "", "lease")
	ctx := t.Context()
	put := func(key, value string) {
		t.Helper()
		if _, err := client.Put(ctx, "/fermata/"+key, value); err != nil {
			t.Fatal(err)
		}
	}
	check := func(what string, err error, want fault.Class) {
		t.Helper()
		if fault.ClassOf(err) != want {
			t.Errorf("%s: %v, want class %v", what, err, want)
		}
		if want == fault.Corrupt && !errors.Is(err, store.ErrCorrupt) {
			t.Errorf("%s: %v, want ErrCorrupt", what, err)
		}
	}
	for value, want := range map[string]fault.Class{
		`{`:             fault.Corrupt,
		`{"version":2}`: fault.Mismatch,
		`{"version":1,"state":"CLUSTER_STATE_DANCING"}`:                  fault.Corrupt,
		`{"version":1,"state":"CLUSTER_STATE_STOPPED","incarnation":-1}`: fault.Corrupt,
	} {
		put("clusters/c", value)
		_, err := s.Cluster(ctx, "c")
		check(value, err, want)
		_, err = s.Clusters(ctx)
		check("list "+value, err, want)
		check("change "+value, s.UpdateCluster(ctx, f, "c", func(*store.Cluster) error { return nil }), want)
	}
	put("epochs/c", "many")
	_, err := s.NextEpoch(ctx, f, "c", 0)
	check("epoch", err, fault.Corrupt)
	put("operations/c", "[]")
	_, err = s.Operations(ctx)
	check("operations", err, fault.Corrupt)
	check("begin", s.BeginOperation(ctx, f, store.Operation{ID: "x", Kind: store.Stop, Cluster: "c"}, nil), fault.Corrupt)
	put("nodes/n", `{"version":1,"info":{"name":7}}`)
	_, err = s.Nodes(ctx)
	check("nodes", err, fault.Corrupt)
}

func TestConfig_Validate(t *testing.T) {
	err := etcdstore.Config{Prefix: "x/", Timeout: -1}.Validate()
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{"client: missing", `prefix "x/"`, "timeout: negative"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q lacks %q", err, want)
		}
	}
}
