package coordinator

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"fermata/coordinator/deploy"
	"fermata/coordinator/store"
	"fermata/protocol/api"
	"fermata/protocol/fault"
)

// describeCluster is one cluster with the present state of its guests.
func (c *Coordinator) describeCluster(ctx context.Context, name string) (*api.Cluster, error) {
	rec, err := c.store.Cluster(ctx, name)
	if err != nil {
		return nil, err
	}
	all, err := c.withGuests(ctx, []store.Cluster{rec})
	if err != nil {
		return nil, err
	}
	return all[0], nil
}

// describeClusters is every cluster with the present state of its guests.
func (c *Coordinator) describeClusters(ctx context.Context) ([]*api.Cluster, error) {
	recs, err := c.store.Clusters(ctx)
	if err != nil {
		return nil, err
	}
	return c.withGuests(ctx, recs)
}

// withGuests asks the nodes that have guests of these clusters, each once.
func (c *Coordinator) withGuests(ctx context.Context, recs []store.Cluster) ([]*api.Cluster, error) {
	wanted := map[string]bool{}
	for _, rec := range recs {
		for _, node := range rec.Assignments {
			wanted[node] = true
		}
	}
	infos, err := c.store.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	live := c.liveGuests(ctx, infos, wanted)
	all := make([]*api.Cluster, 0, len(recs))
	for _, rec := range recs {
		out := &api.Cluster{
			Name: rec.Name, State: rec.State, Epoch: rec.Epoch, SpecYaml: rec.Spec,
			Reason: rec.Reason, CreatedUnixNs: rec.Created.UnixNano(),
		}
		s, err := specOf(rec)
		if err != nil {
			// One record that cannot be read must not hide the others.
			out.State, out.Reason = api.ClusterState_CLUSTER_STATE_BROKEN, err.Error()
			all = append(all, out)
			continue
		}
		for _, g := range s.GuestSpecs() {
			out.Guests = append(out.Guests, guestStatus(rec, g, live))
		}
		if rec.State == api.ClusterState_CLUSTER_STATE_RUNNING {
			out.State, out.Reason = condition(out.Guests, live)
		}
		out.Leftovers = leftovers(rec, infos, live)
		for _, node := range slices.Sorted(maps.Keys(live)) {
			for _, u := range live[node].GetUplinks() {
				if u.GetCluster() == rec.Name {
					out.Uplinks = append(out.Uplinks, u)
				}
			}
		}
		all = append(all, out)
	}
	return all, nil
}

// guestStatus joins what the record says of a guest with what its node says.
func guestStatus(rec store.Cluster, g *api.GuestSpec, live map[string]*api.NodeInfo) *api.GuestStatus {
	status := &api.GuestStatus{
		Cluster: rec.Name, Name: g.GetName(), MemoryBytes: g.GetMemoryBytes(), Vcpus: g.GetVcpus(),
		Adopted: g.GetAdopt() != "", State: api.GuestState_GUEST_STATE_ABSENT,
	}
	if rec.State == api.ClusterState_CLUSTER_STATE_STOPPED {
		return status
	}
	node, assigned := rec.Assignments[g.GetName()]
	if !assigned {
		return status
	}
	status.Node = node
	info := live[node]
	if info == nil {
		status.State = api.GuestState_GUEST_STATE_UNKNOWN
		return status
	}
	for _, there := range info.GetGuests() {
		if there.GetCluster() == rec.Name && there.GetName() == g.GetName() && !isSuperseded(rec, there) {
			return there
		}
	}
	return status
}

// liveGuests asks the nodes of these names for their state. One that does not answer is not in
// the result.
func (c *Coordinator) liveGuests(ctx context.Context, infos []*api.NodeInfo, names map[string]bool) map[string]*api.NodeInfo {
	live := map[string]*api.NodeInfo{}
	var mu sync.Mutex // guards live
	var wg sync.WaitGroup
	for _, info := range infos {
		if !names[info.GetName()] {
			continue
		}
		wg.Go(func() {
			fresh, err := c.deployer.Describe(ctx, nodeOf(info))
			if err != nil {
				c.log.Debug("node does not answer", "node", info.GetName(), "error", err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			live[info.GetName()] = fresh
		})
	}
	wg.Wait()
	return live
}

func nodeOf(info *api.NodeInfo) deploy.Node {
	return deploy.Node{Name: info.GetName(), Address: info.GetAddress(), FabricAddress: info.GetFabricAddress()}
}

// listNodes is every node as it registered.
func (c *Coordinator) listNodes(ctx context.Context) (*api.ListNodesReply, error) {
	infos, err := c.store.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(infos, func(a, b *api.NodeInfo) int { return cmp.Compare(a.GetName(), b.GetName()) })
	return &api.ListNodesReply{Nodes: infos}, nil
}

// describeNode is one node with what it says now; what it registered with when
// it does not answer.
func (c *Coordinator) describeNode(ctx context.Context, name string) (*api.NodeInfo, error) {
	info, err := c.node(ctx, name)
	if err != nil {
		return nil, err
	}
	fresh, err := c.deployer.Describe(ctx, nodeOf(info))
	if err != nil {
		for _, g := range info.GetGuests() {
			g.State = api.GuestState_GUEST_STATE_UNKNOWN
		}
		return info, nil
	}
	fresh.Address, fresh.FabricAddress = info.GetAddress(), info.GetFabricAddress()
	fresh.Alive, fresh.LastSeenUnixNs = info.GetAlive(), time.Now().UnixNano()
	return fresh, nil
}

// node is a node as it registered.
func (c *Coordinator) node(ctx context.Context, name string) (*api.NodeInfo, error) {
	infos, err := c.store.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	i, found := slices.BinarySearchFunc(infos, name, func(n *api.NodeInfo, name string) int { return strings.Compare(n.GetName(), name) })
	if !found {
		return nil, didYouMean(fault.New(fault.NotFound, "node %s has never registered", name), name, nodeNames(infos))
	}
	return infos[i], nil
}
