package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"fermata/cmd/internal/app"
)

const rootLong = `Fermata holds a virtual cluster, all its guests and networks, for a few
milliseconds at one consistent instant, records it, and puts it back later,
on other machines, as if nothing had happened.

The coordinator and the operator's certificate are found by flags, by
FERMATA_COORDINATOR and FERMATA_CERTS (a directory), by FERMATA_LAB, or in
/etc/fermata: operator.yaml (coordinator: [HOST:PORT, …], certs: DIRECTORY),
operator.crt, operator.key and ca.crt.

Verbs that destroy something ask first at a terminal, unless --yes is given. Scripts,
which have none, are not asked.

An error is the last line of standard error. With -o json that line is a document:
{"error": {"class", "message", "hint", "exit_status"}}.

Exit status, by the class of the error:
   0  success             8  no-space
   1  internal            9  mismatch
   2  invalid            10  corrupt
   3  not-found          11  aborted
   4  exists             12  deadline
   5  stale              13  unknown-outcome
   6  busy               14  denied
   7  unavailable       130  interrupted`

// Groups of the help text.
const (
	groupOperate = "operate"
	groupMachine = "machine"
	groupDaemon  = "daemon"
)

// run is the program.
func run(ctx context.Context, env *app.Env) error {
	root := newRootCommand(env)
	started := noteStart(root)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil || *started {
		return err
	}
	// Nothing has run: whatever is wrong, it is the command line.
	return app.Usage(fmt.Errorf("%w (see %q)", err, cmd.CommandPath()+" --help"))
}

// newRootCommand makes the tree of commands.
func newRootCommand(env *app.Env) *cobra.Command {
	root := &cobra.Command{
		Use:   app.Name,
		Short: "Checkpoint and restart virtual clusters",
		Long:  rootLong,
		Example: `  fermata cluster create -f cluster.yaml
  fermata cluster start demo
  fermata checkpoint demo --label before-upgrade
  fermata restart demo --from latest --on node3,node4`,
		SilenceErrors: true, // app.Main prints them, once
		SilenceUsage:  true,
	}
	needsSubcommand(root)
	root.SetArgs(env.Args)
	root.SetIn(env.Stdin)
	root.SetOut(env.Stdout)
	root.SetErr(env.Stderr)
	root.AddGroup(
		&cobra.Group{ID: groupOperate, Title: "Clusters and checkpoints:"},
		&cobra.Group{ID: groupMachine, Title: "This machine:"},
		&cobra.Group{ID: groupDaemon, Title: "Daemons:"},
	)
	root.SetHelpCommandGroupID(groupMachine)
	root.SetCompletionCommandGroupID(groupMachine)
	op := &operator{env: env}
	op.remote.AddFlags(root.PersistentFlags())
	inGroup(root, groupOperate,
		newClusterCommand(op),
		newAdoptCommand(op),
		newReleaseCommand(op),
		newCheckpointCommand(op),
		newCheckpointsCommand(op),
		newRestartCommand(op),
		newRollbackCommand(op),
		newTraceCommand(op),
		newNodeCommand(op),
		newRepoCommand(op),
	)
	inGroup(root, groupMachine,
		newDoctorCommand(env),
		newCertsCommand(env),
		newVersionCommand(env),
	)
	inGroup(root, groupDaemon,
		newAgentCommand(env),
		newCoordinatorCommand(env),
		newLabCommand(env),
		newGuardCommand(env),
		newDataPlaneCommand(env),
	)
	root.InitDefaultCompletionCmd()
	if completion, _, err := root.Find([]string{"completion"}); err == nil {
		needsSubcommand(completion)
	}
	return root
}

func inGroup(root *cobra.Command, group string, cmds ...*cobra.Command) {
	for _, c := range cmds {
		c.GroupID = group
		root.AddCommand(c)
	}
}

// newGroup makes a command that only holds others.
func newGroup(use, short string, cmds ...*cobra.Command) *cobra.Command {
	group := &cobra.Command{Use: use, Short: short}
	needsSubcommand(group)
	group.AddCommand(cmds...)
	return group
}

// needsSubcommand makes an absent or unknown subcommand an error. Cobra would
// print the help and end with success, which a script takes for done.
func needsSubcommand(group *cobra.Command) {
	group.Args = cobra.ArbitraryArgs
	group.RunE = func(c *cobra.Command, args []string) error {
		see := fmt.Sprintf("(see %q)", c.CommandPath()+" --help")
		if len(args) == 0 {
			return app.Usagef("%q needs a command: %s %s", c.CommandPath(), strings.Join(subcommands(c), ", "), see)
		}
		// A verb that stands elsewhere is what was meant, not a sibling of a like name: who
		// asks for "cluster restart" must not be led to "cluster start", which boots afresh.
		for _, verb := range c.Root().Commands() {
			if verb.Name() == args[0] && verb.IsAvailableCommand() {
				return app.Usagef("unknown command %q for %q, did you mean %q? It does this: %s %s",
					args[0], c.CommandPath(), strings.Join(append([]string{verb.CommandPath()}, args[1:]...), " "), verb.Short, see)
			}
		}
		if near := c.SuggestionsFor(args[0]); len(near) > 0 {
			return app.Usagef("unknown command %q for %q, did you mean %q? %s", args[0], c.CommandPath(), near[0], see)
		}
		return app.Usagef("unknown command %q for %q %s", args[0], c.CommandPath(), see)
	}
	group.SuggestionsMinimumDistance = 2
}

func subcommands(c *cobra.Command) []string {
	var names []string
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() && sub.Name() != "help" {
			names = append(names, sub.Name())
		}
	}
	return names
}

// noteStart makes the returned value true once a command's own code runs.
func noteStart(c *cobra.Command) *bool {
	started := new(bool)
	var wrap func(c *cobra.Command)
	wrap = func(c *cobra.Command) {
		if runE := c.RunE; runE != nil {
			c.RunE = func(c *cobra.Command, args []string) error {
				*started = true
				return runE(c, args)
			}
		}
		for _, sub := range c.Commands() {
			wrap(sub)
		}
	}
	wrap(c)
	return started
}
