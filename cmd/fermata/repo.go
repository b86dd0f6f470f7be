package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"fermata/cmd/internal/app"
	"fermata/cmd/internal/lab"
	"fermata/cmd/internal/progress"
	"fermata/cmd/internal/remote"
	"fermata/cmd/internal/render"
	"fermata/cmd/internal/view"
	"fermata/coordinator"
	"fermata/imageio/repository"
	"fermata/protocol/api"
	"fermata/protocol/fault"
)

// envRepository stands for --repository.
const envRepository = "FERMATA_REPOSITORY"

// repositoryFlags say where the repository is. The verbs that use them work on its
// directory, on any node that mounts it, and ask no coordinator.
type repositoryFlags struct {
	dir         string
	key         keySource
	compression string
}

func (f *repositoryFlags) add(c *cobra.Command) {
	fs := c.Flags()
	f.key.add(fs, "", "the repository's key, if it is encrypted (env "+envKeyFile+", "+envKeyCommand+"; default: from where --repository comes from)")
	mustExclude(c, "")
	fs.StringVar(&f.dir, "repository", "", "`directory` of the repository (env "+envRepository+"; default: a lab's, or what this machine's daemons use)")
	fs.StringVar(&f.compression, "compression", "s2", "of what is written: s2, zstd or none")
}

// open finds and opens the repository.
func (f *repositoryFlags) open(ctx context.Context, o *operator) (*repository.Repository, error) {
	dir, key, err := f.resolve(o)
	if err != nil {
		return nil, err
	}
	r, err := openThere(ctx, dir, f.keyOr(o, key), f.compression)
	return r, keyHint(err)
}

// keyOr is where the key is: a flag wins over the environment, and that over what
// belongs to the directory.
func (f *repositoryFlags) keyOr(o *operator, otherwise keySource) keySource {
	env := keySource{File: o.env.Getenv(envKeyFile), Command: o.env.Getenv(envKeyCommand)}
	for _, s := range []keySource{f.key, env} {
		if s != (keySource{}) {
			return s
		}
	}
	return otherwise
}

// resolve decides between the sources: a flag wins over the environment, and that
// over the configuration of this machine's daemons.
func (f *repositoryFlags) resolve(o *operator) (dir string, key keySource, err error) {
	getenv := o.env.Getenv
	ofLab := func(dir string) (string, keySource, error) {
		return lab.RepositoryDir(dir), keySource{File: lab.RepositoryKeyFile(dir)}, nil
	}
	switch {
	case f.dir != "":
		return f.dir, key, nil
	case o.remote.Lab != "":
		return ofLab(o.remote.Lab)
	case getenv(envRepository) != "":
		return getenv(envRepository), key, nil
	case getenv(remote.EnvLab) != "":
		return ofLab(getenv(remote.EnvLab))
	}
	for _, c := range []struct {
		file string
		into func() (any, *repositoryPlace)
	}{
		{"coordinator.yaml", func() (any, *repositoryPlace) { c := new(coordinatorFile); return c, &c.repositoryPlace }},
		{"agent.yaml", func() (any, *repositoryPlace) { a := new(agentFile); return a, &a.repositoryPlace }},
	} {
		path := filepath.Join(remote.ConfigDir, c.file)
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		file, place := c.into()
		if err := readConfig(path, file); err != nil {
			return "", key, err
		}
		if place.Repository != "" {
			return place.Repository, place.keySource, nil
		}
	}
	return "", key, fault.New(fault.Invalid, "no repository: name it with --repository or --lab, %s or %s, or in %s",
		envRepository, remote.EnvLab, filepath.Join(remote.ConfigDir, "agent.yaml"))
}

// meter shows how a long operation on a repository gets on.
type meter struct {
	display progress.Display
	told    time.Time
}

// tellEvery bounds how often counts are shown: a log must not grow by the object.
const tellEvery = time.Second

