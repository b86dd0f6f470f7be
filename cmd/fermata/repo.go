package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"

	"github.com/spf13/cobra"

	"fermata/cmd/internal/app"
	"fermata/cmd/internal/view"
	"fermata/coordinator"
	"fermata/imageio/repository"
	"fermata/protocol/api"
	"fermata/protocol/fault"
)

func newRepoCommand(o *operator) *cobra.Command {
	return newGroup("repo", "Look after a repository",
		newRepoCreateCommand(o),
		newRepoStatsCommand(o),
		newRepoCheckCommand(o),
		newRepoRepairCommand(o),
		newRepoPruneCommand(o),
		newRepoCopyCommand(o),
		newRepoKeyCommand(o),
		newRepoReleaseCommand(o),
	)
}

func newRepoReleaseCommand(o *operator) *cobra.Command {
	var f repositoryFlags
	c := &cobra.Command{
		Use:   "release",
		Short: "Release a repository from the installation that owns it",
		Long: `Release a repository from the installation that owns it. The first coordinator that
starts on a repository makes it its installation's, and coordinators of any other
installation refuse it: clusters of the same name would be mixed. An installation is
whoever trusts one certificate authority. Stop the coordinators of the old owner first;
the next coordinator that starts becomes the owner.`,
		Example: "  fermata repo release --repository /scratch/fermata",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return o.onRepository(c.Context(), &f, "release repository", "the repository is released or not", func(ctx context.Context, r *repository.Repository, _ *meter) error {
				owner, err := r.Disown(ctx)
				if errors.Is(err, repository.ErrNotFound) {
					return fault.New(fault.NotFound, "the repository belongs to no installation")
				}
				if err != nil {
					return err
				}
				return o.print(view.OfOwner(owner))
			})
		},
	}
	f.add(c)
	return o.confirms(o.reads(c), func(_ []string) string {
		return "the repository is released from the installation that owns it, whose coordinators must not run any more"
	})
}

func newRepoCreateCommand(*operator) *cobra.Command {
	var stripe string
	var key keySource
	c := &cobra.Command{
		Use:   "create DIRECTORY",
		Short: "Make an empty repository",
		Long: `Make an empty repository, once, before the coordinator starts: a coordinator makes none,
because a directory without a repository is most often a file system that is not mounted.
For file systems that want a hint before the first file, --stripe-command is run with the
directory of the packs behind its words; the directories below inherit its layout. With a
key (see repo key create) everything in the repository is encrypted.`,
		Example: "  fermata repo create /archive/fermata --key-file /etc/fermata/archive.key\n  fermata repo create /lustre/fermata --stripe-command 'lfs setstripe -c 8 -S 4M'",
		Args:    names("DIRECTORY"),
		RunE: func(c *cobra.Command, args []string) error {
			k, err := key.load(c.Context())
			if err != nil {
				return err
			}
			cfg := repository.Config{Dir: args[0], Key: k}
			if words := strings.Fields(stripe); len(words) > 0 {
				cfg.PrepareDir = func(ctx context.Context, dir string) error {
					if out, err := exec.CommandContext(ctx, words[0], append(words[1:], dir)...).CombinedOutput(); err != nil {
						return fault.Wrap(fault.Invalid, err, "--stripe-command: %s", strings.TrimSpace(string(out)))
					}
					return nil
				}
			}
			r, err := repository.Create(c.Context(), cfg)
			if err == nil {
				err = r.KeepReserve(c.Context())
			}
			return app.Cause(c.Context(), coordinator.RepositoryFault(err))
		},
	}
	c.Flags().StringVar(&stripe, "stripe-command", "", "`command` that gives a directory its striping")
	key.add(c, "", "the key that the repository is encrypted for")
	return c
}

func newRepoStatsCommand(o *operator) *cobra.Command {
	var f repositoryFlags
	c := &cobra.Command{
		Use:   "stats",
		Short: "Count what checkpoints hold and what they take",
		Long: `Count what checkpoints hold and what they take, by checkpoint and guest: bytes of
memory and disks, those in pages that are not zeros, in distinct pages, and in pages
that no checkpoint before has. Trees are read, pages are not.`,
		Example: "  fermata repo stats --repository /scratch/fermata\n  fermata repo stats -o json | jq '.checkpoints[] | {id, new_bytes}'",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return o.onRepository(c.Context(), &f, "count repository", "the count is given up", func(ctx context.Context, r *repository.Repository, m *meter) error {
				s, err := r.Stats(ctx, m.counts("count", "checkpoints"))
				if err != nil {
					return err
				}
				return o.print(view.OfRepoStats(s))
			})
		},
	}
	f.add(c)
	return o.follows(c)
}

