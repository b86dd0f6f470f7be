package nodeagent

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"fermata/nodeagent/journal"
	"fermata/protocol/api"
	"fermata/protocol/fault"
	"fermata/protocol/round"
)

// enter admits a coordinator's call that makes, releases or ends guests and
// waits for its turn; the caller ends the turn with leave.
func (a *Agent) enter(ctx context.Context, name string, f *api.Fence) (c *cluster, leave func(), err error) {
	if c, err = a.fence(ctx, name, f); err != nil {
		return nil, nil, err
	}
	if err := c.begin(ctx); err != nil {
		return nil, nil, err
	}
	// Meanwhile its coordinator may have been deposed.
	if _, err := a.fence(ctx, name, f); err != nil {
		c.end()
		return nil, nil, err
	}
	return c, c.end, nil
}

// begin waits for the cluster's turn. A caller that gave up does not get it: an
// old order must not be carried out behind newer ones.
func (c *cluster) begin(ctx context.Context) error {
	select {
	case c.op <- struct{}{}:
		if ctx.Err() == nil {
			return nil
		}
		c.end() // select chooses freely
	case <-ctx.Done():
	}
	return fmt.Errorf("wait for another call on cluster %s: %w", c.name, context.Cause(ctx))
}

func (c *cluster) end() { <-c.op }

// fence admits a coordinator's call on a cluster, or refuses one that was
// deposed. A new store replaces the old one's tokens; the coordinator of a lost
// store cannot come back, because its store is remembered as retired.
func (a *Agent) fence(ctx context.Context, name string, f *api.Fence) (*cluster, error) {
	if err := checkName("cluster", name); err != nil {
		return nil, err
	}
	if f.GetToken() == 0 || f.GetStore() == 0 {
		return nil, fault.New(fault.Invalid, "fence: token or store missing")
	}
	a.mu.Lock()
	c, ok := a.clusters[name]
	if !ok {
		c = newCluster(journal.Cluster{Name: name})
		a.clusters[name] = c
	}
	a.mu.Unlock()

	newer, err := a.admit(c, f)
	if err != nil || newer == nil {
		return c, err
	}
	// The rounds must know it before this call is acted on (Member.Fence).
	return c, newer(ctx)
}

// admit checks f against what the cluster has seen. If f is newer it is
// journalled, and what comes back tells the cluster's rounds.
func (a *Agent) admit(c *cluster, f *api.Fence) (tell func(context.Context) error, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	rec := c.rec
	switch {
	case slices.Contains(rec.RetiredStores, f.Store):
		return nil, fault.New(fault.Stale, "coordinator of a store that was replaced (store %x)", f.Store)
	case rec.Store == f.Store && f.Token < rec.Fence:
		return nil, fault.New(fault.Stale, "coordinator was deposed (token %d, newest %d)", f.Token, rec.Fence)
	case rec.Store == f.Store && f.Token == rec.Fence:
		return nil, nil
	case rec.Store != 0 && rec.Store != f.Store:
		rec.RetiredStores = append(slices.Clone(rec.RetiredStores), rec.Store)
	}
	rec.Store, rec.Fence = f.Store, f.Token
	if err := a.journal.PutCluster(rec); err != nil {
		return nil, err
	}
	c.rec = rec
	r := c.round
	if r == nil {
		return nil, nil
	}
	token := memberToken(len(rec.RetiredStores), f.Token)
	return func(ctx context.Context) error { return r.fence(ctx, token) }, nil
}

// memberToken makes tokens of successive stores comparable: those of a later
// store are larger. etcd revisions stay far below 2^48.
func memberToken(retired int, token uint64) round.Token {
	return round.Token(uint64(retired)<<48 | token&(1<<48-1))
}

// newestFences returns the newest fence that this node has obeyed of each store.
func (a *Agent) newestFences() []*api.Fence {
	newest := map[uint64]uint64{}
	for _, c := range a.allClusters() {
		rec := c.record()
		newest[rec.Store] = max(newest[rec.Store], rec.Fence)
	}
	delete(newest, 0) // clusters that nobody has fenced yet
	out := make([]*api.Fence, 0, len(newest))
	for _, s := range slices.Sorted(maps.Keys(newest)) {
		out = append(out, &api.Fence{Store: s, Token: newest[s]})
	}
	return out
}
