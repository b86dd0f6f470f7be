package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"fermata/cmd/internal/app"
	"fermata/cmd/internal/remote"
	"fermata/cmd/internal/view"
	"fermata/coordinator"
	"fermata/protocol/api"
	"fermata/protocol/fault"
	"fermata/protocol/round"
)

// cutAuto leaves the kind of cut to the coordinator.
const cutAuto = "auto"

func newCheckpointCommand(o *operator) *cobra.Command {
	var req api.CheckpointRequest
	var mode, cut string
	c := &cobra.Command{
		Use:   "checkpoint CLUSTER",
		Short: "Take a checkpoint of a running cluster",
		Long: `Take a checkpoint of a running cluster and wait until it is durable. The guests
stand still for milliseconds only. An interrupt aborts the round unless it is
committed already, and the command says which of the two it is. The guests keep
running.

Memory is captured live: write-protected in the pause, and stored while the guest
runs. Where that cannot be, as with a device that writes memory behind QEMU's
back, --mode auto copies it in the pause and the report tells why; --mode live
refuses, and says what to change.

Each guest is cut on its own, and the frames between them say on which side of the
cut they were sent (--cut coloured). Where guests also reach each other on networks
that are not the fabric's, all of them have to stand still at one instant (--cut
barrier), and the slowest node decides the pause of all. That is the default when a
guest of the cluster was adopted.`,
		Example: `  fermata checkpoint demo
  fermata checkpoint demo --label before-upgrade -o json
  fermata checkpoint demo --mode live --audit`,
		Args:              names("CLUSTER"),
		ValidArgsFunction: o.completeClusters,
		RunE: func(c *cobra.Command, args []string) error {
			req.Cluster = args[0]
			if err := coordinator.CheckLabel(req.Label); err != nil {
				return app.Usagef("--%w", err)
			}
			m, err := round.ParseMode(mode)
			if err != nil {
				return app.Usagef("--mode %s: want auto, live or stop", mode)
			}
			req.Mode = api.CaptureMode(m)
			if err := (round.Options{Mode: m, Full: req.Full, Audit: req.Audit}).Check(); err != nil {
				return app.Usage(err)
			}
			if cut != cutAuto {
				kind, err := round.ParseCut(cut)
				if err != nil {
					return app.Usagef("--cut %s: want %s, coloured or barrier", cut, cutAuto)
				}
				req.Cut = api.Cut(kind).Enum()
			}
			if req.DiscardChannels {
				o.env.Notice("warning: --discard-channels: a restart from this checkpoint loses the frames that were on the wire")
			}
			o.env.OnInterrupt("asking the coordinator to abort the checkpoint; the guests keep running")
			return o.takeCheckpoint(c.Context(), &req)
		},
	}
	c.Flags().StringVar(&req.Label, "label", "", "free `text` kept with the checkpoint")
	c.Flags().StringVar(&mode, "mode", round.ModeAuto.String(), "how memory is captured: auto, live or stop")
	c.Flags().StringVar(&cut, "cut", cutAuto, "how the guests' cuts become one: auto, coloured or barrier")
	c.Flags().BoolVar(&req.Full, "full", false, "read all memory, whatever is known of earlier checkpoints")
	c.Flags().BoolVar(&req.Audit, "audit", false, "read all memory, and fail if a change was missed")
	c.Flags().BoolVar(&req.DiscardChannels, "discard-channels", false, "leave the frames on the wire out: the control of the consistency proof")
	if err := c.Flags().MarkHidden("discard-channels"); err != nil {
		panic(err) // the flag is defined above
	}
	return o.follows(c)
}

func (o *operator) takeCheckpoint(ctx context.Context, req *api.CheckpointRequest) error {
	return o.call(ctx, "checkpoint "+req.GetCluster(), func(conn *remote.Conn) error {
		call, end := cancelling(ctx, conn, req.GetCluster())
		defer end()
		event, err := o.follow(call, func(ctx context.Context) (grpc.ServerStreamingClient[api.Event], error) {
			return conn.TakeCheckpoint(ctx, req)
		})
		if interrupted := ctx.Err() != nil; interrupted && fault.ClassOf(err) == fault.Aborted {
			return fmt.Errorf("%w; the checkpoint was aborted, and the guests keep running", app.ErrInterrupted)
		} else if interrupted && err == nil {
			o.env.Notice("the checkpoint was committed before it could be aborted")
		}
		if err != nil {
			return err
		}
		if event.GetCheckpoint() == nil {
			return wrongResult(event)
		}
		return o.print(view.OfCheckpoint(event.GetCheckpoint()))
	})
}

// cancelBudget is how long the coordinator may take to hear that a checkpoint is
// to be aborted, and its word how that one ended to come after it said that none runs.
const cancelBudget = 5 * time.Second