func newRepoCheckCommand(o *operator) *cobra.Command {
	var f repositoryFlags
	var opt repository.CheckOptions
	var subset string
	c := &cobra.Command{
		Use:   "check",
		Short: "Verify all checkpoints",
		Long: `Verify all checkpoints: that every pack is there and describes itself, and that the
trees of all images are whole. With --read-data every byte of every pack is read
and verified; --read-data-subset N/M reads one part of M, so that M nights see all.
Damage is told with the checkpoints and guests that it costs, later checkpoints do
not rely on it, and the exit status is that of class corrupt.`,
		Example: "  fermata repo check\n  fermata repo check --read-data-subset 3/30",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if subset != "" {
				var rest string
				if n, _ := fmt.Sscanf(subset+" .", "%d/%d %s", &opt.Part, &opt.Parts, &rest); n != 3 || opt.Part < 1 || opt.Part > opt.Parts {
					return app.Usagef("--read-data-subset %q: want N/M with 1 <= N <= M, such as 3/30", subset)
				}
				opt.ReadData = true
			}
			return o.onRepository(c.Context(), &f, "check repository", "the check is given up", func(ctx context.Context, r *repository.Repository, m *meter) error {
				opt.Progress = m.counts("check", "checkpoints")
				report, err := r.Check(ctx, opt)
				if err != nil {
					return err
				}
				return o.printCheck(view.OfRepoCheck(report), nil)
			})
		},
	}
	f.add(c)
	c.Flags().BoolVar(&opt.ReadData, "read-data", false, "read and verify every byte of every pack")
	c.Flags().StringVar(&subset, "read-data-subset", "", "read and verify part `N/M` of the packs")
	c.MarkFlagsMutuallyExclusive("read-data", "read-data-subset")
	return o.follows(c)
}

// printCheck prints a document, the check itself if none is given, and fails if the
// check found damage.
func (o *operator) printCheck(check view.RepoCheck, repair *view.RepoRepair) error {
	var err error
	if repair != nil {
		err = o.print(*repair)
	} else {
		err = o.print(check)
	}
	if err == nil && !check.Intact {
		err = fault.New(fault.Corrupt, "damaged objects: %d, first %s", len(check.Damage), check.Damage[0].Object)
	}
	return err
}

func newRepoRepairCommand(o *operator) *cobra.Command {
	var f repositoryFlags
	c := &cobra.Command{
		Use:   "repair",
		Short: "Make good what damage can be, and tell what the rest costs",
		Long: `Read everything, and replace each pack that is damaged or gone if whatever
checkpoints need of it is whole elsewhere. Checkpoints that are taken after damage
was found store the pages again, so a repair some time later finds more. A pack of
which something is lost stays as it is: its disk may come back. There is no index to
rebuild: each process makes its own of the packs.`,
		Example: "  fermata repo repair",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return o.onRepository(c.Context(), &f, "repair repository", "the repair is given up, what was replaced stays so", func(ctx context.Context, r *repository.Repository, m *meter) error {
				report, err := r.Repair(ctx, m.counts("check", "checkpoints"))
				if err != nil {
					return err
				}
				doc := view.OfRepoRepair(report)
				return o.printCheck(doc.Left, &doc)
			})
		},
	}
	f.add(c)
	return o.follows(c)
}

