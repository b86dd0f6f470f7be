package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"fermata/cmd/internal/app"
	"fermata/nodeagent/guard"
	"fermata/vmm/qmp"
	"fermata/vmm/uffd"
)

// guardBudget bounds one attempt to let a guest run.
const guardBudget = 10 * time.Second

// newGuardCommand is the process that resumes stopped guests when their agent
// dies. Agents start it; it is of no use by hand.
func newGuardCommand(env *app.Env) *cobra.Command {
	return &cobra.Command{
		Use:    "guard",
		Short:  "Resume stopped guests when the agent dies (started by the agent)",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := env.DropInherited(); err != nil {
				return err
			}
			// It must outlive the signal that ends its agent.
			ctx := context.WithoutCancel(cmd.Context())
			return guard.Serve(ctx, env.Stdin, guard.Rescue{Resume: continueGuest, Revoke: uffd.Revoke})
		},
	}
}

// continueGuest lets the guest behind a QMP socket run. A guest that is gone
// needs nothing.
func continueGuest(ctx context.Context, socket string) error {
	ctx, cancel := context.WithTimeout(ctx, guardBudget)
	defer cancel()
	c, err := qmp.Dial(ctx, socket)
	if err != nil {
		return fmt.Errorf("reach monitor %s: %w", socket, err)
	}
	defer c.Close()
	if err := c.Cont(ctx); err != nil {
		return fmt.Errorf("continue guest of %s: %w", socket, err)
	}
	return nil
}
