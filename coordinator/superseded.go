package coordinator

import (
	"context"
	"errors"
	"slices"

	"fermata/coordinator/store"
	"fermata/protocol/api"
)

// isSuperseded reports whether a guest belongs to an earlier life of its cluster. Of guests
// and clusters whose life nobody has noted, it says no.
func isSuperseded(c store.Cluster, g *api.GuestStatus) bool {
	return g.GetCluster() == c.Name && g.GetEpoch() != 0 && g.GetEpoch() < c.Life
}

// superseded lists the clusters of which a node has guests of an earlier life: it was cut
// off while they were restarted elsewhere. The reply to its registration orders its agent
// to end them.
//
// A cluster that a start or restart is working on is left out: that ends what has to be
// ended, when its turn has come.
func (t *term) superseded(ctx context.Context, info *api.NodeInfo) ([]*api.SupersededLife, error) {
	var out []*api.SupersededLife
	seen := map[string]bool{}
	for _, g := range info.GetGuests() {
		name := g.GetCluster()
		if seen[name] {
			continue
		}
		seen[name] = true
		c, err := t.c.store.Cluster(ctx, name)
		if errors.Is(err, store.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if c.State == api.ClusterState_CLUSTER_STATE_STARTING {
			continue
		}
		if slices.ContainsFunc(info.GetGuests(), func(g *api.GuestStatus) bool { return isSuperseded(c, g) }) {
			t.c.log.Warn("node has guests of an earlier life of a cluster and is told to end them",
				"node", info.GetName(), "cluster", name, "epoch", c.Life)
			out = append(out, &api.SupersededLife{Fence: t.fence.API(), Cluster: name, BeforeEpoch: c.Life})
		}
	}
	return out, nil
}

// leftovers lists the guests of earlier lives of a cluster, as their nodes have reported
// them last.
func leftovers(c store.Cluster, infos []*api.NodeInfo, live map[string]*api.NodeInfo) []*api.GuestStatus {
	if c.State == api.ClusterState_CLUSTER_STATE_STARTING {
		return nil // those that are about to be ended
	}
	var out []*api.GuestStatus
	for _, info := range infos {
		fresh := live[info.GetName()]
		if fresh == nil {
			fresh = info
		}
		for _, g := range fresh.GetGuests() {
			if !isSuperseded(c, g) {
				continue
			}
			if !info.GetAlive() {
				g.State = api.GuestState_GUEST_STATE_UNKNOWN
				g.Reason = "node " + info.GetName() + " " + (&nodeView{info: info}).silence()
			}
			out = append(out, g)
		}
	}
	return out
}
