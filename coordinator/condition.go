package coordinator

import (
	"context"
	"fmt"
	"strings"
	"time"

	"fermata/coordinator/record"
	"fermata/coordinator/store"
	"fermata/protocol/api"
	"fermata/protocol/fault"
)

// condition is the state of a cluster that was started and not stopped, as the nodes that
// answered report it, and the reason where not all of its guests run.
func condition(guests []*api.GuestStatus, answered map[string]*api.NodeInfo) (api.ClusterState, string) {
	var ended, others []string
	state := api.ClusterState_CLUSTER_STATE_RUNNING
	for _, g := range guests {
		switch g.GetState() {
		case api.GuestState_GUEST_STATE_DEAD, api.GuestState_GUEST_STATE_ABSENT:
			ended = append(ended, endingOf(g))
			state = api.ClusterState_CLUSTER_STATE_DEGRADED
		case api.GuestState_GUEST_STATE_UNKNOWN:
			if answered[g.GetNode()] == nil {
				others = append(others, fmt.Sprintf("guest %s: node %s does not answer", g.GetName(), g.GetNode()))
				state = api.ClusterState_CLUSTER_STATE_DEGRADED
			} else { // a monitor that is slow for a moment is no failure yet
				others = append(others, fmt.Sprintf("guest %s on node %s: its QEMU does not answer", g.GetName(), g.GetNode()))
			}
		case api.GuestState_GUEST_STATE_PAUSED:
			if g.GetReason() != "" {
				others = append(others, fmt.Sprintf("guest %s on node %s stands still: %s", g.GetName(), g.GetNode(), g.GetReason()))
			}
		}
	}
	if len(guests) > 0 && len(ended) == len(guests) {
		state = api.ClusterState_CLUSTER_STATE_ENDED
	}
	return state, strings.Join(append(ended, others...), "; ")
}

// endingOf says in words that a guest has ended, why and when.
func endingOf(g *api.GuestStatus) string {
	text := fmt.Sprintf("guest %s on node %s has ended", g.GetName(), g.GetNode())
	switch {
	case g.GetState() == api.GuestState_GUEST_STATE_ABSENT:
		return fmt.Sprintf("guest %s is not on node %s any more", g.GetName(), g.GetNode())
	case g.GetReason() == "":
		return text
	case g.GetEndedUnixNs() == 0:
		return fmt.Sprintf("%s (%s)", text, g.GetReason())
	default:
		return fmt.Sprintf("%s (%s at %s)", text, g.GetReason(), time.Unix(0, g.GetEndedUnixNs()).UTC().Format(time.RFC3339))
	}
}

// refuseEnded is an error if a guest of the cluster is known to have ended, from what the
// nodes said when they registered last: agents register at once when a guest ends.
func (t *term) refuseEnded(ctx context.Context, c store.Cluster) error {
	infos, err := t.c.store.Nodes(ctx)
	if err != nil {
		return fmt.Errorf("list nodes: %w", err)
	}
	var ended []string
	for _, info := range infos {
		for _, g := range info.GetGuests() {
			ofThisLife := c.Life == 0 || g.GetEpoch() == c.Life
			if g.GetCluster() == c.Name && g.GetState() == api.GuestState_GUEST_STATE_DEAD && ofThisLife && c.Assignments[g.GetName()] == g.GetNode() {
				ended = append(ended, endingOf(g))
			}
		}
	}
	if len(ended) == 0 {
		return nil
	}
	return fault.New(fault.Invalid, "%s; %s", strings.Join(ended, "; "), t.c.wayForward(ctx, c.Name))
}

// wayForward says what an operator can do about a cluster whose guests have ended.
func (c *Coordinator) wayForward(ctx context.Context, cluster string) string {
	afresh := fmt.Sprintf("`fermata cluster stop %s` and then `fermata cluster start %s` to boot it afresh", cluster, cluster)
	newest := c.newestCheckpoint(ctx, cluster)
	if newest == "" {
		return "it has no checkpoint; use " + afresh
	}
	return fmt.Sprintf("use `fermata rollback %s` to go back to its newest checkpoint, %s, or %s", cluster, newest, afresh)
}

// newestCheckpoint names the newest checkpoint that looks intact; empty: there is none, or the
// repository does not say.
func (c *Coordinator) newestCheckpoint(ctx context.Context, cluster string) string {
	entries, err := c.repo.Checkpoints(ctx, cluster)
	if err != nil {
		c.log.Debug("checkpoints cannot be listed", "cluster", cluster, "error", err)
		return ""
	}
	var newest uint64
	for _, e := range entries {
		if e.Err == nil {
			newest = max(newest, e.Epoch)
		}
	}
	if newest == 0 {
		return ""
	}
	return record.ID(cluster, newest)
}
