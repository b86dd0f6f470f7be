package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
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

func newClusterCommand(o *operator) *cobra.Command {
	return newGroup("cluster", "Create, start, show and stop clusters",
		newClusterCreateCommand(o),
		newClusterListCommand(o),
		newClusterShowCommand(o),
		newClusterStartCommand(o),
		newClusterStopCommand(o),
		newClusterDeleteCommand(o),
		newClusterConsoleCommand(o),
	)
}

func newClusterCreateCommand(o *operator) *cobra.Command {
	var file string
	c := &cobra.Command{
		Use:   "create -f FILE",
		Short: "Register a cluster without starting it",
		Long: `Register the cluster that a specification describes. Nothing is started.

The specification is checked here first, and every problem in it is told with
its line. Relative paths in it are relative to the file.`,
		Example: `  fermata cluster create -f configs/cluster.yaml
  generate-spec | fermata cluster create -f -`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			name, data, err := loadSpec(o.env, file)
			if err != nil {
				return err
			}
			return o.call(c.Context(), "create cluster "+name, func(conn *remote.Conn) error {
				cluster, err := conn.CreateCluster(c.Context(), &api.CreateClusterRequest{SpecYaml: data})
				if err != nil {
					return err
				}
				return o.print(view.OfCluster(cluster))
			})
		},
	}
	c.Flags().StringVarP(&file, "file", "f", "", "specification `FILE`, - for standard input")
	if err := c.MarkFlagRequired("file"); err != nil {
		panic(err) // the flag is defined above
	}
	return o.reads(c)
}

// loadSpec reads and checks a specification, and returns it complete, with the
// cluster's name.
func loadSpec(env *app.Env, file string) (name string, data []byte, err error) {
	in, dir := io.NopCloser(env.Stdin), "."
	shown := "standard input"
	if file != "-" {
		shown, dir = file, filepath.Dir(file)
		in, err = os.Open(file)
		if errors.Is(err, fs.ErrNotExist) {
			return "", nil, fault.Wrap(fault.NotFound, err, "read specification")
		}
		if err != nil {
			return "", nil, fmt.Errorf("read specification: %w", err)
		}
	}
	defer in.Close() // only read
	raw, err := io.ReadAll(io.LimitReader(in, spec.MaxBytes+1))
	if err != nil {
		return "", nil, fmt.Errorf("read specification %s: %w", shown, err)
	}
	s, err := spec.Decode(shown, raw)
	if err != nil {
		return "", nil, specError(env, shown, err)
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return "", nil, fmt.Errorf("resolve paths of %s: %w", shown, err)
	}
	s.ResolvePaths(dir)
	if data, err = s.Encode(); err != nil {
		return "", nil, fmt.Errorf("encode specification %s: %w", shown, err)
	}
	return s.Name, data, nil
}

// specError shows several problems a line each, as editors read them, before
// the one line of the error.
func specError(env *app.Env, file string, err error) error {
	var problems *spec.Problems
	if !errors.As(err, &problems) || len(problems.List) < 2 {
		return app.Usage(err)
	}
	fmt.Fprintln(env.Stderr, problems.Error())
	return app.Usagef("read specification %s: %d problems", file, len(problems.List)+problems.Omitted)
}

func newClusterListCommand(o *operator) *cobra.Command {
	return o.reads(&cobra.Command{
		Use:     "list",
		Short:   "List the clusters",
		Example: "  fermata cluster list\n  fermata cluster list -o json | jq -r '.clusters[].name'",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return o.call(c.Context(), "list clusters", func(conn *remote.Conn) error {
				reply, err := conn.ListClusters(c.Context(), &api.ListClustersRequest{})
				if err != nil {
					return err
				}
				return o.print(view.OfClusters(reply))
			})
		},
	})
}

func newClusterShowCommand(o *operator) *cobra.Command {
	return o.reads(&cobra.Command{
		Use:               "show CLUSTER",
		Short:             "Show a cluster, its guests and their NICs",
		Example:           "  fermata cluster show demo\n  fermata cluster show demo -o yaml",
		Args:              names("CLUSTER"),
		ValidArgsFunction: o.completeClusters,
		RunE: func(c *cobra.Command, args []string) error {
			return o.call(c.Context(), "show cluster "+args[0], func(conn *remote.Conn) error {
				cluster, err := conn.GetCluster(c.Context(), &api.GetClusterRequest{Name: args[0]})
				if err != nil {
					return err
				}
				return o.print(view.OfCluster(cluster))
			})
		},
	})
}

func newClusterStartCommand(o *operator) *cobra.Command {
	var on []string
	c := &cobra.Command{
		Use:   "start CLUSTER",
		Short: "Boot every guest of a cluster afresh",
		Example: `  fermata cluster start demo
  fermata cluster start demo --on a=node1,b=node2`,
		Args:              names("CLUSTER"),
		ValidArgsFunction: o.completeClusters,
		RunE: func(c *cobra.Command, args []string) error {
			where, err := parseOn(on)
			if err != nil {
				return err
			}
			if len(where.nodes) > 0 {
				return app.Usagef("--on %s: starting takes GUEST=NODE only", where.nodes[0])
			}
			return o.changeCluster(c.Context(), "start cluster "+args[0],
				"the start is given up, guests that run keep running",
				func(ctx context.Context, conn *remote.Conn) (grpc.ServerStreamingClient[api.Event], error) {
					o.mentionCheckpoints(ctx, conn, args[0])
					return conn.StartCluster(ctx, &api.StartClusterRequest{Name: args[0], On: where.guests})
				})
		},
	}
	c.Flags().StringArrayVar(&on, "on", nil, "place a guest: `GUEST=NODE`[,…]")
	return o.follows(c)
}

