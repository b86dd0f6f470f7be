package repository

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"fermata/imageio/damage"
	"fermata/imageio/pack"
	"fermata/imageio/vfs"
)

// findPack returns the path of a finalised pack. A pack that a sweep has
// condemned and not yet given back is found under that name, so that a killed
// sweep takes no checkpoint from its readers.
//
// On error: damage with fs.ErrNotExist in it if there is no such pack: whoever
// asks has a manifest that needs it.
func (r *Repository) findPack(id pack.ID) (string, error) {
	final := r.packPath(id)
	_, err := r.fs.Stat(final)
	if err == nil {
		return final, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%s: %w", pack.Name(id), err)
	}
	names, lerr := r.listDir(r.packDir(id))
	if lerr != nil {
		return "", fmt.Errorf("%s: %w", pack.Name(id), lerr)
	}
	for _, name := range names {
		if f, ok := parsePackName(name); ok && f.id == id && (f.state == packCondemned || f.state == packFinal) {
			return filepath.Join(r.packDir(id), name), nil
		}
	}
	return "", damage.New(pack.Name(id), err)
}

// openPack opens a finalised pack for reading.
func (r *Repository) openPack(id pack.ID) (vfs.File, error) {
	path, err := r.findPack(id)
	if err != nil {
		return nil, err
	}
	f, err := r.fs.Open(path)
	if errors.Is(err, fs.ErrNotExist) { // renamed in between: look once more
		if path, err = r.findPack(id); err != nil {
			return nil, err
		}
		f, err = r.fs.Open(path)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", pack.Name(id), err)
	}
	return f, nil
}
