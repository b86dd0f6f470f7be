package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"fermata/cmd/internal/app"
	"fermata/cmd/internal/remote"
	"fermata/cmd/internal/view"
	"fermata/coordinator/spec"
	"fermata/protocol/api"
	"fermata/protocol/fault"
)

func newAdoptCommand(o *operator) *cobra.Command {
	c := &cobra.Command{
		Use:   "adopt CLUSTER GUEST=NODE:SOCKET...",
		Short: "Put QEMUs that somebody else started under checkpoint",
		Long: `Make a cluster of QEMUs that run already: started by a job script, by
libvirt, by hand. Neither they nor their command lines are changed.

SOCKET is a QMP socket on which the QEMU itself listens and that nobody else
uses (-qmp unix:SOCKET,server=on,wait=off; under libvirt by
qemu:commandline). Their networks are not Fermata's: frames in flight
between them are not part of a checkpoint. A guest that writes to disks is
refused.

Checkpoints are taken as of any cluster. To restart from one, start the like
of each QEMU at the same socket with -S -incoming defer, then use
"fermata restart". "fermata release" lets go of the guests; they run on.`,
		Example: `  fermata adopt job42 a=node1:/run/job42/a.qmp b=node2:/run/job42/b.qmp
  fermata checkpoint job42
  fermata release job42`,
		Args: cobra.MinimumNArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			data, err := adoptedSpec(args[0], args[1:])
			if err != nil {
				return err
			}
			do := "adopt cluster " + args[0]
			return o.changeCluster(c.Context(), do, "the guests are let go of and run on",
				func(ctx context.Context, conn *remote.Conn) (grpc.ServerStreamingClient[api.Event], error) {
					if _, err := conn.CreateCluster(ctx, &api.CreateClusterRequest{SpecYaml: data}); err != nil {
						return nil, err
					}
					stream, err := conn.StartCluster(ctx, &api.StartClusterRequest{Name: args[0]})
					if err != nil {
						return nil, errors.Join(err, forgetCluster(ctx, conn, args[0]))
					}
					return &adoption{ServerStreamingClient: stream, undo: func() error { return forgetCluster(ctx, conn, args[0]) }}, nil
				})
		},
	}
	return o.follows(c)
}

// adoption is the start of a cluster that is to be forgotten if it fails.
type adoption struct {
	grpc.ServerStreamingClient[api.Event]
	undo  func() error
	whole bool // the result came
}

func (a *adoption) Recv() (*api.Event, error) {
	event, err := a.ServerStreamingClient.Recv()
	if err == nil {
		a.whole = a.whole || event.GetResult() != nil
		return event, nil
	}
	if !a.whole {
		err = errors.Join(err, a.undo())
	}
	return nil, err
}

// forgetBudget bounds the removal of a cluster that could not be adopted.
const forgetBudget = 15 * time.Second

func forgetCluster(ctx context.Context, conn *remote.Conn, name string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), forgetBudget)
	defer cancel()
	if _, err := conn.DeleteCluster(ctx, &api.DeleteClusterRequest{Name: name}); err != nil {
		return fmt.Errorf("forget cluster %s: %w", name, err)
	}
	return nil
}

// adoptedSpec makes a specification of arguments GUEST=NODE:SOCKET.
func adoptedSpec(cluster string, guests []string) ([]byte, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "name: %q\nguests:\n", cluster)
	for _, g := range guests {
		name, where, _ := strings.Cut(g, "=")
		node, socket, found := strings.Cut(where, ":")
		if !found || name == "" || node == "" || !strings.HasPrefix(socket, "/") {
			return nil, app.Usagef("%q: want GUEST=NODE:SOCKET with an absolute path", g)
		}
		fmt.Fprintf(&b, "  - name: %q\n    node: %q\n    adopt: %q\n", name, node, socket)
	}
	s, err := spec.Decode("arguments", []byte(b.String()))
	if err != nil {
		return nil, app.Usage(err)
	}
	return s.Encode()
}

func newReleaseCommand(o *operator) *cobra.Command {
	return o.follows(&cobra.Command{
		Use:   "release CLUSTER",
		Short: "Let go of adopted guests; they run on, and checkpoints stay",
		Long: `Undo "fermata adopt": nothing of Fermata is left at the guests, which run on,
and the cluster is forgotten. Its checkpoints stay.

A cluster with guests that Fermata itself started is refused: they would end.`,
		Example:           "  fermata release job42",
		Args:              names("CLUSTER"),
		ValidArgsFunction: o.completeClusters,
		RunE: func(c *cobra.Command, args []string) error {
			o.env.OnInterrupt("guests run on")
			return o.call(c.Context(), "release cluster "+args[0], func(conn *remote.Conn) error {
				cluster, err := conn.GetCluster(c.Context(), &api.GetClusterRequest{Name: args[0]})
				if err != nil {
					return err
				}
				for _, g := range cluster.GetGuests() {
					if !g.GetAdopted() {
						return fault.New(fault.Invalid, "guest %s is not adopted and would end; use cluster stop", g.GetName())
					}
				}
				_, err = o.follow(c.Context(), func(ctx context.Context) (grpc.ServerStreamingClient[api.Event], error) {
					return conn.StopCluster(ctx, &api.StopClusterRequest{Name: args[0]})
				})
				if err != nil {
					return err
				}
				if _, err := conn.DeleteCluster(c.Context(), &api.DeleteClusterRequest{Name: args[0]}); err != nil {
					return err
				}
				return o.print(view.Deleted{Deleted: args[0]})
			})
		},
	})
}
