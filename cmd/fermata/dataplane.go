package main

import (
	"context"

	"github.com/spf13/cobra"

	"fermata/cmd/internal/app"
	"fermata/nodeagent/dataplane"
)

// newDataPlaneCommand is the process that carries guests' frames while their agent is
// not there. Agents start it; it is of no use by hand.
func newDataPlaneCommand(*app.Env) *cobra.Command {
	return &cobra.Command{
		Use:    "data-plane SOCKET",
		Short:  "Carry guests' frames, also while the agent restarts (started by the agent)",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			// It must outlive the signal that ends its agent.
			return dataplane.Main(context.WithoutCancel(cmd.Context()), args[0])
		},
	}
}
