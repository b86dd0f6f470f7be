package leader_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/goleak"

	"fermata/coordinator/etcdembed/etcdtest"
	"fermata/coordinator/leader"
	"fermata/coordinator/store"
	"fermata/coordinator/store/etcdstore"
	"fermata/protocol/api"
	"fermata/protocol/fault"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// budget bounds every wait.
const budget = 20 * time.Second

// runner is a candidate whose leaderships the test sees and ends.
type runner struct {
	*leader.Candidate
	elected chan leadership // one value a leadership
	ended   chan error      // Run's result
	cancel  context.CancelFunc
}

type leadership struct {
	ctx    context.Context
	fence  store.Fence
	finish chan error // what lead shall return
}

// campaign runs a candidate until the test ends.
func campaign(t *testing.T, client *clientv3.Client, address string) *runner {
	t.Helper()
	c, err := leader.New(leader.Config{Client: client, Address: address, TTL: 2 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &runner{Candidate: c, elected: make(chan leadership), ended: make(chan error, 1), cancel: cancel}
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.ended <- c.Run(ctx, func(ctx context.Context, f store.Fence) error {
			l := leadership{ctx: ctx, fence: f, finish: make(chan error, 1)}
			select {
			case r.elected <- l:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			select {
			case err := <-l.finish:
				return err
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		})
	}()
	t.Cleanup(func() {
		cancel()
		<-done
	})
	return r
}

func receive[T any](t *testing.T, ch <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(budget):
		t.Fatalf("%s: nothing after %s", what, budget)
		panic("unreachable")
	}
}

func wantNotElected(t *testing.T, r *runner) {
	t.Helper()
	select {
	case l := <-r.elected:
		t.Fatalf("a second leader with fence %d", l.fence.Token)
	default:
	}
}

func wantLeader(t *testing.T, r *runner, address string, token uint64) {
	t.Helper()
	got, err := r.Leader(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got != (leader.Leader{Address: address, Token: token}) {
		t.Errorf("leader %+v, want %s with token %d", got, address, token)
	}
}

func openStore(t *testing.T, client *clientv3.Client) store.Store {
	t.Helper()
	s, err := etcdstore.New(etcdstore.Config{Client: client})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func create(t *testing.T, s store.Store, f store.Fence, name string) error {
	return s.CreateCluster(t.Context(), f, store.Cluster{Name: name, State: api.ClusterState_CLUSTER_STATE_STOPPED})
}

func TestRun_HandsOverWhenItResigns(t *testing.T) {
	client := etcdtest.Client(t)
	a := campaign(t, client, "a:1")
	first := receive(t, a.elected, "a elected")
	wantLeader(t, a, "a:1", first.fence.Token)
	b := campaign(t, client, "b:1")
	wantLeader(t, b, "a:1", first.fence.Token)
	wantNotElected(t, b)

	began := time.Now()
	a.cancel()
	if err := receive(t, a.ended, "a ends"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	second := receive(t, b.elected, "b elected")
	if took := time.Since(began); took > 1500*time.Millisecond {
		t.Errorf("handing over took %v: the lease ran out instead of being given back", took)
	}
	if second.fence.Token <= first.fence.Token || second.fence.Store != first.fence.Store || first.fence.Store == 0 {
		t.Errorf("fence %+v after %+v", second.fence, first.fence)
	}
	wantLeader(t, b, "b:1", second.fence.Token)

	mine := errors.New("mine")
	second.finish <- mine
	if err := receive(t, b.ended, "b ends"); !errors.Is(err, mine) {
		t.Errorf("got %v, want the leader's own error", err)
	}
	_, err := b.Leader(t.Context())
	if !errors.Is(err, leader.ErrNoLeader) || fault.ClassOf(err) != fault.Unavailable {
		t.Errorf("got %v, want ErrNoLeader", err)
	}
}

// loseLeadership checks that r's leadership ends for the given cause, that
// another leader can follow, and that the fence left behind is worthless.
func loseLeadership(t *testing.T, client *clientv3.Client, take func(l leadership)) {
	t.Helper()
	s := openStore(t, client)
	a := campaign(t, client, "a:1")
	old := receive(t, a.elected, "a elected")
	if err := create(t, s, old.fence, "before"); err != nil {
		t.Fatal(err)
	}
	take(old)
	<-old.ctx.Done()
	if cause := context.Cause(old.ctx); !errors.Is(cause, leader.ErrLost) {
		t.Errorf("cause %v, want ErrLost", cause)
	}
	// It campaigns again by itself.
	present := receive(t, a.elected, "a elected again")
	if present.fence.Token <= old.fence.Token {
		t.Errorf("token %d after %d", present.fence.Token, old.fence.Token)
	}
	if err := create(t, s, old.fence, "late"); !errors.Is(err, store.ErrFenced) {
		t.Errorf("write of the deposed leader: %v, want ErrFenced", err)
	}
	if err := create(t, s, present.fence, "after"); err != nil {
		t.Error(err)
	}
}

// TestRun_LeadThatDoesNotReturn tells a leader to end whose work hangs: another one
// is elected although the first has not returned.
func TestRun_LeadThatDoesNotReturn(t *testing.T) {
	client := etcdtest.Client(t)
	c, err := leader.New(leader.Config{Client: client, Address: "a", TTL: 2 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	ctx, end := context.WithCancel(context.Background())
	hang, leads, first := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		first <- c.Run(ctx, func(ctx context.Context, _ store.Fence) error {
			close(leads)
			<-ctx.Done()
			<-hang
			return context.Cause(ctx)
		})
	}()
	receive(t, leads, "first leader")
	second := campaign(t, client, "b")
	end()
	receive(t, second.elected, "second leader")
	select {
	case err := <-first:
		t.Errorf("the first one has returned: %v", err)
	default:
	}
	close(hang)
	receive(t, first, "end of the first leader")
}

func TestRun_LeaseRevoked(t *testing.T) {
	client := etcdtest.Client(t)
	loseLeadership(t, client, func(l leadership) {
		resp, err := client.Get(t.Context(), l.fence.Key)
		if err != nil || len(resp.Kvs) != 1 {
			t.Fatalf("leader's key: %v, %v", resp, err)
		}
		if _, err := client.Revoke(t.Context(), clientv3.LeaseID(resp.Kvs[0].Lease)); err != nil {
			t.Fatal(err)
		}
	})
}

func TestRun_KeyRemoved(t *testing.T) {
	client := etcdtest.Client(t)
	loseLeadership(t, client, func(l leadership) {
		if _, err := client.Delete(t.Context(), l.fence.Key); err != nil {
			t.Fatal(err)
		}
	})
}

// TestRun_SurvivesCompaction compacts away every revision the watch of the
// leader's key could start from.
func TestRun_SurvivesCompaction(t *testing.T) {
	client := etcdtest.Client(t)
	a := campaign(t, client, "a:1")
	l := receive(t, a.elected, "a elected")
	put, err := client.Put(t.Context(), "other", "x")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Compact(t.Context(), put.Header.Revision, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	if err := create(t, openStore(t, client), l.fence, "c"); err != nil {
		t.Error(err)
	}
	if l.ctx.Err() != nil {
		t.Errorf("leadership ended: %v", context.Cause(l.ctx))
	}
}

// TestRun_FencedWriteMeansLost has the leader learn from a refused write.
func TestRun_FencedWriteMeansLost(t *testing.T) {
	client := etcdtest.Client(t)
	a := campaign(t, client, "a:1")
	first := receive(t, a.elected, "a elected")
	first.finish <- store.Fenced(first.fence)
	second := receive(t, a.elected, "a elected again")
	if second.fence.Token <= first.fence.Token {
		t.Errorf("token %d after %d", second.fence.Token, first.fence.Token)
	}
}

// TestFencing_TwoLeaders is the case that fencing exists for: a leader that was
// cut off still believes in itself while the next one already acts.
func TestFencing_TwoLeaders(t *testing.T) {
	p := etcdtest.StartProcess(t)
	client := etcdtest.Dial(t, p.Endpoint)
	s := openStore(t, client)
	a := campaign(t, client, "a:1")
	old := receive(t, a.elected, "a elected")
	if err := create(t, s, old.fence, "c"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.NextEpoch(t.Context(), old.fence, "c", 0); err != nil {
		t.Fatal(err)
	}
	b := campaign(t, etcdtest.Dial(t, p.Endpoint), "b:1")
	// Everybody's leases vanish at once, as after a long break of the network.
	leases, err := client.Leases(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range leases.Leases {
		if _, err := client.Revoke(t.Context(), l.ID); err != nil {
			t.Fatal(err)
		}
	}
	var present leadership
	select {
	case present = <-b.elected:
	case present = <-a.elected:
	case <-time.After(budget):
		t.Fatal("nobody is elected")
	}
	if present.fence.Token <= old.fence.Token {
		t.Errorf("token %d after %d", present.fence.Token, old.fence.Token)
	}
	if _, err := s.NextEpoch(t.Context(), old.fence, "c", 0); !errors.Is(err, store.ErrFenced) || fault.ClassOf(err) != fault.Stale {
		t.Errorf("epoch for the deposed leader: %v, want ErrFenced", err)
	}
	if err := s.UpdateCluster(t.Context(), old.fence, "c", func(c *store.Cluster) error { c.Reason = "late"; return nil }); !errors.Is(err, store.ErrFenced) {
		t.Errorf("write of the deposed leader: %v, want ErrFenced", err)
	}
	epoch, err := s.NextEpoch(t.Context(), present.fence, "c", 0)
	if err != nil || epoch != 2 {
		t.Errorf("epoch %d, %v; want 2", epoch, err)
	}
}

// TestRun_EtcdDies has the leader give up when its lease cannot be renewed,
// lead again when etcd is back, and end in time when etcd is gone.
func TestRun_EtcdDies(t *testing.T) {
	p := etcdtest.StartProcess(t)
	client := etcdtest.Dial(t, p.Endpoint)
	a := campaign(t, client, "a:1")
	old := receive(t, a.elected, "a elected")
	p.Kill(t)
	select {
	case <-old.ctx.Done():
	case <-time.After(budget):
		t.Fatal("the leader never noticed")
	}
	if cause := context.Cause(old.ctx); !errors.Is(cause, leader.ErrLost) {
		t.Errorf("cause %v, want ErrLost", cause)
	}
	short, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := a.Leader(short); fault.ClassOf(err) != fault.Unavailable {
		t.Errorf("got %v, want class unavailable", err)
	}
	p.Restart(t)
	present := receive(t, a.elected, "a elected again")
	if present.fence.Token <= old.fence.Token || present.fence.Store != old.fence.Store {
		t.Errorf("fence %+v after %+v", present.fence, old.fence)
	}
	b := campaign(t, etcdtest.Dial(t, p.Endpoint), "b:1")
	wantNotElected(t, b)
	p.Kill(t)
	began := time.Now()
	a.cancel()
	b.cancel()
	receive(t, a.ended, "a ends without etcd")
	receive(t, b.ended, "b ends without etcd")
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("ending took %v", took)
	}
}

func TestConfig_Validate(t *testing.T) {
	err := leader.Config{TTL: 1500 * time.Millisecond}.Validate()
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{"client: missing", "address: 0 bytes", "ttl: 1.5s"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q lacks %q", err, want)
		}
	}
}
