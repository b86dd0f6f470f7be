package storetest

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"fermata/coordinator/store"
	"fermata/protocol/api"
	"fermata/protocol/fault"
)

func is(err, want error) bool { return errors.Is(err, want) }

// demo is a cluster that has never run.
func demo(name string) store.Cluster {
	return store.Cluster{
		Name:    name,
		Spec:    []byte("name: " + name + "\n"),
		Created: someTime,
		State:   api.ClusterState_CLUSTER_STATE_STOPPED,
	}
}

func wantCluster(t *testing.T, s store.Store, want store.Cluster) {
	t.Helper()
	got, err := s.Cluster(t.Context(), want.Name)
	noError(t, err)
	if diff := cmp.Diff(want, got, cmp.Comparer(bytes.Equal)); diff != "" { // a megabyte byte by byte takes seconds
		t.Errorf("cluster %s (-want +got):\n%s", want.Name, diff)
	}
}

func clusterLife(t *testing.T, e Environment) {
	ctx, f := t.Context(), e.Elect()
	all, err := e.Store.Clusters(ctx)
	noError(t, err)
	if len(all) != 0 {
		t.Fatalf("a new store holds %v", all)
	}
	_, err = e.Store.Cluster(ctx, "b")
	wantError(t, err, store.ErrNotFound, fault.NotFound)

	// A name that begins with another one is another cluster.
	for _, name := range []string{"b", "bb", "a"} {
		noError(t, e.Store.CreateCluster(ctx, f, demo(name)))
	}
	wantError(t, e.Store.CreateCluster(ctx, f, demo("b")), store.ErrExists, fault.Exists)
	wantCluster(t, e.Store, demo("b"))
	all, err = e.Store.Clusters(ctx)
	noError(t, err)
	if diff := cmp.Diff([]store.Cluster{demo("a"), demo("b"), demo("bb")}, all); diff != "" {
		t.Errorf("clusters (-want +got):\n%s", diff)
	}

	noError(t, e.Store.DeleteCluster(ctx, f, "b"))
	noError(t, e.Store.DeleteCluster(ctx, f, "b"))
	_, err = e.Store.Cluster(ctx, "b")
	wantError(t, err, store.ErrNotFound, fault.NotFound)
	wantCluster(t, e.Store, demo("bb"))
	noError(t, e.Store.CreateCluster(ctx, f, demo("b")))
}

func clusterChange(t *testing.T, e Environment) {
	ctx, f := t.Context(), e.Elect()
	noError(t, e.Store.CreateCluster(ctx, f, demo("c")))
	noError(t, e.Store.UpdateCluster(ctx, f, "c", func(c *store.Cluster) error {
		c.State = api.ClusterState_CLUSTER_STATE_RUNNING
		c.Assignments = map[string]string{"g1": "n1", "g2": "n2"}
		c.Incarnation++
		c.Reason = "because"
		// What a change may not touch:
		c.Name, c.Spec, c.Created, c.Epoch = "other", nil, time.Time{}, 99
		return nil
	}))
	want := demo("c")
	want.State = api.ClusterState_CLUSTER_STATE_RUNNING
	want.Assignments = map[string]string{"g1": "n1", "g2": "n2"}
	want.Incarnation = 1
	want.Reason = "because"
	wantCluster(t, e.Store, want)

	// The record a caller gets is the caller's.
	got, err := e.Store.Cluster(ctx, "c")
	noError(t, err)
	got.Assignments["g1"] = "elsewhere"
	got.Spec[0] = 'X'
	wantCluster(t, e.Store, want)

	// An error of the change writes nothing and comes back as it is.
	mine := errors.New("mine")
	err = e.Store.UpdateCluster(ctx, f, "c", func(c *store.Cluster) error {
		c.Reason = "not this"
		c.Assignments["g1"] = "nor this"
		return mine
	})
	if err != mine {
		t.Errorf("got %v, want the change's own error", err)
	}
	wantCluster(t, e.Store, want)
	wantError(t, e.Store.UpdateCluster(ctx, f, "no", func(*store.Cluster) error { return nil }), store.ErrNotFound, fault.NotFound)

	// Changes of two goroutines are made one after the other.
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := e.Store.UpdateCluster(ctx, f, "c", func(c *store.Cluster) error { c.Incarnation++; return nil }); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	want.Incarnation = 9
	wantCluster(t, e.Store, want)
}

