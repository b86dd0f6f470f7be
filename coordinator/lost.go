package coordinator

import (
	"time"

	"fermata/protocol/api"
	"fermata/protocol/fault"
)

// watchNodes logs nodes that are lost and nodes that come back, as long as the term
// lasts, and knows at any time which are lost.
func (t *term) watchNodes() {
	ticker := time.NewTicker(min(time.Second, t.c.cfg.NodeLeaseTTL/4))
	defer ticker.Stop()
	for {
		infos, err := t.c.store.Nodes(t.ctx)
		if err == nil && time.Since(t.begun) > t.c.cfg.NodeLeaseTTL {
			t.noteLost(infos)
		}
		select {
		case <-ticker.C:
		case <-t.ctx.Done():
			return
		}
	}
}

// noteLost compares what is known with what was known a moment before. A node is lost
// when its lease has ended; a term waits for that of each node before it judges.
func (t *term) noteLost(infos []*api.NodeInfo) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, info := range infos {
		name, seen := info.GetName(), time.Unix(0, info.GetLastSeenUnixNs())
		_, was := t.lost[name]
		switch {
		case was && info.GetAlive():
			delete(t.lost, name)
			t.c.log.Info("node is back", "node", name)
		case !was && !info.GetAlive():
			t.lost[name] = seen
			t.c.log.Warn("node is lost: its agent does not register any more", "node", name,
				"last-seen", seen.UTC().Format(time.RFC3339), "guests", len(info.GetGuests()))
		}
	}
}

// lostNode says why a node is believed dead; nil while it is not.
func (t *term) lostNode(name string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	seen, lost := t.lost[name]
	if !lost {
		return nil
	}
	return fault.New(fault.Unavailable, "node %s is lost: not heard of since %s", name, seen.UTC().Format(time.RFC3339))
}
