package coordinator

import (
	"context"
	"errors"
	"fmt"
	"time"

	"fermata/coordinator/store"
	"fermata/protocol/api"
	"fermata/protocol/fault"
)

// maintain maintains the store as long as the term lasts.
func (t *term) maintain() {
	ticker := time.NewTicker(store.MaintainEvery)
	defer ticker.Stop()
	for {
		if err := t.c.store.Maintain(t.ctx, t.fence); err != nil && t.ctx.Err() == nil {
			t.c.log.Warn("the store needs attention", "error", err)
		}
		select {
		case <-ticker.C:
		case <-t.ctx.Done():
			return
		}
	}
}

// checkHistory compares the fences that a node has obeyed with this term's. A newer
// one of the same store was given by a later leader, unless there is none: then the
// store was put back to an earlier state, as etcd is from a snapshot, and the fence
// was given in the time that is lost. Every node would refuse this leader, and those
// after it, as deposed. So the store gets another identity, which nodes take for a
// new store, and whose leaders they obey; of the old one they obey nobody any more.
func (t *term) checkHistory(ctx context.Context, node string, fences []*api.Fence) error {
	var newest uint64
	for _, f := range fences {
		if f.GetStore() == t.fence.Store {
			newest = max(newest, f.GetToken())
		}
	}
	if newest <= t.fence.Token {
		return nil
	}
	// Only a leader that still leads can renew: one that was deposed is refused here.
	err := t.c.store.Renew(ctx, t.fence)
	if errors.Is(err, store.ErrFenced) {
		return fmt.Errorf("register node %s: %w", node, err)
	}
	if err != nil {
		return fmt.Errorf("renew the identity of the store: %w", err)
	}
	t.c.log.Error("the store was put back to an earlier state, as from a snapshot of etcd: it has a new identity now, and what was recorded since is lost; compare cluster list with what runs",
		"node", node, "fence", t.fence.Token, "newest-fence-of-node", newest, "store", fmt.Sprintf("%x", t.fence.Store))
	return fault.New(fault.Unavailable, "the store was put back to an earlier state; the coordinator takes it over with a new identity")
}
