package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"fermata/cmd/internal/app"
	"fermata/cmd/internal/lab"
	"fermata/protocol/fault"
)

// givenLabSizes refuses zeros: the lab's own configuration takes them for "not given".
func givenLabSizes(cmd *cobra.Command) error {
	for _, name := range []string{"nodes", "node-memory", "node-capture"} {
		if f := cmd.Flags().Lookup(name); f.Changed && f.Value.String() == "0" {
			return app.Usagef("--%s 0: want at least 1", name)
		}
	}
	return nil
}

// newLabCommand runs everything on this machine, in the foreground.
func newLabCommand(env *app.Env) *cobra.Command {
	var (
		cfg lab.Config
		log logFlags
	)
	cmd := &cobra.Command{
		Use:   "lab --dir DIR",
		Short: "Run etcd, a coordinator and several nodes on this machine",
		Long: `Run a whole Fermata on this machine, in the foreground: an embedded etcd, a
coordinator, and nodes in network namespaces with addresses of their own.
Ctrl-C ends all of it, guests included, and leaves nothing but DIR, from which
the next lab can restart its checkpoints.

Use it from another terminal with --lab DIR or FERMATA_LAB=DIR.`,
		Example: `  fermata lab --dir /tmp/lab --nodes 3
  FERMATA_LAB=/tmp/lab fermata node list`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := errors.Join(givenLabSizes(cmd), app.Usage(lab.Check(cfg))); err != nil {
				return err
			}
			// Replaces the process; what follows runs in the new one.
			if err := lab.EnterNamespace(); err != nil {
				return fault.Wrap(fault.Denied, err, "lab")
			}
			if err := env.DropInherited(); err != nil {
				return err
			}
			env.OnInterrupt("lab ends, and its guests with it")
			logger, err := log.logger(env.Stderr, "lab")
			if err != nil {
				return err
			}
			cfg.Logger, cfg.LogLevel = logger, log.level
			cfg.Ready = func(socket string) {
				fmt.Fprintf(env.Stderr, "lab runs, coordinator at unix:%s; use it with --lab %s\n", socket, cfg.Dir)
			}
			return endedAsAsked(cmd.Context(), lab.Run(cmd.Context(), cfg))
		},
	}
	f := cmd.Flags()
	f.StringVar(&cfg.Dir, "dir", "", "`directory` of the lab (required)")
	f.IntVar(&cfg.Nodes, "nodes", 2, "how many nodes")
	f.StringVar(&cfg.Repository, "repository", "", "`directory` of the checkpoints (default DIR/repository)")
	f.StringSliceVar(&cfg.Etcd, "etcd", nil, "`endpoints` of an etcd in place of the embedded one")
	f.StringSliceVar(&cfg.Bridges, "bridge", nil, "`names` of bridges to make on every node, each one network: what a specification may say as uplink or bridge")
	f.BoolVar(&cfg.FabricPlaintext, "fabric-plaintext", false, "links between nodes without TLS")
	f.BoolVar(&cfg.Encrypt, "encrypt", false, "encrypt the checkpoints, with the key DIR/repository.key, which is drawn if it is not there")
	f.Int64Var(&cfg.NodeMemoryMiB, "node-memory", 4096, "memory of each node for guests, in `MiB`")
	f.Int64Var(&cfg.NodeCaptureMiB, "node-capture", 1024, "memory of each node for copies of stopped guests, in `MiB`")
	log.add(cmd)
	if err := cmd.MarkFlagRequired("dir"); err != nil {
		panic(err) // the flag is defined above
	}
	return cmd
}
