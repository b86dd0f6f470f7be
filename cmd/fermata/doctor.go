package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"fermata/cmd/internal/app"
	"fermata/cmd/internal/doctor"
	"fermata/cmd/internal/remote"
	"fermata/cmd/internal/render"
	"fermata/protocol/fault"
)

func newDoctorCommand(env *app.Env) *cobra.Command {
	var cfg doctor.Config
	var format render.Format
	var certs string
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Tell what this machine can and cannot do, and what to do about it",
		Long: `Tell what this machine can and cannot do as a node, and what to do about it. The
exit status is that of class unavailable when a check fails that no node agent
can do without; such a failure is marked fail!.`,
		Example: `  fermata doctor
  fermata doctor --boot-kernel /boot/vmlinuz-$(uname -r)
  fermata doctor -o json | jq '.checks[] | select(.status != "ok")'`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if cfg.BootKernel != "" {
				if _, err := os.Stat(cfg.BootKernel); err != nil {
					return fault.Wrap(fault.NotFound, err, "--boot-kernel")
				}
			}
			cfg.Certificates = certificatesOf(certs)
			report, err := doctor.Run(c.Context(), cfg)
			if err != nil {
				return fmt.Errorf("examine this machine: %w", err)
			}
			if err := render.Write(env.Stdout, format, report); err != nil {
				return err
			}
			if failed := report.Failed(); len(failed) > 0 {
				return fault.New(fault.Unavailable, "examine this machine: no node agent can run here: %s", strings.Join(failed, ", "))
			}
			return nil
		},
	}
	c.Flags().StringVar(&cfg.QEMU, "qemu", "", "QEMU `binary` (default qemu-system-x86_64)")
	c.Flags().StringVar(&cfg.BootKernel, "boot-kernel", "", "kernel `file` to boot under KVM as a trial")
	c.Flags().StringVar(&certs, "certs", certsDir(env), "`directory` of certificates whose expiry to look at, beside those of the daemons' configuration files")
	formatFlag(c, &format)
	return c
}

// certificatesOf lists the certificate files in dir and those that the daemons of this
// machine use.
func certificatesOf(dir string) []string {
	// What cannot be read is no certificate to look at, and the daemons say why.
	paths, _ := filepath.Glob(filepath.Join(dir, "*.crt"))
	var agent agentFile
	var coordinator coordinatorFile
	_ = readConfig(filepath.Join(remote.ConfigDir, "agent.yaml"), &agent)
	_ = readConfig(filepath.Join(remote.ConfigDir, "coordinator.yaml"), &coordinator)
	for _, path := range []string{agent.Certificate, agent.CA, coordinator.Certificate, coordinator.CA} {
		if path != "" && !slices.Contains(paths, path) {
			paths = append(paths, path)
		}
	}
	return paths
}
