package main

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"fermata/cmd/internal/app"
	"fermata/cmd/internal/render"
	"fermata/cmd/internal/view"
	"fermata/imageio/repository"
	"fermata/imageio/seal"
)

func newRepoKeyCommand(o *operator) *cobra.Command {
	return newGroup("key", "Look after the keys of an encrypted repository",
		newRepoKeyCreateCommand(o),
		newRepoKeyListCommand(o),
		newRepoKeyAddCommand(o),
		newRepoKeyRemoveCommand(o),
	)
}

// madeKey is the document of "repo key create".
type madeKey struct {
	ID   string `json:"id"`
	File string `json:"file"`
}

// WriteTable writes what was made.
func (d madeKey) WriteTable(w io.Writer) error {
	var f render.Fields
	f.Add("id", d.ID)
	f.Add("file", d.File)
	return f.Write(w)
}

func newRepoKeyCreateCommand(o *operator) *cobra.Command {
	c := &cobra.Command{
		Use:   "create FILE",
		Short: "Draw a key and write it to a file",
		Long: `Draw a key and write it to a file that only its owner can read. A file is never
replaced. Keep a copy elsewhere: without a key an encrypted repository is lost.`,
		Example: "  fermata repo key create /etc/fermata/repository.key\n  fermata repo create /scratch/fermata --key-file /etc/fermata/repository.key",
		Args:    names("FILE"),
		RunE: func(_ *cobra.Command, args []string) error {
			key, err := seal.NewKey(nil)
			if err != nil {
				return err
			}
			err = writeWhole(args[0], func(w io.Writer) error {
				_, err := io.WriteString(w, key.Text())
				return err
			})
			if err != nil {
				return err
			}
			return o.print(madeKey{ID: key.ID(), File: args[0]})
		},
	}
	formatFlag(c, &o.format)
	return c
}

func newRepoKeyListCommand(o *operator) *cobra.Command {
	var f repositoryFlags
	c := &cobra.Command{
		Use:     "list",
		Short:   "List the keys that open the repository",
		Long:    "List the ids of the keys that open the repository. The one that was used now is marked.",
		Example: "  fermata repo key list",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return o.onRepository(c.Context(), &f, "list keys", "the list is given up", func(_ context.Context, r *repository.Repository, _ *meter) error {
				return o.printKeys(r)
			})
		},
	}
	f.add(c)
	return o.follows(c)
}

func (o *operator) printKeys(r *repository.Repository) error {
	ids, err := r.Keys()
	if err != nil {
		return err
	}
	return o.print(view.OfRepoKeys(ids, r.KeyID()))
}

func newRepoKeyAddCommand(o *operator) *cobra.Command {
	var f repositoryFlags
	var next keySource
	c := &cobra.Command{
		Use:   "add --new-key-file FILE",
		Short: "Let another key open the repository",
		Long: `Let another key open the repository. To replace a key, add the next, name it in
the configuration of all daemons, and remove the last; nothing that is stored changes.`,
		Example: `  fermata repo key create /etc/fermata/next.key
  fermata repo key add --new-key-file /etc/fermata/next.key
  fermata repo key remove 6bd4c2a09f1e3375 --key-file /etc/fermata/next.key`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			key, err := next.load(c.Context())
			if err == nil && key == nil {
				err = app.Usagef("give the key to add: --new-key-file or --new-key-command")
			}
			if err != nil {
				return err
			}
			return o.onRepository(c.Context(), &f, "add key", "the key is added or not", func(_ context.Context, r *repository.Repository, _ *meter) error {
				if err := r.AddKey(*key); err != nil {
					return err
				}
				return o.printKeys(r)
			})
		},
	}
	f.add(c)
	next.add(c, "new-", "the key to add")
	return o.follows(c)
}

func newRepoKeyRemoveCommand(o *operator) *cobra.Command {
	var f repositoryFlags
	c := &cobra.Command{
		Use:   "remove KEY",
		Short: "Let a key not open the repository any more",
		Long: `Let a key not open the repository any more. The key that opens it for this command
cannot be removed, so that one always stays. Whoever has read the data key with it
before can go on reading: against that, copy what is to be kept to a new repository.`,
		Example: "  fermata repo key remove 6bd4c2a09f1e3375",
		Args:    names("KEY"),
		RunE: func(c *cobra.Command, args []string) error {
			return o.onRepository(c.Context(), &f, "remove key", "the key is removed or not", func(_ context.Context, r *repository.Repository, _ *meter) error {
				if err := r.RemoveKey(args[0]); err != nil {
					return err
				}
				return o.printKeys(r)
			})
		},
	}
	f.add(c)
	return o.confirms(o.follows(c), func(args []string) string {
		return "key " + args[0] + " will not open the repository any more"
	})
}
