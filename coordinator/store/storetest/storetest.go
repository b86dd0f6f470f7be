// Package storetest is the contract of store.Store as tests. Every
// implementation runs it.
package storetest

import (
	"testing"
	"time"

	"fermata/coordinator/store"
	"fermata/protocol/fault"
)

// Environment is one implementation under test.
type Environment struct {
	Store store.Store
	// Elect makes a new leader, deposes the one before, and returns the fence.
	Elect func() store.Fence
	// Expire ends the lease of a node at once.
	Expire func(node string)
}

// Run checks the contract. open makes an empty store without a leader, which
// lives as long as its test.
func Run(t *testing.T, open func(t *testing.T) Environment) {
	for _, c := range []struct {
		name string
		test func(*testing.T, Environment)
	}{
		{"ClusterLife", clusterLife},
		{"ClusterChange", clusterChange},
		{"Limits", limits},
		{"Epochs", epochs},
		{"EpochsConcurrently", epochsConcurrently},
		{"OneOperationAtATime", oneOperation},
		{"OperationChangesCluster", operationChangesCluster},
		{"SetAside", setAside},
		{"BeginConcurrently", beginConcurrently},
		{"Nodes", nodes},
		{"Heartbeats", heartbeats},
		{"Fencing", fencing},
		{"Renewal", renewal},
		{"CancelledContext", cancelled},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, open(t)) })
	}
}

func noError(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wantError checks both what an error is and its class.
func wantError(t *testing.T, err, want error, class fault.Class) {
	t.Helper()
	if !is(err, want) {
		t.Errorf("got error %v, want %v", err, want)
	}
	if got := fault.ClassOf(err); got != class {
		t.Errorf("%v: class %v, want %v", err, got, class)
	}
}

// someTime has no monotonic part, and nanoseconds.
var someTime = time.Unix(1700000000, 123456789)
