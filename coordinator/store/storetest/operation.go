package storetest

import (
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"fermata/coordinator/store"
	"fermata/protocol/api"
	"fermata/protocol/fault"
)

func wantOperations(t *testing.T, s store.Store, want ...store.Operation) {
	t.Helper()
	got, err := s.Operations(t.Context())
	noError(t, err)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("operations (-want +got):\n%s", diff)
	}
}

func oneOperation(t *testing.T, e Environment) {
	ctx, f := t.Context(), e.Elect()
	wantOperations(t, e.Store)
	noError(t, e.Store.CreateCluster(ctx, f, demo("a")))
	noError(t, e.Store.CreateCluster(ctx, f, demo("b")))
	onB := store.Operation{ID: "one", Kind: store.Checkpoint, Cluster: "b", Epoch: 7, Phase: []byte{0, 1, 0xff}, Started: someTime}
	onA := store.Operation{ID: "two", Kind: store.Start, Cluster: "a", Started: someTime}
	noError(t, e.Store.BeginOperation(ctx, f, onB, nil))
	noError(t, e.Store.BeginOperation(ctx, f, onA, nil))
	wantOperations(t, e.Store, onA, onB)

	// The same call once more: its answer was lost.
	noError(t, e.Store.BeginOperation(ctx, f, onB, func(*store.Cluster) error { return errors.New("changed twice") }))
	other := onB
	other.ID, other.Kind = "three", store.Stop
	err := e.Store.BeginOperation(ctx, f, other, nil)
	wantError(t, err, store.ErrBusy, fault.Busy)
	if !strings.Contains(err.Error(), "checkpoint") || !strings.Contains(err.Error(), "b") {
		t.Errorf("error %q does not say what is running", err)
	}
	wantError(t, e.Store.DeleteCluster(ctx, f, "b"), store.ErrBusy, fault.Busy)
	nowhere := store.Operation{ID: "four", Kind: store.Start, Cluster: "nowhere"}
	wantError(t, e.Store.BeginOperation(ctx, f, nowhere, nil), store.ErrNotFound, fault.NotFound)

	phase := []byte("cut")
	noError(t, e.Store.AdvanceOperation(ctx, f, "b", "one", phase))
	onB.Phase = []byte("cut")
	phase[0] = 'X' // the caller's own
	wantOperations(t, e.Store, onA, onB)
	wantError(t, e.Store.AdvanceOperation(ctx, f, "b", "three", phase), store.ErrNotFound, fault.NotFound)

	// The new leader finds what the old one left.
	f = e.Elect()
	wantOperations(t, e.Store, onA, onB)
	noError(t, e.Store.EndOperation(ctx, f, "b", "three", nil)) // not the one that runs
	wantOperations(t, e.Store, onA, onB)
	noError(t, e.Store.EndOperation(ctx, f, "b", "one", nil))
	noError(t, e.Store.EndOperation(ctx, f, "b", "one", nil))
	wantOperations(t, e.Store, onA)
	wantError(t, e.Store.AdvanceOperation(ctx, f, "b", "one", phase), store.ErrNotFound, fault.NotFound)
	noError(t, e.Store.BeginOperation(ctx, f, other, nil))
}

