package coordinator_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	"fermata/coordinator"
	"fermata/coordinator/coordinatortest"
	"fermata/coordinator/etcdembed"
	"fermata/protocol/api"
	"fermata/protocol/fault"
	"fermata/protocol/fault/faultgrpc"
	"fermata/protocol/identity"
)

// startEtcd runs coordinator 0 with an etcd of its own in dir.
func (l *lab) startEtcd(dir string) *client {
	l.t.Helper()
	c, err := coordinator.New(coordinator.Config{
		Listen: []string{l.address(0), "127.0.0.1:0"}, Plaintext: true,
		Etcd: coordinator.Etcd{Embedded: &etcdembed.Config{
			Dir: filepath.Join(l.dir, dir), Listen: "unix:" + filepath.Join(l.dir, dir+".sock"), UnsafeNoFsync: true,
		}, LeaderTTL: 2 * time.Second},
		Repository: l.repoConfig(), NodeLeaseTTL: 10 * time.Second, ShutdownGrace: time.Second,
		Logger: l.logger().Named("c0"),
	})
	if err != nil {
		l.t.Fatal(err)
	}
	stop := run(l.t, "coordinator", c.Run)
	l.await("coordinator listens", func() bool { return len(c.Addresses()) == 2 })
	if tcp := c.Addresses()[1]; strings.HasSuffix(tcp, ":0") {
		l.t.Errorf("address %s has no port", tcp)
	}
	cl := dial(l.t, l.address(0))
	cl.lab, cl.stop = l, stop
	cl.awaitNodes()
	return cl
}

// The whole life of a cluster with a real etcd: it survives the coordinator,
// and the repository survives etcd.
func TestEtcd_CoordinatorAndStateComeAndGo(t *testing.T) {
	l := newLab(t, "n1", "n2")
	c := l.startEtcd("etcd-a")
	all := c.taken("web", 2)
	c.stop()

	c = l.startEtcd("etcd-a")
	c.wantState("web", up, "")
	if next := c.mustCheckpoint("web"); next.GetEpoch() <= all[1].GetEpoch() {
		t.Errorf("epoch %d after %d", next.GetEpoch(), all[1].GetEpoch())
	}
	_, err := c.restart(&api.RestartRequest{Cluster: "web"})
	wantFault(t, err, fault.Busy, "is running")
	c.stop()

	c = l.startEtcd("etcd-b") // empty
	if _, err := c.restart(&api.RestartRequest{Cluster: "web", From: all[0].GetId(), Rollback: true}); err != nil {
		t.Fatal(err)
	}
	l.wantFirst("web", 1)
	c.mustCheckpoint("web")
}

// An etcd that is put back from a snapshot has given its nodes fences that it does
// not remember. Its coordinator leads them again, and that of the etcd before does not.
func TestEtcd_RestoredFromASnapshot(t *testing.T) {
	l := newLab(t, "n1", "n2")
	c := l.startEtcd("etcd-a")
	c.taken("web", 2)
	c.stop()
	if err := os.CopyFS(filepath.Join(l.dir, "etcd-b"), os.DirFS(filepath.Join(l.dir, "etcd-a", "data"))); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(l.dir, "restored"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(l.dir, "etcd-b"), filepath.Join(l.dir, "restored", "data")); err != nil {
		t.Fatal(err)
	}
	var lost *api.Checkpoint
	for range 3 { // with fences that the snapshot does not know, nor its first leader
		c = l.startEtcd("etcd-a")
		lost = c.mustCheckpoint("web")
		c.stop()
	}

	c = l.startEtcd("restored")
	c.wantState("web", up, "")
	var next *api.Checkpoint
	l.await("the restored etcd's coordinator is obeyed", func() (done bool) {
		var err error
		next, err = c.checkpoint("web")
		return err == nil
	})
	if next.GetEpoch() <= lost.GetEpoch() {
		t.Errorf("epoch %d after %d", next.GetEpoch(), lost.GetEpoch())
	}
	c.stop()

	c = l.startEtcd("etcd-a")
	_, err := c.checkpoint("web")
	wantFault(t, err, fault.Stale)
}

// Certificates decide who may do what.
func TestIdentity_RolesAndNames(t *testing.T) {
	l := newLab(t)
	certs := filepath.Join(l.dir, "certs")
	if err := identity.CreateCA(certs, 0); err != nil {
		t.Fatal(err)
	}
	issue := func(role identity.Role, name string) *identity.Identity {
		t.Helper()
		files, err := identity.Issue(certs, identity.Request{Role: role, Name: name}, filepath.Join(certs, name))
		if err != nil {
			t.Fatal(err)
		}
		id, err := identity.Load(files.Cert, files.Key, files.CA)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	c, err := coordinator.New(coordinator.Config{
		Listen: []string{l.address(0)}, Identity: issue(identity.RoleCoordinator, "c0"),
		State:      &coordinator.State{Store: l.store, Elector: coordinatortest.Candidate{Election: l.election, Address: "c0"}},
		Repository: l.repoConfig(), Logger: l.logger(),
	})
	if err != nil {
		t.Fatal(err)
	}
	run(t, "coordinator", c.Run)
	l.await("coordinator listens", func() bool { return len(c.Addresses()) == 1 })
	agentID := issue(identity.RoleAgent, "n1")
	a, err := coordinatortest.New(t.Context(), coordinatortest.Config{
		Name: "n1", Repository: l.repoConfig(), MemoryBytes: 64 * mib, Coordinators: []string{l.address(0)},
		Socket: filepath.Join(l.dir, "n1.sock"), Identity: agentID,
	})
	if err != nil {
		t.Fatal(err)
	}
	run(t, "agent", a.Run)
	operator := dialAs(t, l.address(0), issue(identity.RoleOperator, "alice"))
	operator.lab = l
	l.await("the node is registered", func() bool { return operator.alive() == 1 })
	operator.running("web", "a")
	operator.mustCheckpoint("web")

	info := &api.NodeInfo{Name: "n2", Address: "127.0.0.1:1", FabricAddress: "127.0.0.1:1"}
	agent := dialAs(t, l.address(0), agentID)
	_, err = agent.registry.Register(t.Context(), &api.RegisterRequest{Node: info})
	wantFault(t, err, fault.Denied, "n2")
	_, err = agent.ListNodes(t.Context(), &api.ListNodesRequest{})
	wantFault(t, err, fault.Denied)
	_, err = operator.registry.Register(t.Context(), &api.RegisterRequest{Node: info})
	wantFault(t, err, fault.Denied)
}

func dialAs(t *testing.T, address string, id *identity.Identity) *client {
	t.Helper()
	conn, err := grpc.NewClient(address, append(faultgrpc.DialOptions(), id.DialOption(identity.RoleCoordinator, ""))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &client{OperatorClient: api.NewOperatorClient(conn), registry: api.NewRegistryClient(conn)}
}
