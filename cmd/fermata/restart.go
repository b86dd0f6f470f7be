package main

import (
	"context"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"fermata/cmd/internal/remote"
	"fermata/cmd/internal/view"
	"fermata/protocol/api"
)

func newRestartCommand(o *operator) *cobra.Command {
	return newPutBackCommand(o, &cobra.Command{
		Use:   "restart CLUSTER",
		Short: "Restart a stopped cluster from a checkpoint",
		Long: `Restart a stopped cluster from a checkpoint, on any nodes that fit. With --from latest,
a damaged checkpoint is skipped for the newest intact one before it.

All nodes first check whether they can make the guests: memory, QEMU and machine,
base images, and every page of the checkpoint. --dry-run ends there.

A guest goes on with the time of its checkpoint, and its monotonic clock with the
second it stood at. --step-clock sets the real-time clocks of all guests first, by
QEMU's guest agent (guest_agent: true in the specification); who does without has
chrony or phc2sys do it in the guest, a little later.

--on takes two kinds of entries: GUEST=NODE puts one guest on one node, a plain
NODE restricts the whole cluster to the nodes so listed.`,
		Example: `  fermata restart demo
  fermata restart demo --from demo@7 --dry-run
  fermata restart demo --on a=node3,b=node4
  fermata restart demo --on node3 --on node4`,
	}, false)
}

func newRollbackCommand(o *operator) *cobra.Command {
	return newPutBackCommand(o, &cobra.Command{
		Use:   "rollback CLUSTER",
		Short: "Roll a running cluster back to a checkpoint",
		Long: `Roll a cluster back to a checkpoint while it may still be running. What its guests did
since the checkpoint is lost.

The guests that run are ended only when everything has been checked, and every page of
the checkpoint has been read. If anything is wrong, they go on.`,
		Example: `  fermata rollback demo
  fermata rollback demo --from 7 --dry-run`,
	}, true)
}

// newPutBackCommand completes c, which differs between restart and rollback in
// its words and in one field of the request.
func newPutBackCommand(o *operator, c *cobra.Command, rollback bool) *cobra.Command {
	var from string
	var on []string
	var dryRun, stepClock bool
	c.Args = names("CLUSTER")
	c.ValidArgsFunction = o.completeClusters
	c.RunE = func(cmd *cobra.Command, args []string) error {
		where, err := parseOn(on)
		if err != nil {
			return err
		}
		if err := checkFrom(args[0], from); err != nil {
			return err
		}
		req := &api.RestartRequest{
			Cluster: args[0], From: from, On: where.guests, Nodes: where.nodes, DryRun: dryRun, Rollback: rollback, StepClock: stepClock,
		}
		o.env.OnInterrupt(cmd.Name() + " is given up, guests that run keep running")
		return o.putBack(cmd.Context(), cmd.Name()+" "+args[0], req)
	}
	c.Flags().StringVar(&from, "from", "latest", "checkpoint: CLUSTER@EPOCH, EPOCH or latest")
	c.Flags().StringArrayVar(&on, "on", nil, "placement: `GUEST=NODE`[,…], or NODE[,…] to use only these nodes")
	c.Flags().BoolVar(&stepClock, "step-clock", false, "set the guests' clocks to the present before any frame flows between them")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "check everything and show which guest would go where, but change nothing")
	if err := c.RegisterFlagCompletionFunc("from", o.completeFrom); err != nil {
		panic(err) // the flag is defined above
	}
	if err := c.RegisterFlagCompletionFunc("on", o.completeNodes); err != nil {
		panic(err) // the flag is defined above
	}
	return o.confirms(o.follows(c), func(args []string) string {
		if !rollback || dryRun {
			return ""
		}
		return "cluster " + args[0] + " is rolled back to checkpoint " + from + ", and what its guests did since is lost"
	})
}

func (o *operator) putBack(ctx context.Context, do string, req *api.RestartRequest) error {
	return o.call(ctx, do, func(conn *remote.Conn) error {
		event, err := o.follow(ctx, func(ctx context.Context) (grpc.ServerStreamingClient[api.Event], error) {
			return conn.Restart(ctx, req)
		})
		if err != nil {
			return err
		}
		if event.GetRestart() == nil {
			return wrongResult(event)
		}
		return o.print(view.OfRestartReport(event.GetRestart()))
	})
}