// mentionBudget bounds a look that is only for the operator's information.
const mentionBudget = 2 * time.Second

// mentionCheckpoints says that a cluster which is about to boot afresh could go on from
// a checkpoint instead.
func (o *operator) mentionCheckpoints(ctx context.Context, conn *remote.Conn, cluster string) {
	ctx, cancel := context.WithTimeout(ctx, mentionBudget)
	defer cancel()
	reply, err := conn.ListCheckpoints(ctx, &api.ListCheckpointsRequest{Cluster: cluster})
	if err != nil || len(reply.GetCheckpoints()) == 0 {
		return
	}
	newest := slices.MaxFunc(reply.GetCheckpoints(), func(a, b *api.Checkpoint) int { return cmp.Compare(a.GetEpoch(), b.GetEpoch()) })
	o.env.Notice("the guests boot afresh; cluster %s has checkpoints, the newest is %s: \"fermata restart %s\" goes on from there",
		cluster, newest.GetId(), cluster)
}

func newClusterStopCommand(o *operator) *cobra.Command {
	return o.confirms(o.follows(&cobra.Command{
		Use:               "stop CLUSTER",
		Short:             "End every guest of a cluster; its checkpoints stay",
		Example:           "  fermata cluster stop demo",
		Args:              names("CLUSTER"),
		ValidArgsFunction: o.completeClusters,
		RunE: func(c *cobra.Command, args []string) error {
			return o.changeCluster(c.Context(), "stop cluster "+args[0],
				"the stop is given up, guests not ended yet keep running",
				func(ctx context.Context, conn *remote.Conn) (grpc.ServerStreamingClient[api.Event], error) {
					return conn.StopCluster(ctx, &api.StopClusterRequest{Name: args[0]})
				})
		},
	}), func(args []string) string {
		return "every guest of cluster " + args[0] + " is ended, and what they did since the newest checkpoint is lost"
	})
}

// changeCluster makes a long call whose result is the cluster.
func (o *operator) changeCluster(ctx context.Context, do, onInterrupt string, open func(context.Context, *remote.Conn) (grpc.ServerStreamingClient[api.Event], error)) error {
	o.env.OnInterrupt(onInterrupt)
	return o.call(ctx, do, func(conn *remote.Conn) error {
		event, err := o.follow(ctx, func(ctx context.Context) (grpc.ServerStreamingClient[api.Event], error) { return open(ctx, conn) })
		if err != nil {
			return err
		}
		if event.GetCluster() == nil {
			return wrongResult(event)
		}
		return o.print(view.OfCluster(event.GetCluster()))
	})
}

func newClusterDeleteCommand(o *operator) *cobra.Command {
	return o.confirms(o.reads(&cobra.Command{
		Use:               "delete CLUSTER",
		Short:             "Forget a stopped cluster; its checkpoints stay",
		Example:           "  fermata cluster stop demo\n  fermata cluster delete demo",
		Args:              names("CLUSTER"),
		ValidArgsFunction: o.completeClusters,
		RunE: func(c *cobra.Command, args []string) error {
			return o.call(c.Context(), "delete cluster "+args[0], func(conn *remote.Conn) error {
				if _, err := conn.DeleteCluster(c.Context(), &api.DeleteClusterRequest{Name: args[0]}); err != nil {
					return err
				}
				return o.print(view.Deleted{Deleted: args[0]})
			})
		},
	}), func(args []string) string {
		return "cluster " + args[0] + " is forgotten; its checkpoints stay"
	})
}

func newClusterConsoleCommand(o *operator) *cobra.Command {
	var follow bool
	var offset uint64
	c := &cobra.Command{
		Use:   "console CLUSTER GUEST",
		Short: "Print what a guest printed on its serial console",
		Example: `  fermata cluster console demo a
  fermata cluster console demo a --follow`,
		Args:              names("CLUSTER", "GUEST"),
		ValidArgsFunction: o.completeGuests,
		RunE: func(c *cobra.Command, args []string) error {
			ctx := c.Context()
			o.env.OnInterrupt("guests keep running")
			return o.call(ctx, "read console of "+args[0]+"/"+args[1], func(conn *remote.Conn) error {
				stream, err := conn.Console(ctx, &api.ConsoleRequest{Cluster: args[0], Guest: args[1], Offset: offset, Follow: follow})
				if err != nil {
					return err
				}
				return copyConsole(o.env.Stdout, o.env.Stderr, offset, stream)
			})
		},
	}
	c.Flags().BoolVarP(&follow, "follow", "F", false, "go on with what the guest prints from now on")
	c.Flags().Uint64Var(&offset, "offset", 0, "`bytes` to skip from the beginning")
	return c
}

// copyConsole writes what comes to w, and to notes where something is missing.
func copyConsole(w, notes io.Writer, next uint64, stream grpc.ServerStreamingClient[api.ConsoleChunk]) error {
	for {
		chunk, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if at := chunk.GetOffset(); at > next { // agents of earlier versions do not say
			fmt.Fprintf(notes, "%d bytes of the console are not kept any more: console_mib of the node's agent says how many are\n", at-next)
			next = at
		}
		next += uint64(len(chunk.GetData()))
		if _, err := w.Write(chunk.GetData()); err != nil {
			return err
		}
	}
}
