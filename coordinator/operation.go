package coordinator

import (
	"fmt"
	"sync"
	"time"

	"fermata/protocol/fault"
)

// operations admits one operation a cluster at a time, and keeps the deletion
// of checkpoints apart from everything that reads or writes the repository's
// packs: a round's pages are in no manifest before its commit, so a sweep
// beside it would take them for garbage.
//
// Concurrency: safe for use by several goroutines.
type operations struct {
	now func() time.Time // immutable

	mu       sync.Mutex
	running  map[string]operation // guarded by mu; by cluster
	users    map[string]int       // guarded by mu; what uses packs now, by its description
	deletion string               // guarded by mu; the checkpoint being deleted, or empty
}

// operation is what somebody else is told when it is in the way.
type operation struct {
	text  string // e.g. "checkpoint"
	begun time.Time
}

func newOperations() *operations {
	return &operations{now: time.Now, running: make(map[string]operation), users: make(map[string]int)}
}

// begin claims the cluster until end is called. On error (Busy) another
// operation has it, and the message names it.
func (o *operations) begin(cluster, text string) (end func(), err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if other, taken := o.running[cluster]; taken {
		return nil, fault.New(fault.Busy, "%s of cluster %s: %s is in progress since %s",
			text, cluster, other.text, o.now().Sub(other.begun).Round(time.Millisecond))
	}
	o.running[cluster] = operation{text: text, begun: o.now()}
	return sync.OnceFunc(func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		delete(o.running, cluster)
	}), nil
}

// usePacks keeps deletions away until end is called. On error (Busy) one is in
// progress.
func (o *operations) usePacks(text string) (end func(), err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.deletion != "" {
		return nil, fault.New(fault.Busy, "%s: deletion of checkpoint %s is in progress", text, o.deletion)
	}
	o.users[text]++
	return sync.OnceFunc(func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		if o.users[text]--; o.users[text] == 0 {
			delete(o.users, text)
		}
	}), nil
}

// beginDeletion keeps away everything that uses packs until end is called. On
// error (Busy) something uses them, and the message names it.
func (o *operations) beginDeletion(checkpoint string) (end func(), err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.deletion != "" {
		return nil, fault.New(fault.Busy, "delete checkpoint %s: deletion of checkpoint %s is in progress", checkpoint, o.deletion)
	}
	for text := range o.users {
		return nil, fault.New(fault.Busy, "delete checkpoint %s: %s is in progress", checkpoint, text)
	}
	o.deletion = checkpoint
	return sync.OnceFunc(func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.deletion = ""
	}), nil
}

// describe is how an operation on a cluster is called in messages.
func describe(operation, cluster string) string {
	return fmt.Sprintf("%s of cluster %s", operation, cluster)
}