func newRepoPruneCommand(o *operator) *cobra.Command {
	var f repositoryFlags
	var opt repository.PruneOptions
	var dryRun bool
	var memoryMiB int64
	c := &cobra.Command{
		Use:   "prune",
		Short: "Delete old checkpoints by rules, and free their space",
		Long: `Delete the checkpoints that no rule keeps, remove the packs that nothing needs any
more, and replace packs of which little is needed by that. Without a rule no
checkpoint is deleted. The newest one of a cluster always stays, and so does what
cannot be read.

It runs on any node, beside checkpoints and restarts, and may be killed at any point.
A checkpoint that is taken in the same moment may fail for a pack that has just gone;
the next one is right. A restart that reads a checkpoint keeps its packs until it is done;
a later prune frees them.

Rules count intact checkpoints only. A checkpoint that is known to be damaged stays where
a rule would keep it if it were intact, in addition to the others. Deleting works on a
full file system; compaction needs room for a new pack, and ends when there is none.`,
		Example: `  fermata repo prune --keep-last 3 --keep-daily 7 --keep-labelled --dry-run
  fermata repo prune --cluster demo --keep-last 10 -o json`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			opt.MemoryBytes = memoryMiB << 20
			if err := opt.Validate(); err != nil {
				return app.Usage(err)
			}
			return o.onRepository(c.Context(), &f, "prune repository", "no further step is begun, what was done stands", func(ctx context.Context, r *repository.Repository, m *meter) error {
				opt.Progress = func(step string, done, total int64) {
					text := ""
					if total > 0 {
						text = fmt.Sprintf("%d of %d", done, total)
					}
					m.display.Event(&api.Event{Step: step, Text: text})
				}
				if err := requireClusters(ctx, r, opt.Clusters...); err != nil {
					return err
				}
				plan, err := r.PlanPrune(ctx, opt)
				if err != nil {
					return err
				}
				if dryRun {
					return o.print(view.OfRepoPrune(plan, nil))
				}
				done, err := r.Prune(ctx, plan)
				if err == nil && r.KeepReserve(ctx) != nil {
					o.env.Notice("warning: there is no room for the repository's reserve; deleting from a full file system needs it")
				}
				return errors.Join(err, o.print(view.OfRepoPrune(plan, &done)))
			})
		},
	}
	f.add(c)
	flags := c.Flags()
	flags.IntVar(&opt.Retention.Last, "keep-last", 0, "keep the newest `N` of each cluster")
	flags.IntVar(&opt.Retention.Hourly, "keep-hourly", 0, "keep the newest of each of the last `N` hours (UTC) that have one")
	flags.IntVar(&opt.Retention.Daily, "keep-daily", 0, "the same for `N` days")
	flags.IntVar(&opt.Retention.Weekly, "keep-weekly", 0, "the same for `N` weeks")
	flags.BoolVar(&opt.Retention.Labelled, "keep-labelled", false, "keep all that have a label")
	flags.StringSliceVar(&opt.Clusters, "cluster", nil, "`names` of clusters whose checkpoints may be deleted; default: all")
	flags.Float64Var(&opt.CompactBelow, "compact-below", 0.5, "compact packs of which less than this part is needed, 0 to 1; 0: none")
	flags.Int64Var(&memoryMiB, "memory-mib", 256, "for the table of what is needed; less takes more passes")
	flags.BoolVar(&dryRun, "dry-run", false, "only say what would be done")
	return o.confirms(o.follows(c), func(_ []string) string {
		if dryRun {
			return ""
		}
		return "checkpoints that no rule keeps are deleted for good (--dry-run shows which)"
	})
}

func newRepoCopyCommand(o *operator) *cobra.Command {
	var f repositoryFlags
	var to, cluster string
	var toKey keySource
	c := &cobra.Command{
		Use:   "copy --to DIRECTORY [ID…]",
		Short: "Copy checkpoints to another repository",
		Long: `Copy checkpoints to another repository, as the same epochs of the same clusters:
those named, or all, or all of one cluster. What is there already is not copied, and
copying again goes on where it was given up. Each repository is read and written with
its own key, if it has one.`,
		Example: `  fermata repo create /archive/fermata
  fermata repo copy --to /archive/fermata demo@7 demo@9
  fermata repo copy --to /archive/fermata --cluster demo`,
		Args: func(c *cobra.Command, args []string) error {
			for _, id := range args {
				if _, err := clusterOf(id); err != nil {
					return fmt.Errorf("%s: %w", c.CommandPath(), err)
				}
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) > 0 && cluster != "" {
				return app.Usagef("give checkpoints or --cluster, not both")
			}
			return o.onRepository(c.Context(), &f, "copy checkpoints", "the copy is given up, the next one goes on from there", func(ctx context.Context, r *repository.Repository, m *meter) error {
				there, err := openAt(ctx, to, toKey, f.compression)
				if err != nil {
					return fmt.Errorf("destination: %w", err)
				}
				if there.ID() == r.ID() {
					return fault.New(fault.Invalid, "%s is the same repository", to)
				}
				ids, err := checkpointsToCopy(ctx, r, args, cluster)
				if err != nil {
					return err
				}
				doc := view.RepoCopies{Checkpoints: []view.RepoCopy{}}
				for _, id := range ids {
					report, err := r.Copy(ctx, there, id.cluster, id.epoch, m.bytes("copy "+id.String()))
					if err != nil {
						return errors.Join(err, o.print(doc))
					}
					doc.Add(id.cluster, id.epoch, report)
				}
				return o.print(doc)
			})
		},
	}
	f.add(c)
	c.Flags().StringVar(&to, "to", "", "`directory` of the other repository")
	toKey.add(c, "to-", "its key, if it is encrypted")
	c.Flags().StringVar(&cluster, "cluster", "", "copy all checkpoints of the cluster of this `name`")
	mustRequire(c, "to")
	return o.follows(c)
}

