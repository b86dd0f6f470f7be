package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"fermata/cmd/internal/app"
	"fermata/nodeagent"
	"fermata/protocol/fault"
	"fermata/protocol/identity"
)

// agentFile is the configuration file of an agent: configs/agent.yaml.
type agentFile struct {
	Name       string `yaml:"name"`
	StateDir   string `yaml:"state_dir"`
	MemoryDir  string `yaml:"memory_dir"`
	Repository string `yaml:"repository"`

	Listen          string   `yaml:"listen"`
	Advertise       string   `yaml:"advertise"`
	FabricListen    string   `yaml:"fabric_listen"`
	FabricAdvertise string   `yaml:"fabric_advertise"`
	Coordinators    []string `yaml:"coordinators"`

	Certificate string `yaml:"certificate"`
	Key         string `yaml:"key"`
	CA          string `yaml:"ca"`
	Plaintext   bool   `yaml:"plaintext"`

	MemoryMiB   int64         `yaml:"memory_mib"`
	CaptureMiB  int64         `yaml:"capture_mib"`
	QEMU        string        `yaml:"qemu"`
	DrainBudget time.Duration `yaml:"drain_budget"`
}

// maxConfigBytes bounds a configuration file.
const maxConfigBytes = 1 << 20

// decodeAgentFile decodes strictly: a misspelt key is an error.
func decodeAgentFile(name string, data []byte) (agentFile, error) {
	var f agentFile
	d := yaml.NewDecoder(bytes.NewReader(data))
	d.KnownFields(true)
	if err := d.Decode(&f); err != nil && !errors.Is(err, io.EOF) {
		return agentFile{}, fault.Wrap(fault.Invalid, err, "%s", name)
	}
	return f, nil
}

func (f agentFile) config(log hclog.Logger) (nodeagent.Config, error) {
	cfg := nodeagent.Config{
		Name: f.Name, StateDir: f.StateDir, MemoryDir: f.MemoryDir, RepositoryDir: f.Repository,
		Listen: f.Listen, Advertise: f.Advertise, FabricListen: f.FabricListen, FabricAdvertise: f.FabricAdvertise,
		Coordinators: f.Coordinators, Plaintext: f.Plaintext,
		MemoryBytes: f.MemoryMiB << 20, CaptureBytes: f.CaptureMiB << 20,
		QEMU: f.QEMU, DrainBudget: f.DrainBudget, Logger: log, Version: app.Version(),
	}
	if f.Plaintext {
		return cfg, nil
	}
	id, err := identity.Load(f.Certificate, f.Key, f.CA)
	if err != nil {
		return cfg, fmt.Errorf("load certificate: %w", err)
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
run by the agent's guard process.`,
		Example: `  fermata agent --config /etc/fermata/agent.yaml`,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			env.OnInterrupt("agent ends, guests run on")
			data, err := readConfig(file)
			if err != nil {
				return err
			}
			f, err := decodeAgentFile(file, data)
			if err != nil {
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
			cfg.DestroyOnExit = destroy
			a, err := nodeagent.New(cfg)
			if err != nil {
				return fault.Wrap(fault.Invalid, err, "%s", file)
			}
			return endedAsAsked(cmd.Context(), a.Run(cmd.Context()))
		},
	}
	cmd.Flags().StringVar(&file, "config", "/etc/fermata/agent.yaml", "configuration `FILE`")
	cmd.Flags().BoolVar(&destroy, "destroy-on-exit", false, "end this node's guests when the agent ends (labs)")
	log.add(cmd)
	return cmd
}

// endedAsAsked hides the cancellation that a signal to a daemon is.
func endedAsAsked(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func readConfig(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "configuration")
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxConfigBytes+1))
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "configuration")
	}
	if len(data) > maxConfigBytes {
		return nil, fault.New(fault.Invalid, "%s: larger than %d bytes", path, maxConfigBytes)
	}
	return data, nil
}

// logFlags are the flags of every daemon's log.
type logFlags struct {
	level string
	json  bool
}

func (l *logFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&l.level, "log-level", "info", "trace, debug, info, warn or error")
	cmd.Flags().BoolVar(&l.json, "log-json", false, "log one JSON document a line")
}

func (l *logFlags) logger(w io.Writer, name string) (hclog.Logger, error) {
	level := hclog.LevelFromString(l.level)
	if level == hclog.NoLevel {
		return nil, app.Usagef("log level %q: need trace, debug, info, warn or error", l.level)
	}
	return hclog.New(&hclog.LoggerOptions{Name: name, Level: level, JSONFormat: l.json, Output: w}), nil
}
