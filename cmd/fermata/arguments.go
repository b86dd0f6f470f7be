package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"fermata/cmd/internal/app"
)

// names takes the arguments that are named; one in brackets, the last, may be
// missing. An empty argument, often an unset variable of a script, is none.
func names(wanted ...string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		for i, w := range wanted {
			optional := strings.HasPrefix(w, "[")
			if i >= len(args) && !optional {
				return fmt.Errorf("%s: %s is missing", c.CommandPath(), w)
			}
			if i < len(args) && strings.TrimSpace(args[i]) == "" {
				return fmt.Errorf("%s: %s is empty", c.CommandPath(), strings.Trim(w, "[]"))
			}
		}
		if len(args) > len(wanted) {
			return fmt.Errorf("%s: unexpected argument %q", c.CommandPath(), args[len(wanted)])
		}
		return nil
	}
}

// checkpointID takes one argument, the ID of a checkpoint.
func checkpointID(c *cobra.Command, args []string) error {
	if err := names("ID")(c, args); err != nil {
		return err
	}
	if _, err := clusterOf(args[0]); err != nil {
		return fmt.Errorf("%s: %w", c.CommandPath(), err)
	}
	return nil
}

// clusterOf returns the cluster in a checkpoint's ID, CLUSTER@EPOCH.
func clusterOf(id string) (string, error) {
	cluster, epoch, found := strings.Cut(id, "@")
	if !found || cluster == "" || !isEpoch(epoch) {
		return "", fmt.Errorf("checkpoint %q: want CLUSTER@EPOCH, such as demo@7", id)
	}
	return cluster, nil
}

// isEpoch tells whether s is an epoch in the only form there is: decimal, no
// sign, no leading zero.
func isEpoch(s string) bool {
	n, err := strconv.ParseUint(s, 10, 64)
	return err == nil && n > 0 && strconv.FormatUint(n, 10) == s
}

// checkFrom refuses what can not be a checkpoint of the cluster.
func checkFrom(cluster, from string) error {
	if from == "latest" || isEpoch(from) {
		return nil
	}
	of, err := clusterOf(from)
	if err != nil {
		return app.Usagef("--from %q: want CLUSTER@EPOCH, EPOCH or latest", from)
	}
	if of != cluster {
		return app.Usagef("--from %s: that is a checkpoint of cluster %s, not of %s", from, of, cluster)
	}
	return nil
}