// seldom shows an event if none was shown lately, or at once.
func (m *meter) seldom(e *api.Event, atOnce bool) {
	if atOnce || time.Since(m.told) >= tellEvery {
		m.told = time.Now()
		m.display.Event(e)
	}
}

// counts shows how many of something are done.
func (m *meter) counts(step, what string) func(done, total int) {
	return func(done, total int) {
		m.seldom(&api.Event{Step: step, Text: fmt.Sprintf("%d of %d %s", done, total, what)}, done == 0 || done == total)
	}
}

// bytes shows how many bytes are done.
func (m *meter) bytes(step string) func(done, total int64) {
	return func(done, total int64) {
		m.display.Event(&api.Event{Step: step, DoneBytes: uint64(done), TotalBytes: uint64(total)})
	}
}

// onRepository opens the repository and works on it. do is what is to be done, in
// words; interrupted is what an interrupt means.
func (o *operator) onRepository(ctx context.Context, f *repositoryFlags, do, interrupted string, work func(context.Context, *repository.Repository, *meter) error) error {
	o.env.OnInterrupt(interrupted)
	display, err := progress.New(ctx, o.progress, o.env.Stderr, o.env.Terminal)
	if err != nil {
		return err
	}
	defer display.Close()
	defer o.env.RedirectNotices(display)()
	r, err := f.open(ctx, o)
	if err == nil {
		err = coordinator.RepositoryFault(work(ctx, r, &meter{display: display}))
	}
	err = app.Cause(ctx, err)
	if err != nil && !strings.HasPrefix(err.Error(), do+":") {
		err = fmt.Errorf("%s: %w", do, err)
	}
	return err
}

func newRepoCommand(o *operator) *cobra.Command {
	return newGroup("repo", "Look after a repository",
		newRepoCreateCommand(o),
		newRepoStatsCommand(o),
		newRepoCheckCommand(o),
		newRepoRepairCommand(o),
		newRepoPruneCommand(o),
		newRepoCopyCommand(o),
		newRepoKeyCommand(o),
	)
}

func newRepoCreateCommand(*operator) *cobra.Command {
	var stripe string
	var key keySource
	c := &cobra.Command{
		Use:   "create DIRECTORY",
		Short: "Make an empty repository",
		Long: `Make an empty repository. The coordinator makes its own where there is none; this is
for one to copy to, and for file systems that want a hint before the first file:
--stripe-command is run with the directory of the packs behind its words, whose
layout the directories below inherit. With a key (see repo key create) everything in
it is encrypted.`,
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
			_, err = repository.Create(c.Context(), cfg)
			return app.Cause(c.Context(), coordinator.RepositoryFault(err))
		},
	}
	c.Flags().StringVar(&stripe, "stripe-command", "", "`command` that gives a directory its striping")
	key.add(c.Flags(), "", "the key that the repository is encrypted for")
	mustExclude(c, "")
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
the next one is right. Do not delete a checkpoint that is being restarted.`,
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
				plan, err := r.PlanPrune(ctx, opt)
				if err != nil {
					return err
				}
				if dryRun {
					return o.print(view.OfRepoPrune(plan, nil))
				}
				done, err := r.Prune(ctx, plan)
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
	return o.follows(c)
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
				there, err := openThere(ctx, to, toKey, f.compression)
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
	toKey.add(c.Flags(), "to-", "its key, if it is encrypted")
	mustExclude(c, "to-")
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
			return nil, fault.New(fault.NotFound, "cluster %s has no checkpoint", cluster)
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

func newCheckpointsExportCommand(o *operator) *cobra.Command {
	var f repositoryFlags
	var file string
	var forKey keySource
	var opt repository.ExportOptions
	c := &cobra.Command{
		Use:   "export ID -f FILE",
		Short: "Write a checkpoint to one self-contained file",
		Long: `Write a checkpoint, with all that a restart needs, to one file or, with -f -, to the
