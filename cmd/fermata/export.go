package main

import (
	"context"
	"io"
	"os"

	"github.com/spf13/cobra"

	"fermata/cmd/internal/progress"
	"fermata/cmd/internal/render"
	"fermata/cmd/internal/view"
	"fermata/imageio/repository"
	"fermata/protocol/api"
	"fermata/protocol/fault"
)

func newCheckpointsExportCommand(o *operator) *cobra.Command {
	var f repositoryFlags
	var file string
	var forKey keySource
	var opt repository.ExportOptions
	c := &cobra.Command{
		Use:   "export ID -f FILE",
		Short: "Write a checkpoint to one self-contained file",
		Long: `Write a checkpoint, with all that a restart needs, to one file or, with -f -, to the
standard output. A file appears when it is whole and durable; until then it is called
FILE.part, and an export that is run again takes over what a killed one has left. That of
an encrypted repository is encrypted for the repository's key, or for the one given here.`,
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
	forKey.add(c, "for-", "the key to encrypt for, in place of the repository's")
	c.Flags().BoolVar(&opt.Plain, "plain", false, "do not encrypt, although the repository is")
	c.MarkFlagsMutuallyExclusive("for-key-file", "plain")
	c.MarkFlagsMutuallyExclusive("for-key-command", "plain")
	mustRequire(c, "file")
	c.Flags().Var(&o.progress, "progress", "how to show progress: bars on a terminal (auto), a line a step (plain), or none")
	mustComplete(c, "progress", progress.ModeNames())
	return c
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
	fromKey.add(c, "from-", "the key that the file was encrypted for")
	mustRequire(c, "file")
	return o.follows(c)
}
