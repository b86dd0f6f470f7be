package labrun

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Build builds the fermata binary of the working directory's module into path, with
// build tags: failpoints makes one that can be told where to die.
func Build(ctx context.Context, path string, tags ...string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-tags", strings.Join(tags, ","), "-trimpath", "-o", path, "fermata/cmd/fermata")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build fermata: %w\n%s", err, out)
	}
	return nil
}

// Scratch is a lab with a binary of its own, in a directory of its own, that ends with
// the process.
type Scratch struct {
	*Lab
	dir string // holds everything
}

// NewScratch builds a binary with tags and starts a lab of it below parent. End it.
//
// On error: nothing is left.
func NewScratch(ctx context.Context, parent, name string, nodes int, tags ...string) (*Scratch, error) {
	return NewScratchOf(ctx, parent, name, nodes, func(*Lab) {}, tags...)
}

// NewScratchOf is NewScratch of a lab that change has changed before its start.
func NewScratchOf(ctx context.Context, parent, name string, nodes int, change func(*Lab), tags ...string) (_ *Scratch, err error) {
	// The name stays short: there are sockets below it.
	dir, err := os.MkdirTemp(parent, "fermata-"+name+"-")
	if err != nil {
		return nil, fmt.Errorf("make scratch directory: %w", err)
	}
	s := &Scratch{dir: dir, Lab: &Lab{
		Fermata: filepath.Join(dir, "fermata"), Dir: filepath.Join(dir, "lab"), Nodes: nodes,
		Args: []string{"--log-level", "warn"}, Prefix: Tied(),
	}}
	change(s.Lab)
	defer func() {
		if err != nil {
			err = errors.Join(err, s.End())
		}
	}()
	if s.Fermata == filepath.Join(dir, "fermata") { // it was not given
		if err := Build(ctx, s.Fermata, tags...); err != nil {
			return nil, err
		}
	}
	if err := os.Mkdir(s.Dir, 0o700); err != nil {
		return nil, err
	}
	return s, s.Start(ctx)
}

// Bring creates and starts a cluster.
func (s *Scratch) Bring(ctx context.Context, clusterName, spec string) error {
	path := filepath.Join(s.dir, "cluster.yaml")
	if err := os.WriteFile(path, []byte(spec), 0o600); err != nil {
		return err
	}
	for _, args := range [][]string{{"cluster", "create", "-f", path}, {"cluster", "start", clusterName}} {
		if err := s.Command(ctx, io.Discard, nil, args...); err != nil {
			return err
		}
	}
	return nil
}

// End ends the lab and removes everything. It is an error if anything was left.
func (s *Scratch) End() error {
	return errors.Join(s.CheckNothingLeft(), os.RemoveAll(s.dir))
}
