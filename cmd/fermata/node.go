package main

import (
	"github.com/spf13/cobra"

	"fermata/cmd/internal/remote"
	"fermata/cmd/internal/view"
	"fermata/protocol/api"
)

func newNodeCommand(o *operator) *cobra.Command {
	return newGroup("node", "List and show nodes",
		o.reads(&cobra.Command{
			Use:     "list",
			Short:   "List the nodes",
			Example: "  fermata node list\n  fermata node list -o json | jq '.nodes[] | select(.alive) | .name'",
			Args:    cobra.NoArgs,
			RunE: func(c *cobra.Command, _ []string) error {
				return o.call(c.Context(), "list nodes", func(conn *remote.Conn) error {
					reply, err := conn.ListNodes(c.Context(), &api.ListNodesRequest{})
					if err != nil {
						return err
					}
					return o.print(view.OfNodes(reply))
				})
			},
		}),
		o.reads(&cobra.Command{
			Use:               "show NODE",
			Short:             "Show a node and its guests",
			Example:           "  fermata node show node1",
			Args:              names("NODE"),
			ValidArgsFunction: o.completeOneNode,
			RunE: func(c *cobra.Command, args []string) error {
				return o.call(c.Context(), "show node "+args[0], func(conn *remote.Conn) error {
					node, err := conn.GetNode(c.Context(), &api.GetNodeRequest{Name: args[0]})
					if err != nil {
						return err
					}
					return o.print(view.OfNode(node))
				})
			},
		}),
	)
}