func limits(t *testing.T, e Environment) {
	ctx, f := t.Context(), e.Elect()
	// The largest cluster that is allowed can be stored.
	big := demo("big")
	big.Spec = []byte(strings.Repeat("s", store.MaxSpecBytes))
	big.Reason = strings.Repeat("r", store.MaxReasonBytes)
	big.Assignments = map[string]string{}
	for i := range store.MaxAssignments {
		big.Assignments[longName("g", i)] = longName("n", i)
	}
	noError(t, e.Store.CreateCluster(ctx, f, big))
	wantCluster(t, e.Store, big)
	op := store.Operation{ID: "op", Kind: store.Start, Cluster: "big", Phase: []byte(strings.Repeat("p", store.MaxPhaseBytes))}
	noError(t, e.Store.BeginOperation(ctx, f, op, nil))

	for name, change := range map[string]func(*store.Cluster){
		"name":       func(c *store.Cluster) { c.Name = "a/b" },
		"empty name": func(c *store.Cluster) { c.Name = "" },
		"long name":  func(c *store.Cluster) { c.Name = strings.Repeat("x", 64) },
		"spec":       func(c *store.Cluster) { c.Spec = append(big.Spec, 's') },
		"reason":     func(c *store.Cluster) { c.Reason = big.Reason + "r" },
		"state":      func(c *store.Cluster) { c.State = 77 },
		"no state":   func(c *store.Cluster) { c.State = 0 },
		"guest":      func(c *store.Cluster) { c.Assignments = map[string]string{"a b": "n"} },
		"node":       func(c *store.Cluster) { c.Assignments = map[string]string{"g": ""} },
	} {
		c := demo("c")
		change(&c)
		if err := e.Store.CreateCluster(ctx, f, c); !is(err, store.ErrInvalid) || fault.ClassOf(err) != fault.Invalid {
			t.Errorf("%s: got %v, want ErrInvalid", name, err)
		}
	}
	wantError(t, e.Store.AdvanceOperation(ctx, f, "big", "op", append(op.Phase, 'p')), store.ErrInvalid, fault.Invalid)
	op.Kind = "dance"
	wantError(t, e.Store.BeginOperation(ctx, f, op, nil), store.ErrInvalid, fault.Invalid)
	wantError(t, e.Store.PutNode(ctx, f, &api.NodeInfo{Name: "a/b"}, time.Minute), store.ErrInvalid, fault.Invalid)
	wantError(t, e.Store.PutNode(ctx, f, &api.NodeInfo{Name: "n"}, time.Millisecond), store.ErrInvalid, fault.Invalid)
	wantError(t, e.Store.PutNode(ctx, f, &api.NodeInfo{Name: "n", Kernel: strings.Repeat("k", store.MaxNodeBytes)}, time.Minute), store.ErrInvalid, fault.Invalid)
}

// longName is the longest name there is, with a number in it.
func longName(prefix string, i int) string {
	digits := []byte("0000")
	for p := len(digits) - 1; p >= 0; p-- {
		digits[p] = byte('0' + i%10)
		i /= 10
	}
	return prefix + strings.Repeat("x", 58) + string(digits)
}

func epochs(t *testing.T, e Environment) {
	ctx, f := t.Context(), e.Elect()
	next := func(f store.Fence, cluster string, atLeast, want uint64) {
		t.Helper()
		got, err := e.Store.NextEpoch(ctx, f, cluster, atLeast)
		noError(t, err)
		if got != want {
			t.Errorf("epoch %d, want %d", got, want)
		}
	}
	noError(t, e.Store.CreateCluster(ctx, f, demo("c")))
	next(f, "c", 0, 1)
	next(f, "c", 0, 2)
	next(f, "c", 2, 3)
	next(f, "c", 100, 100)
	next(f, "c", 50, 101)
	next(f, "other", 0, 1)
	want := demo("c")
	want.Epoch = 101
	wantCluster(t, e.Store, want)
	all, err := e.Store.Clusters(ctx)
	noError(t, err)
	if len(all) != 1 || all[0].Epoch != 101 {
		t.Errorf("clusters %+v, want epoch 101", all)
	}

	// Neither a new leader nor a new cluster of that name begins again.
	f = e.Elect()
	noError(t, e.Store.DeleteCluster(ctx, f, "c"))
	next(f, "c", 0, 102)
	c := demo("c")
	c.Epoch = 5 // not the caller's to say
	noError(t, e.Store.CreateCluster(ctx, f, c))
	want.Epoch = 102
	wantCluster(t, e.Store, want)
	next(f, "c", 0, 103)

	_, err = e.Store.NextEpoch(ctx, f, "c", 1<<63)
	wantError(t, err, store.ErrInvalid, fault.Invalid)
	_, err = e.Store.NextEpoch(ctx, f, "", 0)
	wantError(t, err, store.ErrInvalid, fault.Invalid)
}

func epochsConcurrently(t *testing.T, e Environment) {
	ctx, f := t.Context(), e.Elect()
	const callers = 8
	got := make([]uint64, callers)
	var wg sync.WaitGroup
	for i := range callers {
		wg.Go(func() {
			var err error
			if got[i], err = e.Store.NextEpoch(ctx, f, "c", 0); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	slices.Sort(got)
	if diff := cmp.Diff([]uint64{1, 2, 3, 4, 5, 6, 7, 8}, got); diff != "" {
		t.Errorf("epochs (-want +got):\n%s", diff)
	}
}

func cancelled(t *testing.T, e Environment) {
	f := e.Elect()
	noError(t, e.Store.CreateCluster(t.Context(), f, demo("c")))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := e.Store.UpdateCluster(ctx, f, "c", func(c *store.Cluster) error { c.Reason = "late"; return nil }); !is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	if _, err := e.Store.Clusters(ctx); !is(err, context.Canceled) {
		t.Errorf("got %v, want context.Canceled", err)
	}
	wantCluster(t, e.Store, demo("c"))
}
