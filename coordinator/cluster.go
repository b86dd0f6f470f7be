package coordinator

import (
	"context"
	"fmt"
	"time"

	"fermata/coordinator/spec"
	"fermata/coordinator/store"
	"fermata/protocol/api"
	"fermata/protocol/fault"
)

// createCluster registers a cluster without starting it.
func (t *term) createCluster(ctx context.Context, req *api.CreateClusterRequest) (*api.Cluster, error) {
	s, canonical, err := readSpec(req.GetSpecYaml())
	if err != nil {
		return nil, err
	}
	if err := t.checkSupport(ctx, s); err != nil {
		return nil, err
	}
	release, err := t.ops.begin(s.Name, "create")
	if err != nil {
		return nil, err
	}
	defer release()
	if err := t.storeCluster(ctx, s.Name, canonical, time.Now()); err != nil {
		return nil, err
	}
	t.c.log.Info("cluster created", "cluster", s.Name, "guests", len(s.Guests))
	return t.c.describeCluster(ctx, s.Name)
}

// readSpec decodes a specification that came from outside.
func readSpec(yaml []byte) (s *spec.Spec, canonical []byte, err error) {
	switch n := len(yaml); {
	case n == 0:
		return nil, nil, fault.New(fault.Invalid, "specification: missing")
	case n > spec.MaxBytes:
		return nil, nil, fault.New(fault.Invalid, "specification: %d bytes, at most %d", n, spec.MaxBytes)
	}
	if s, err = spec.Decode("specification", yaml); err != nil {
		return nil, nil, err
	}
	// The working directory of this process means nothing to anybody.
	if err := s.RequireAbsolutePaths(); err != nil {
		return nil, nil, fault.Wrap(fault.Invalid, err, "")
	}
	if canonical, err = s.Encode(); err != nil {
		return nil, nil, err
	}
	return s, canonical, nil
}

// storeCluster adds the record of a stopped cluster.
func (t *term) storeCluster(ctx context.Context, name string, canonical []byte, created time.Time) error {
	// Repeating it would answer "exists" if the first attempt was made after
	// all, so an unknown outcome is the caller's to see.
	return t.c.store.CreateCluster(ctx, t.fence, store.Cluster{
		Name: name, Spec: canonical, Created: created, State: api.ClusterState_CLUSTER_STATE_STOPPED,
	})
}

// deleteCluster forgets a cluster that has no guests. Checkpoints stay.
func (t *term) deleteCluster(ctx context.Context, name string) error {
	release, err := t.ops.begin(name, "delete")
	if err != nil {
		return err
	}
	defer release()
	c, err := t.c.store.Cluster(ctx, name)
	if err != nil {
		return err
	}
	switch c.State {
	case api.ClusterState_CLUSTER_STATE_STOPPED:
	case api.ClusterState_CLUSTER_STATE_BROKEN:
		// It may be broken because of a node that will never come back, and must
		// be deletable all the same.
		seen, err := t.survey(ctx)
		if err != nil {
			return err
		}
		for _, g := range seen.guests(name) {
			return fault.New(fault.Busy, "cluster %s is broken and guest %s is still on node %s: stop it first", name, g.GetName(), g.GetNode())
		}
	default:
		return fault.New(fault.Busy, "cluster %s is %s: stop it first", name, stateWord(c.State))
	}
	err = t.surely(ctx, func(ctx context.Context) error { return t.c.store.DeleteCluster(ctx, t.fence, name) })
	if err != nil {
		return fmt.Errorf("delete cluster %s: %w", name, err)
	}
	t.c.log.Info("cluster deleted", "cluster", name)
	return nil
}

// stateWord is a cluster's state in messages.
func stateWord(s api.ClusterState) string {
	switch s {
	case api.ClusterState_CLUSTER_STATE_STOPPED:
		return "stopped"
	case api.ClusterState_CLUSTER_STATE_STARTING:
		return "starting"
	case api.ClusterState_CLUSTER_STATE_RUNNING:
		return "running"
	case api.ClusterState_CLUSTER_STATE_STOPPING:
		return "stopping"
	case api.ClusterState_CLUSTER_STATE_BROKEN:
		return "broken"
	case api.ClusterState_CLUSTER_STATE_DEGRADED:
		return "degraded"
	case api.ClusterState_CLUSTER_STATE_ENDED:
		return "ended"
	default:
		return s.String()
	}
}