func operationChangesCluster(t *testing.T, e Environment) {
	ctx, f := t.Context(), e.Elect()
	noError(t, e.Store.CreateCluster(ctx, f, demo("c")))
	op := store.Operation{ID: "one", Kind: store.Start, Cluster: "c", Started: someTime}
	mine := errors.New("already running")
	if err := e.Store.BeginOperation(ctx, f, op, func(*store.Cluster) error { return mine }); err != mine {
		t.Errorf("got %v, want the change's own error", err)
	}
	wantOperations(t, e.Store)
	to := func(state api.ClusterState) func(*store.Cluster) error {
		return func(c *store.Cluster) error { c.State = state; return nil }
	}
	noError(t, e.Store.BeginOperation(ctx, f, op, to(api.ClusterState_CLUSTER_STATE_STARTING)))
	want := demo("c")
	want.State = api.ClusterState_CLUSTER_STATE_STARTING
	wantCluster(t, e.Store, want)

	if err := e.Store.EndOperation(ctx, f, "c", "one", func(*store.Cluster) error { return mine }); err != mine {
		t.Errorf("got %v, want the change's own error", err)
	}
	wantOperations(t, e.Store, op)
	noError(t, e.Store.EndOperation(ctx, f, "c", "one", to(api.ClusterState_CLUSTER_STATE_RUNNING)))
	want.State = api.ClusterState_CLUSTER_STATE_RUNNING
	wantCluster(t, e.Store, want)
	// Repeated after its answer was lost, it does not change the cluster again.
	noError(t, e.Store.EndOperation(ctx, f, "c", "one", to(api.ClusterState_CLUSTER_STATE_BROKEN)))
	wantCluster(t, e.Store, want)
}

func setAside(t *testing.T, e Environment) {
	ctx, f := t.Context(), e.Elect()
	wantAside := func(want ...store.Operation) {
		t.Helper()
		got, err := e.Store.Unsettled(ctx)
		noError(t, err)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("unsettled (-want +got):\n%s", diff)
		}
	}
	wantAside()
	leave := func(cluster, id string, epoch uint64) store.Operation {
		t.Helper()
		op := store.Operation{ID: id, Kind: store.Checkpoint, Cluster: cluster, Epoch: epoch, Phase: []byte("persist"), Started: someTime}
		noError(t, e.Store.BeginOperation(ctx, f, op, nil))
		noError(t, e.Store.SetAside(ctx, f, cluster, "another", nil)) // not the one that runs
		wantOperations(t, e.Store, op)
		noError(t, e.Store.SetAside(ctx, f, cluster, id, []byte("over")))
		op.Phase = []byte("over")
		return op
	}
	noError(t, e.Store.CreateCluster(ctx, f, demo("a")))
	noError(t, e.Store.CreateCluster(ctx, f, demo("a.b")))
	first := leave("a.b", "one", 2)
	second := leave("a", "two", 10)
	third := leave("a", "three", 9)
	wantOperations(t, e.Store) // the clusters are free
	wantAside(third, second, first)
	noError(t, e.Store.SetAside(ctx, f, "a", "two", []byte("again"))) // its answer was lost
	wantAside(third, second, first)

	// It outlives the leader and the cluster.
	noError(t, e.Store.DeleteCluster(ctx, f, "a"))
	f = e.Elect()
	wantAside(third, second, first)
	noError(t, e.Store.Settle(ctx, f, "a", 9))
	noError(t, e.Store.Settle(ctx, f, "a", 9))
	wantAside(second, first)

	noError(t, e.Store.BeginOperation(ctx, f, store.Operation{ID: "four", Kind: store.Stop, Cluster: "a.b"}, nil))
	wantError(t, e.Store.SetAside(ctx, f, "a.b", "four", nil), store.ErrInvalid, fault.Invalid)
}

