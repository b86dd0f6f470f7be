package coordinator

import (
	"context"
	"errors"
	"fmt"
	"time"

	"fermata/coordinator/store"
	"fermata/protocol/api"
	"fermata/protocol/fault"
	"fermata/protocol/text"
)

// suggestBudget bounds the look for what may have been meant.
const suggestBudget = 2 * time.Second

// suggest adds to the refusal of a cluster's name which one may have been meant.
func (c *Coordinator) suggest(ctx context.Context, err error) error {
	var missing *store.Missing
	if !errors.As(err, &missing) || missing.What != "cluster" || fault.HintOf(err) != "" {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), suggestBudget)
	defer cancel()
	clusters, listErr := c.store.Clusters(ctx)
	if listErr != nil {
		return err
	}
	names := make([]string, len(clusters))
	for i, cl := range clusters {
		names[i] = cl.Name
	}
	return didYouMean(err, missing.Name, names)
}

func didYouMean(err error, name string, names []string) error {
	near := text.Near(name, names)
	if near == "" {
		return err
	}
	return fault.WithHint(err, fmt.Sprintf("did you mean %s?", near))
}

// requireCluster refuses the name of a cluster that is neither specified nor has left
// checkpoints. An empty list would look like one of a cluster that has none.
func (c *Coordinator) requireCluster(ctx context.Context, name string) error {
	_, err := c.store.Cluster(ctx, name)
	var missing *store.Missing
	if !errors.As(err, &missing) {
		return err
	}
	left, listErr := c.storage(ctx).Clusters(ctx)
	if listErr != nil {
		return err
	}
	return didYouMean(err, name, left)
}

// nodeNames lists nodes by name.
func nodeNames(infos []*api.NodeInfo) []string {
	names := make([]string, len(infos))
	for i, n := range infos {
		names[i] = n.GetName()
	}
	return names
}