// cancelling returns the context of a call that takes a checkpoint. When ctx ends
// the coordinator is asked to abort the round, and the call goes on until it says
// how the round ended. Only if the coordinator cannot be asked does the call end.
func cancelling(ctx context.Context, conn api.OperatorClient, cluster string) (_ context.Context, end func()) {
	call, giveUp := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		asking, cancel := context.WithTimeout(call, cancelBudget)
		defer cancel()
		_, err := conn.CancelCheckpoint(asking, &api.CancelCheckpointRequest{Cluster: cluster})
		if fault.ClassOf(err) == fault.NotFound { // it has not begun, or has just ended
			<-asking.Done()
		}
		if err != nil {
			giveUp()
		}
	})
	return call, func() {
		stop()
		giveUp()
	}
}

func newCheckpointsCommand(o *operator) *cobra.Command {
	return newGroup("checkpoints", "List, show, verify, compare, move and delete checkpoints",
		newCheckpointsListCommand(o),
		newCheckpointsShowCommand(o),
		newCheckpointsVerifyCommand(o),
		newCheckpointsDeleteCommand(o),
		newCheckpointsDiffCommand(o),
		newCheckpointsExportCommand(o),
		newCheckpointsImportCommand(o),
	)
}

func newCheckpointsListCommand(o *operator) *cobra.Command {
	return o.reads(&cobra.Command{
		Use:   "list [CLUSTER]",
		Short: "List the checkpoints of one cluster or of all, oldest first",
		Example: `  fermata checkpoints list
  fermata checkpoints list demo -o json`,
		Args:              names("[CLUSTER]"),
		ValidArgsFunction: o.completeClusters,
		RunE: func(c *cobra.Command, args []string) error {
			req, do := &api.ListCheckpointsRequest{}, "list checkpoints"
			if len(args) > 0 {
				req.Cluster, do = args[0], "list checkpoints of "+args[0]
			}
			return o.call(c.Context(), do, func(conn *remote.Conn) error {
				reply, err := conn.ListCheckpoints(c.Context(), req)
				if err != nil {
					return err
				}
				return o.print(view.OfCheckpoints(reply))
			})
		},
	})
}

func newCheckpointsShowCommand(o *operator) *cobra.Command {
	return o.reads(&cobra.Command{
		Use:   "show ID",
		Short: "Show a checkpoint and where each guest's pause went",
		Example: `  fermata checkpoints show demo@7
  fermata checkpoints show demo@7 -o json | jq '.guests[].pause_ms'`,
		Args:              checkpointID,
		ValidArgsFunction: o.completeCheckpoints,
		RunE: func(c *cobra.Command, args []string) error {
			return o.call(c.Context(), "show checkpoint "+args[0], func(conn *remote.Conn) error {
				checkpoint, err := conn.GetCheckpoint(c.Context(), &api.GetCheckpointRequest{Id: args[0]})
				if err != nil {
					return err
				}
				return o.print(view.OfCheckpoint(checkpoint))
			})
		},
	})
}

func newCheckpointsVerifyCommand(o *operator) *cobra.Command {
	return o.follows(&cobra.Command{
		Use:   "verify ID",
		Short: "Read back and verify every byte of a checkpoint",
		Long: `Read back and verify every byte of a checkpoint. Damage is told with the guests
it hits, and the exit status is that of class corrupt.`,
		Example:           "  fermata checkpoints verify demo@7",
		Args:              checkpointID,
		ValidArgsFunction: o.completeCheckpoints,
		RunE: func(c *cobra.Command, args []string) error {
			ctx := c.Context()
			o.env.OnInterrupt("the verification is given up, guests keep running")
			return o.call(ctx, "verify checkpoint "+args[0], func(conn *remote.Conn) error {
				event, err := o.follow(ctx, func(ctx context.Context) (grpc.ServerStreamingClient[api.Event], error) {
					return conn.VerifyCheckpoint(ctx, &api.VerifyCheckpointRequest{Id: args[0]})
				})
				if err != nil {
					return err
				}
				if event.GetVerify() == nil {
					return wrongResult(event)
				}
				doc := view.OfVerifyReport(event.GetVerify())
				if err := o.print(doc); err != nil {
					return err
				}
				if !doc.Intact {
					return fault.New(fault.Corrupt, "damaged objects: %d, first %s", len(doc.Damage), doc.Damage[0].Object)
				}
				return nil
			})
		},
	})
}

func newCheckpointsDeleteCommand(o *operator) *cobra.Command {
	return o.confirms(o.reads(&cobra.Command{
		Use:               "delete ID",
		Short:             "Delete a checkpoint",
		Example:           "  fermata checkpoints delete demo@7",
		Args:              checkpointID,
		ValidArgsFunction: o.completeCheckpoints,
		RunE: func(c *cobra.Command, args []string) error {
			return o.call(c.Context(), "delete checkpoint "+args[0], func(conn *remote.Conn) error {
				reply, err := conn.DeleteCheckpoint(c.Context(), &api.DeleteCheckpointRequest{Id: args[0]})
				if err != nil {
					return err
				}
				freed := reply.GetFreedBytes()
				return o.print(view.Deleted{Deleted: args[0], FreedBytes: &freed})
			})
		},
	}), func(args []string) string {
		return "checkpoint " + args[0] + " is deleted for good"
	})
}