func beginConcurrently(t *testing.T, e Environment) {
	ctx, f := t.Context(), e.Elect()
	noError(t, e.Store.CreateCluster(ctx, f, demo("c")))
	var won atomic.Int32
	var wg sync.WaitGroup
	for _, id := range []string{"a", "b", "c", "d", "e", "f"} {
		wg.Go(func() {
			err := e.Store.BeginOperation(ctx, f, store.Operation{ID: id, Kind: store.Stop, Cluster: "c"}, nil)
			switch {
			case err == nil:
				won.Add(1)
			case !is(err, store.ErrBusy):
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 {
		t.Errorf("%d operations began, want one", won.Load())
	}
}

func nodes(t *testing.T, e Environment) {
	ctx, f := t.Context(), e.Elect()
	wantNodes := func(want ...*api.NodeInfo) {
		t.Helper()
		got, err := e.Store.Nodes(ctx)
		noError(t, err)
		if diff := cmp.Diff(want, got, protocmp.Transform(), protocmp.IgnoreFields(&api.NodeInfo{}, "last_seen_unix_ns")); diff != "" {
			t.Errorf("nodes (-want +got):\n%s", diff)
		}
	}
	wantNodes()
	n1 := &api.NodeInfo{Name: "n1", Address: "10.0.0.1:7000", MemoryBytes: 1 << 40, Guests: []*api.GuestStatus{{Name: "g1", State: api.GuestState_GUEST_STATE_RUNNING}}}
	n2 := &api.NodeInfo{Name: "n2", Alive: true, LastSeenUnixNs: 5}
	before := time.Now()
	noError(t, e.Store.PutNode(ctx, f, n2, time.Minute))
	noError(t, e.Store.PutNode(ctx, f, n1, time.Minute))
	if n1.GetAlive() || n1.GetLastSeenUnixNs() != 0 {
		t.Error("PutNode changed its argument")
	}
	live1, live2 := proto.CloneOf(n1), proto.CloneOf(n2)
	live1.Alive, live2.Alive = true, true
	wantNodes(live1, live2)
	all, err := e.Store.Nodes(ctx)
	noError(t, err)
	if seen := time.Unix(0, all[0].GetLastSeenUnixNs()); seen.Before(before.Add(-time.Minute)) || seen.After(before.Add(time.Minute)) {
		t.Errorf("last seen %v, want about %v", seen, before)
	}

	e.Expire("n1")
	wantNodes(n1, live2)
	n1.MemoryFreeBytes, live1.MemoryFreeBytes = 77, 77
	noError(t, e.Store.PutNode(ctx, f, n1, time.Minute))
	wantNodes(live1, live2)
	noError(t, e.Store.PutNode(ctx, f, n1, time.Minute)) // renews
	noError(t, e.Store.PutNode(ctx, f, n1, 2*time.Minute))
	wantNodes(live1, live2)
	f = e.Elect()
	noError(t, e.Store.PutNode(ctx, f, n1, time.Minute))
	wantNodes(live1, live2)

	noError(t, e.Store.ForgetNode(ctx, f, "n2"))
	noError(t, e.Store.ForgetNode(ctx, f, "n2"))
	wantNodes(live1)
}

// heartbeats are calls of PutNode without news: counters apart, only the time moves.
func heartbeats(t *testing.T, e Environment) {
	ctx, f := t.Context(), e.Elect()
	node := func(frames uint64) *api.NodeInfo {
		return &api.NodeInfo{
			Name: "n1", Incarnation: "i1",
			Guests:  []*api.GuestStatus{{Name: "g", Nics: []*api.NICStatus{{Name: "eth0", FramesSent: frames}}}},
			Uplinks: []*api.UplinkStatus{{Cluster: "c", FramesSent: frames}},
		}
	}
	var last int64
	for frames := range uint64(3) {
		noError(t, e.Store.PutNode(ctx, f, node(frames), time.Minute))
		noError(t, e.Store.Maintain(ctx, f))
		all, err := e.Store.Nodes(ctx)
		noError(t, err)
		if len(all) != 1 || !all[0].GetAlive() || all[0].GetLastSeenUnixNs() <= last {
			t.Fatalf("nodes %v: want n1 alive, seen after %d", all, last)
		}
		last = all[0].GetLastSeenUnixNs()
		if got := all[0].GetGuests()[0].GetNics()[0].GetFramesSent(); got != frames {
			t.Errorf("%d frames sent, want what the node said last: %d", got, frames)
		}
	}
	e.Expire("n1")
	noError(t, e.Store.Maintain(ctx, f))
	all, err := e.Store.Nodes(ctx)
	noError(t, err)
	if len(all) != 1 || all[0].GetAlive() || all[0].GetLastSeenUnixNs() != last {
		t.Errorf("nodes %v: want n1 lost, last seen at %d", all, last)
	}
}

// renewal ends a leadership, and what the store holds is there in the next one.
func renewal(t *testing.T, e Environment) {
	ctx, old := t.Context(), e.Elect()
	noError(t, e.Store.CreateCluster(ctx, old, demo("c")))
	noError(t, e.Store.Renew(ctx, old))
	wantError(t, e.Store.Renew(ctx, old), store.ErrFenced, fault.Stale)
	wantError(t, e.Store.DeleteCluster(ctx, old, "c"), store.ErrFenced, fault.Stale)
	next := e.Elect()
	if next.Store == old.Store || next.Store == 0 {
		t.Errorf("identity %x after %x: want another one", next.Store, old.Store)
	}
	wantCluster(t, e.Store, demo("c"))
	noError(t, e.Store.DeleteCluster(ctx, next, "c"))
}

func fencing(t *testing.T, e Environment) {
	ctx, old := t.Context(), e.Elect()
	noError(t, e.Store.CreateCluster(ctx, old, demo("c")))
	op := store.Operation{ID: "one", Kind: store.Start, Cluster: "c", Started: someTime}
	noError(t, e.Store.BeginOperation(ctx, old, op, nil))
	noError(t, e.Store.PutNode(ctx, old, &api.NodeInfo{Name: "n1"}, time.Minute))
	present := e.Elect()
	if present.Token <= old.Token || present.Store != old.Store {
		t.Fatalf("fence %+v after %+v: the token must grow in one store", present, old)
	}
	touch := func(c *store.Cluster) error { c.Reason = "touched"; return nil }
	forged, elsewhere := present, present
	forged.Token++
	elsewhere.Store++
	for name, f := range map[string]store.Fence{"old": old, "none": {}, "forged": forged, "other store": elsewhere} {
		other := store.Operation{ID: "two", Kind: store.Stop, Cluster: "c"}
		_, epochErr := e.Store.NextEpoch(ctx, f, "c", 0)
		for call, err := range map[string]error{
			"create":        e.Store.CreateCluster(ctx, f, demo("d")),
			"create again":  e.Store.CreateCluster(ctx, f, demo("c")),
			"update":        e.Store.UpdateCluster(ctx, f, "c", touch),
			"update none":   e.Store.UpdateCluster(ctx, f, "none", touch),
			"delete":        e.Store.DeleteCluster(ctx, f, "c"),
			"epoch":         epochErr,
			"begin":         e.Store.BeginOperation(ctx, f, other, touch),
			"begin again":   e.Store.BeginOperation(ctx, f, op, touch),
			"advance":       e.Store.AdvanceOperation(ctx, f, "c", "one", []byte("x")),
			"end":           e.Store.EndOperation(ctx, f, "c", "one", touch),
			"end another":   e.Store.EndOperation(ctx, f, "c", "two", touch),
			"set aside":     e.Store.SetAside(ctx, f, "c", "one", []byte("x")),
			"settle":        e.Store.Settle(ctx, f, "c", 1),
			"register node": e.Store.PutNode(ctx, f, &api.NodeInfo{Name: "n2"}, time.Minute),
			"forget node":   e.Store.ForgetNode(ctx, f, "n1"),
			"maintain":      e.Store.Maintain(ctx, f),
			"renew":         e.Store.Renew(ctx, f),
		} {
			if !is(err, store.ErrFenced) || fault.ClassOf(err) != fault.Stale {
				t.Errorf("%s with fence %s: got %v, want ErrFenced", call, name, err)
			}
		}
	}
	wantCluster(t, e.Store, demo("c"))
	wantOperations(t, e.Store, op)
	all, err := e.Store.Nodes(ctx)
	noError(t, err)
	if len(all) != 1 || all[0].GetName() != "n1" {
		t.Errorf("nodes %v, want n1 alone", all)
	}
	got, err := e.Store.NextEpoch(ctx, present, "c", 0)
	noError(t, err)
	if got != 1 {
		t.Errorf("epoch %d: refused calls used some", got)
	}
}
