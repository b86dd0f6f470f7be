package main

import (
	"cmp"
	"errors"
	"path/filepath"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"fermata/cmd/internal/app"
	"fermata/imageio/repository"
	"fermata/nodeagent"
	"fermata/protocol/failpoint"
	"fermata/protocol/fault"
	"fermata/protocol/identity"
)

// agentFile is the configuration file of an agent: configs/agent.yaml.
type agentFile struct {
	Name      string `yaml:"name"`
	StateDir  string `yaml:"state_dir"`
	MemoryDir string `yaml:"memory_dir"`

	repositoryPlace `yaml:",inline"`

	Listen          string   `yaml:"listen"`
	Advertise       string   `yaml:"advertise"`
	FabricListen    string   `yaml:"fabric_listen"`
	FabricAdvertise string   `yaml:"fabric_advertise"`
	Coordinators    []string `yaml:"coordinators"`

	Certificate string `yaml:"certificate"`
	Key         string `yaml:"key"`
	CA          string `yaml:"ca"`
	Plaintext   bool   `yaml:"plaintext"`

	// Storage is how the node writes to the repository.
	Storage struct {
		Compression string `yaml:"compression"`
		MiBPerS     int64  `yaml:"mib_per_s"`
		Direct      bool   `yaml:"direct"`
		Preallocate bool   `yaml:"preallocate"`
	} `yaml:"storage"`

	MemoryMiB   int64         `yaml:"memory_mib"`
	AgentMiB    int64         `yaml:"agent_mib"`
	CaptureMiB  int64         `yaml:"capture_mib"`
	QEMU        string        `yaml:"qemu"`
	DrainBudget time.Duration `yaml:"drain_budget"`
	ConsoleMiB  int64         `yaml:"console_mib"`

	FabricPlaintext bool `yaml:"fabric_plaintext"`

	AllowedPaths []string `yaml:"allowed_paths"`

	QEMUUser string `yaml:"qemu_user"`
	Cgroup   string `yaml:"cgroup"`

	Bridges map[string]string `yaml:"bridges"`
}

func (f agentFile) config(log hclog.Logger) (nodeagent.Config, error) {
	if err := f.check(); err != nil {
		return nodeagent.Config{}, err
	}
	cfg := nodeagent.Config{
		Name: f.Name, StateDir: f.StateDir, MemoryDir: f.MemoryDir,
		Repository: repository.Config{
			Dir: f.Repository, Compression: f.Storage.Compression, WriteBytesPerSecond: f.Storage.MiBPerS << 20,
			Direct: f.Storage.Direct, Preallocate: f.Storage.Preallocate,
		},
		RepositoryKey: f.load, // while guests run already
		Listen:        f.Listen, Advertise: f.Advertise, FabricListen: f.FabricListen, FabricAdvertise: f.FabricAdvertise,
		Coordinators: f.Coordinators, Plaintext: f.Plaintext,
		MemoryBytes: f.MemoryMiB << 20, AgentBytes: f.AgentMiB << 20, CaptureBytes: f.CaptureMiB << 20,
		QEMU: f.QEMU, ConsoleBytes: f.ConsoleMiB << 20, DrainBudget: f.DrainBudget, Bridges: f.Bridges, FabricPlaintext: f.FabricPlaintext, AllowedPaths: f.AllowedPaths, QEMUUser: f.QEMUUser, Cgroup: f.Cgroup, Logger: log, Version: app.Version(),
	}
	if f.Plaintext {
		return cfg, nil
	}
	id, err := daemonIdentity(identity.RoleAgent, cmp.Or(f.Name, "NAME"), f.Certificate, f.Key, f.CA)
	if err != nil {
		return cfg, err
	}
	cfg.Identity = id
	return cfg, nil
}

// newAgentCommand runs a node agent in the foreground.
func newAgentCommand(env *app.Env) *cobra.Command {
	var (
		file    string
		log     logFlags
		destroy bool
	)
	cmd := &cobra.Command{
		Use:   "agent --config FILE",
		Short: "Run the agent of this node",
		Long: `Run the agent of this node in the foreground until it is told to end.

Its guests outlive it: the next agent with the same state directory finds them
again. A guest that stands still for a checkpoint when the agent dies is let
run by the agent's guard process.

The node's data plane, which the agent starts when there is none, carries the
guests' frames also while no agent runs. It ends by itself when it has neither
an agent nor a guest.`,
		Example: `  fermata agent --config /etc/fermata/agent.yaml`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			env.OnInterrupt("agent ends, guests run on")
			var f agentFile
			if err := readConfig(file, &f); err != nil {
				return err
			}
			logger, err := log.logger(env.Stderr, "agent")
			if err != nil {
				return err
			}
			cfg, err := f.config(logger)
			if err != nil {
				return err
			}
			if err := env.DropInherited(); err != nil {
				return err
			}
			cfg.DestroyOnExit = destroy
			err = errors.Join(failpoint.ArmAll(env.Getenv(failpoint.Env)), failpoint.ArmFile(filepath.Join(f.StateDir, failpoint.FileName)))
			if err != nil {
				return fault.Wrap(fault.Invalid, err, "")
			}
			a, err := nodeagent.New(cfg)
			if err != nil {
				return fault.Wrap(fault.Invalid, err, "%s", file)
			}
			defer watchIdentity(cmd.Context(), cfg.Identity, logger)()
			return endedAsAsked(cmd.Context(), a.Run(cmd.Context()))
		},
	}
	cmd.Flags().StringVar(&file, "config", "/etc/fermata/agent.yaml", "configuration `FILE`")
	cmd.Flags().BoolVar(&destroy, "destroy-on-exit", false, "end this node's guests when the agent ends (labs)")
	log.add(cmd)
	return cmd
}
