package coordinator

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"
	"time"

	"fermata/coordinator/deploy"
	"fermata/coordinator/rounds"
	"fermata/coordinator/spec"
	"fermata/coordinator/store"
	"fermata/protocol/api"
	"fermata/protocol/fault"
)

// storeRetry is the pause before a write whose outcome is not known is repeated.
const storeRetry = 200 * time.Millisecond

// errDeposed is why work ends when another coordinator leads.
var errDeposed = fault.New(fault.Unavailable, "this coordinator does not lead any more")

// term is the time in which this coordinator leads. Every change is made in a
// term and carries its fence, so that what a deposed leader still does is
// refused by the store and by the agents.
type term struct {
	c     *Coordinator   // immutable
	fence store.Fence    // immutable
	ops   *operations    // safe for several goroutines
	drive *rounds.Driver // immutable
	begun time.Time      // immutable

	// ctx ends with the leadership. It is held here because it is a property of
	// the term that all its operations share, whichever call began them.
	ctx context.Context

	work  sync.WaitGroup // calls, recoveries and the settling of this term
	aside chan struct{}  // buffered 1; raised when a round was set aside

	mu           sync.Mutex
	over         bool                 // guarded by mu; no work begins any more
	incarnations map[string]string    // guarded by mu; of each node's agent
	lost         map[string]time.Time // guarded by mu; nodes whose lease has ended, and when they were last seen
	// cancels aborts the round that runs on a cluster. Guarded by mu.
	cancels map[string]context.CancelCauseFunc
}

// enter admits one piece of work to the term. On error the term is over;
// otherwise the caller calls t.work.Done at its end.
func (t *term) enter() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over {
		return errDeposed
	}
	t.work.Add(1)
	return nil
}

// close lets no more work begin, and returns when none is under way. The term's
// context must have ended, so that all of it ends soon.
func (t *term) close() {
	t.mu.Lock()
	t.over = true
	t.mu.Unlock()
	t.work.Wait()
}

// life names one life of a cluster.
func (t *term) life(cluster string, epoch uint64) deploy.Life {
	return deploy.Life{Cluster: cluster, Epoch: epoch, Fence: t.fence.API()}
}

// unusedEpoch is an epoch that neither the repository nor a guest of the survey (nil: none)
// has seen. The store may have seen it.
func (t *term) unusedEpoch(ctx context.Context, cluster string, seen *survey) (uint64, error) {
	glance, cancel := t.c.glance(ctx)
	defer cancel()
	last, err := t.c.storage(glance).LastEpoch(glance, cluster)
	if err != nil {
		return 0, fmt.Errorf("last epoch of cluster %s in the repository: %w", cluster, RepositoryFault(err))
	}
	for _, g := range seen.guests(cluster) {
		last = max(last, g.GetEpoch())
	}
	if err := store.CheckEpoch(cluster, last); err != nil {
		return 0, fmt.Errorf("draw epoch of cluster %s: %w", cluster, err)
	}
	return last + 1, nil
}

// nextEpoch draws an epoch that neither the store nor the repository nor a guest of the
// survey has seen: a store that was lost and made anew must not use an epoch twice.
func (t *term) nextEpoch(ctx context.Context, cluster string, seen *survey) (uint64, error) {
	unused, err := t.unusedEpoch(ctx, cluster, seen)
	if err != nil {
		return 0, err
	}
	var epoch uint64
	err = t.surely(ctx, func(ctx context.Context) (err error) {
		epoch, err = t.c.store.NextEpoch(ctx, t.fence, cluster, unused)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("draw epoch of cluster %s: %w", cluster, err)
	}
	return epoch, nil
}

// surely repeats a write until its outcome is known: all writes may be repeated.
func (t *term) surely(ctx context.Context, write func(context.Context) error) error {
	for {
		err := write(ctx)
		switch fault.ClassOf(err) {
		case fault.Unknown, fault.Unavailable:
		default:
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), err)
		case <-time.After(storeRetry):
		}
	}
}

// begin records that an operation runs. phase, which may be nil, is what a successor needs
// to carry it on; change, which may be nil, is made to the cluster's record at the same time.
func (t *term) begin(ctx context.Context, kind store.Kind, cluster string, epoch uint64, phase []byte, change func(*store.Cluster) error) (id string, err error) {
	random := make([]byte, 8)
	if _, err := rand.Read(random); err != nil {
		return "", fmt.Errorf("name the operation: %w", err)
	}
	id = fmt.Sprintf("%s-%s", kind, hex.EncodeToString(random))
	op := store.Operation{ID: id, Kind: kind, Cluster: cluster, Epoch: epoch, Phase: phase, Started: time.Now()}
	err = t.surely(ctx, func(ctx context.Context) error { return t.c.store.BeginOperation(ctx, t.fence, op, change) })
	if err != nil {
		return "", fmt.Errorf("begin %s: %w", kind, err)
	}
	return id, nil
}

// end forgets an operation and changes the cluster's record at the same time.
// It goes on while the term lasts, whatever became of the caller.
func (t *term) end(cluster, id string, change func(*store.Cluster) error) error {
	err := t.surely(t.ctx, func(ctx context.Context) error {
		return t.c.store.EndOperation(ctx, t.fence, cluster, id, change)
	})
	if err != nil {
		return fmt.Errorf("record the end of operation %s: %w", id, err)
	}
	return nil
}

// specOf reads the specification in a cluster's record.
func specOf(c store.Cluster) (*spec.Spec, error) {
	s, err := spec.Decode(c.Name, c.Spec)
	if err != nil {
		return nil, fault.Wrap(fault.Corrupt, err, "stored specification of cluster %s", c.Name)
	}
	return s, nil
}

// settle is a change of the cluster's record to a state of rest.
func settle(state api.ClusterState, reason string) func(*store.Cluster) error {
	return func(c *store.Cluster) error {
		c.State, c.Reason = state, clip(reason, store.MaxReasonBytes)
		return nil
	}
}

// clip makes text fit a record: its beginning says most.
func clip(text string, limit int) string {
	if len(text) <= limit {
		return text
	}
	const mark = "…"
	cut := limit - len(mark)
	for cut > 0 && text[cut]&0xc0 == 0x80 { // not inside a UTF-8 sequence
		cut--
	}
	return text[:cut] + mark
}
