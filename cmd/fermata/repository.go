package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"fermata/cmd/internal/app"
	"fermata/cmd/internal/lab"
	"fermata/cmd/internal/progress"
	"fermata/cmd/internal/remote"
	"fermata/coordinator"
	"fermata/imageio/repository"
	"fermata/imageio/seal"
	"fermata/protocol/api"
	"fermata/protocol/fault"
	"fermata/protocol/text"
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
	f.key.add(c, "", "the repository's key, if it is encrypted (env "+envKeyFile+", "+envKeyCommand+"; default: from where --repository comes from)")
	fs.StringVar(&f.dir, "repository", "", "`directory` of the repository (env "+envRepository+"; default: a lab's, or what this machine's daemons use)")
	fs.StringVar(&f.compression, "compression", "s2", "of what is written: s2, zstd or none")
}

// open finds and opens the repository.
func (f *repositoryFlags) open(ctx context.Context, o *operator) (*repository.Repository, error) {
	dir, key, err := f.resolve(o)
	if err != nil {
		return nil, err
	}
	r, err := openAt(ctx, dir, f.keyOr(o, key), f.compression)
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
		if err = coordinator.RepositoryFault(work(ctx, r, &meter{display: display})); err == nil {
			display.Done()
		}
	}
	err = app.Cause(ctx, err)
	if err != nil && !strings.HasPrefix(err.Error(), do+":") {
		err = fmt.Errorf("%s: %w", do, err)
	}
	return err
}

// requireClusters refuses names of clusters that have nothing in the repository.
func requireClusters(ctx context.Context, r *repository.Repository, wanted ...string) error {
	if len(wanted) == 0 {
		return nil
	}
	there, err := r.Clusters(ctx)
	if err != nil {
		return err
	}
	for _, name := range wanted {
		if slices.Contains(there, name) {
			continue
		}
		hint := "it has none at all"
		if near := text.Near(name, there); near != "" {
			hint = fmt.Sprintf("did you mean %s?", near)
		} else if len(there) > 0 {
			hint = "it has those of " + strings.Join(there, ", ")
		}
		return fault.WithHint(fault.New(fault.NotFound, "the repository has no checkpoints of a cluster %s", name), hint)
	}
	return nil
}

// Stand for --key-file and --key-command.
const (
	envKeyFile    = "FERMATA_REPOSITORY_KEY_FILE"
	envKeyCommand = "FERMATA_REPOSITORY_KEY_COMMAND"
)

// keySource says where the key of an encrypted repository is. The zero value says that
// there is none.
type keySource struct {
	File    string `yaml:"repository_key_file"`
	Command string `yaml:"repository_key_command"` // prints the key
}

// repositoryPlace is what the configuration files of all daemons say alike.
type repositoryPlace struct {
	Repository string `yaml:"repository"`
	keySource  `yaml:",inline"`
}

// load gets the key, nil if there is none.
func (s keySource) load(ctx context.Context) (*seal.Key, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	return s.read(ctx)
}

// check refuses two sources.
func (s keySource) check() error {
	if s.File != "" && s.Command != "" {
		return fault.New(fault.Invalid, "repository key: give a file or a command, not both")
	}
	return nil
}

func (s keySource) read(ctx context.Context) (*seal.Key, error) {
	var key seal.Key
	var err error
	switch {
	case s.File != "":
		key, err = seal.KeyFile(s.File)
	case s.Command != "":
		key, err = seal.KeyCommand(ctx, s.Command)
	default:
		return nil, nil
	}
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "")
	}
	return &key, nil
}

// add defines flags for it, with prefix before their names, of which one may be given.
func (s *keySource) add(c *cobra.Command, prefix, what string) {
	file, command := prefix+"key-file", prefix+"key-command"
	c.Flags().StringVar(&s.File, file, "", "`file` with "+what)
	c.Flags().StringVar(&s.Command, command, "", "`command` that prints "+what)
	c.MarkFlagsMutuallyExclusive(file, command)
}

// openAt opens the repository in a directory.
func openAt(ctx context.Context, dir string, key keySource, compression string) (*repository.Repository, error) {
	k, err := key.load(ctx)
	if err != nil {
		return nil, err
	}
	r, err := repository.Open(ctx, repository.Config{Dir: dir, Compression: compression, Key: k})
	return r, coordinator.RepositoryFault(err)
}

// keyHint adds to an error what a caller can do about it.
func keyHint(err error) error {
	if errors.Is(err, repository.ErrKeyMissing) {
		return fmt.Errorf("%w: name it with --key-file or --key-command, or %s", err, envKeyFile)
	}
	return err
}
