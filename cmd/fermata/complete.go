package main

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"fermata/cmd/internal/remote"
	"fermata/protocol/api"
)

// completionTimeout bounds what a press of the tab key may take: longer feels
// like a hung shell.
const completionTimeout = time.Second

// suggest asks the coordinator for words; without an answer there are none.
func (o *operator) suggest(c *cobra.Command, toComplete string, ask func(context.Context, *remote.Conn) ([]string, error)) ([]cobra.Completion, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(c.Context(), completionTimeout)
	defer cancel()
	var words []string
	err := o.call(ctx, "complete", func(conn *remote.Conn) (err error) {
		words, err = ask(ctx, conn)
		return err
	})
	if err != nil {
		cobra.CompDebugln(err.Error(), false)
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	words = slices.DeleteFunc(words, func(w string) bool { return !strings.HasPrefix(w, toComplete) })
	slices.Sort(words)
	return words, cobra.ShellCompDirectiveNoFileComp
}

func (o *operator) completeClusters(c *cobra.Command, args []string, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return o.suggest(c, toComplete, func(ctx context.Context, conn *remote.Conn) ([]string, error) {
		reply, err := conn.ListClusters(ctx, &api.ListClustersRequest{})
		return each(reply.GetClusters(), (*api.Cluster).GetName), err
	})
}

func (o *operator) completeGuests(c *cobra.Command, args []string, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) != 1 {
		return o.completeClusters(c, args, toComplete)
	}
	return o.suggest(c, toComplete, func(ctx context.Context, conn *remote.Conn) ([]string, error) {
		cluster, err := conn.GetCluster(ctx, &api.GetClusterRequest{Name: args[0]})
		return each(cluster.GetGuests(), (*api.GuestStatus).GetName), err
	})
}

func (o *operator) completeCheckpoints(c *cobra.Command, args []string, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return o.suggestCheckpoints(c, "", toComplete)
}

// completeFrom completes --from with the checkpoints of the cluster named.
func (o *operator) completeFrom(c *cobra.Command, args []string, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective) {
	cluster := ""
	if len(args) > 0 {
		cluster = args[0]
	}
	words, directive := o.suggestCheckpoints(c, cluster, toComplete)
	if strings.HasPrefix("latest", toComplete) {
		words = append([]string{"latest"}, words...)
	}
	return words, directive
}

func (o *operator) suggestCheckpoints(c *cobra.Command, cluster, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective) {
	return o.suggest(c, toComplete, func(ctx context.Context, conn *remote.Conn) ([]string, error) {
		reply, err := conn.ListCheckpoints(ctx, &api.ListCheckpointsRequest{Cluster: cluster})
		return each(reply.GetCheckpoints(), (*api.Checkpoint).GetId), err
	})
}

func (o *operator) completeNodes(c *cobra.Command, _ []string, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective) {
	// Behind the last comma and the equals sign a node's name begins.
	begun := strings.LastIndexAny(toComplete, ",=") + 1
	words, directive := o.suggest(c, toComplete[begun:], func(ctx context.Context, conn *remote.Conn) ([]string, error) {
		reply, err := conn.ListNodes(ctx, &api.ListNodesRequest{})
		return each(reply.GetNodes(), (*api.NodeInfo).GetName), err
	})
	for i, w := range words {
		words[i] = toComplete[:begun] + w
	}
	return words, directive | cobra.ShellCompDirectiveNoSpace
}

// completeOneNode completes a node's name as the only argument.
func (o *operator) completeOneNode(c *cobra.Command, args []string, toComplete string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	words, _ := o.completeNodes(c, args, toComplete)
	return words, cobra.ShellCompDirectiveNoFileComp
}

func each[M any](messages []M, name func(M) string) []string {
	words := make([]string, 0, len(messages))
	for _, m := range messages {
		words = append(words, name(m))
	}
	return words
}