// namedCheckpoint is CLUSTER@EPOCH.
type namedCheckpoint struct {
	cluster string
	epoch   uint64
}

func (n namedCheckpoint) String() string { return fmt.Sprintf("%s@%d", n.cluster, n.epoch) }

// parseCheckpoint reads CLUSTER@EPOCH.
func parseCheckpoint(id string) (n namedCheckpoint, err error) {
	if n.cluster, err = clusterOf(id); err != nil {
		return n, app.Usage(err)
	}
	_, err = fmt.Sscan(id[len(n.cluster)+1:], &n.epoch)
	return n, err
}

// checkpointsToCopy lists those named or, if none is, all of a cluster or of all.
func checkpointsToCopy(ctx context.Context, r *repository.Repository, ids []string, cluster string) ([]namedCheckpoint, error) {
	var all []namedCheckpoint
	for _, id := range ids {
		n, err := parseCheckpoint(id)
		if err != nil {
			return nil, err
		}
		all = append(all, n)
	}
	if len(ids) > 0 {
		return all, nil
	}
	clusters := []string{cluster}
	if cluster == "" {
		var err error
		if clusters, err = r.Clusters(ctx); err != nil {
			return nil, err
		}
	}
	for _, c := range clusters {
		entries, err := r.Checkpoints(ctx, c)
		if err != nil {
			return nil, err
		}
		if len(entries) == 0 && cluster != "" {
			return nil, requireClusters(ctx, r, cluster)
		}
		for _, e := range entries {
			if e.Err != nil {
				return nil, fmt.Errorf("%s@%d: %w", c, e.Epoch, e.Err)
			}
			all = append(all, namedCheckpoint{c, e.Epoch})
		}
	}
	return all, nil
}

func newCheckpointsDiffCommand(o *operator) *cobra.Command {
	var f repositoryFlags
	c := &cobra.Command{
		Use:     "diff A B",
		Short:   "Tell which guest changed what between two checkpoints",
		Long:    "Tell which guest changed how much of which image between two checkpoints. Trees are\nread from the repository's directory, pages are not.",
		Example: "  fermata checkpoints diff demo@7 demo@8",
		Args:    names("A", "B"),
		RunE: func(c *cobra.Command, args []string) error {
			a, err := parseCheckpoint(args[0])
			if err != nil {
				return err
			}
			b, err := parseCheckpoint(args[1])
			if err != nil {
				return err
			}
			return o.onRepository(c.Context(), &f, "compare checkpoints", "the comparison is given up", func(ctx context.Context, r *repository.Repository, _ *meter) error {
				ma, err := r.Manifest(ctx, a.cluster, a.epoch)
				if err != nil {
					return err
				}
				mb, err := r.Manifest(ctx, b.cluster, b.epoch)
				if err != nil {
					return err
				}
				diffs, err := r.Diff(ctx, ma, mb)
				if err != nil {
					return err
				}
				return o.print(view.OfDiff(a.String(), b.String(), diffs))
			})
		},
	}
	f.add(c)
	return o.follows(c)
}

func mustRequire(c *cobra.Command, flag string) {
	if err := c.MarkFlagRequired(flag); err != nil {
		panic(err) // the flag is defined above
	}
}