standard output. A file appears when it is whole and durable. That of an encrypted
repository is encrypted for the repository's key, or for the one given here.`,
		Example: "  fermata checkpoints export demo@7 -f demo-7.fermata\n  fermata checkpoints export demo@7 -f - | ssh archive fermata checkpoints import -f -",
		Args:    checkpointID,
		RunE: func(c *cobra.Command, args []string) error {
			id, err := parseCheckpoint(args[0])
			if err != nil {
				return err
			}
			if opt.Key, err = forKey.load(c.Context()); err != nil {
				return err
			}
			return o.onRepository(c.Context(), &f, "export checkpoint "+args[0], "the export is given up, no file is left", func(ctx context.Context, r *repository.Repository, m *meter) error {
				opt.Progress = m.bytes("export")
				export := func(w io.Writer) error { return r.Export(ctx, id.cluster, id.epoch, w, opt) }
				if file == "-" {
					return export(o.env.Stdout)
				}
				return writeWhole(file, export)
			})
		},
	}
	f.add(c)
	c.Flags().StringVarP(&file, "file", "f", "", "`file` to write, - for the standard output")
	forKey.add(c.Flags(), "for-", "the key to encrypt for, in place of the repository's")
	c.Flags().BoolVar(&opt.Plain, "plain", false, "do not encrypt, although the repository is")
	c.MarkFlagsMutuallyExclusive("for-key-file", "for-key-command", "plain")
	mustRequire(c, "file")
	c.Flags().Var(&o.progress, "progress", "how to show progress: bars on a terminal (auto), a line a step (plain), or none")
	mustComplete(c, "progress", progress.ModeNames())
	return c
}

// writeWhole makes a file that appears when it is whole and durable. It does not
// replace one.
func writeWhole(path string, write func(io.Writer) error) (err error) {
	temp := path + ".part"
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "")
	}
	defer func() { err = errors.Join(err, os.Remove(temp)) }()
	err = write(f)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Link(temp, path); err != nil { // unlike rename(2) it replaces nothing
		return fault.Wrap(fault.Exists, err, "")
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

func newCheckpointsImportCommand(o *operator) *cobra.Command {
	var f repositoryFlags
	var file string
	var fromKey keySource
	c := &cobra.Command{
		Use:   "import -f FILE",
		Short: "Make a checkpoint of an exported file",
		Long: `Make a checkpoint of an exported file, or with -f - of the standard input, under the
name it had. Everything is verified, and what is not whole becomes no checkpoint. A
file that was encrypted is opened with the key given here, or the repository's.`,
		Example: "  fermata checkpoints import -f demo-7.fermata --repository /scratch/fermata",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			key, err := fromKey.load(c.Context())
			if err != nil {
				return err
			}
			return o.onRepository(c.Context(), &f, "import checkpoint", "the import is given up, there is no checkpoint", func(ctx context.Context, r *repository.Repository, m *meter) error {
				from := o.env.Stdin
				if file != "-" {
					in, err := os.Open(file)
					if err != nil {
						return fault.Wrap(fault.NotFound, err, "")
					}
					defer in.Close()
					from = in
				}
				man, report, err := r.Import(ctx, from, repository.ImportOptions{Key: key, Progress: func(done int64) {
					m.seldom(&api.Event{Step: "import", Text: render.Bytes(done) + " of pages"}, false)
				}})
				if err != nil {
					return err
				}
				var doc view.RepoCopies
				doc.Add(man.Cluster, man.Epoch, report)
				return o.print(doc)
			})
		},
	}
	f.add(c)
	c.Flags().StringVarP(&file, "file", "f", "", "`file` to read, - for the standard input")
	fromKey.add(c.Flags(), "from-", "the key that the file was encrypted for")
	mustExclude(c, "from-")
	mustRequire(c, "file")
	return o.follows(c)
}

func mustRequire(c *cobra.Command, flag string) {
	if err := c.MarkFlagRequired(flag); err != nil {
		panic(err) // the flag is defined above
	}
}
