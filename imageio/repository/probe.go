package repository

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"fermata/imageio/vfs"
)

// probeLinks looks, before anything is made, whether the file system gives one name to
// exactly one of all who ask: all that is decided once stands on link(2). It leaves
// nothing behind.
//
// On error: ErrNoHardLinks, or what the file system said.
func (r *Repository) probeLinks() error {
	dir := r.cfg.Dir
	if _, err := r.fs.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		dir = filepath.Dir(filepath.Clean(dir))
	}
	token := make([]byte, tokenBytes)
	_, _ = rand.Read(token) // never fails
	probe := filepath.Join(dir, ".fermata-probe."+hex.EncodeToString(token))
	if err := vfs.WriteFile(r.fs, probe, nil); err != nil {
		return err
	}
	second := probe + ".link"
	err := r.fs.Link(probe, second)
	if err != nil {
		return errors.Join(fmt.Errorf("%w (link %s: %w)", ErrNoHardLinks, second, err), r.fs.Remove(probe))
	}
	if again := r.fs.Link(probe, second); !errors.Is(again, fs.ErrExist) {
		err = fmt.Errorf("%w (a second link to %s: %v)", ErrNoHardLinks, second, again)
	}
	return errors.Join(err, r.fs.Remove(second), r.fs.Remove(probe))
}
