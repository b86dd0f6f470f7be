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

// maxMoves bounds the chain of packs that one has moved through. Each move halves
// a pack at least, so no chain comes near.
const maxMoves = 64

// movedError says that a pack's bytes are gone, and where what was needed of it is.
type movedError struct{ id, to pack.ID }

func (e *movedError) Error() string {
	return fmt.Sprintf("%s has moved to %s", pack.Name(e.id), pack.Name(e.to))
}

// findPack returns the path of a finalised pack. A pack that a sweep has
// condemned and not yet given back is found under that name, and one that is
// about to move under the name that says so, as long as it has bytes: whoever is
// killed takes no checkpoint from its readers.
//
// On error: *movedError, or damage with fs.ErrNotExist in it if there is no such
// pack: whoever asks has a manifest that needs it.
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
	var moved *packFile
	for _, name := range names {
		f, ok := parsePackName(name)
		if !ok || f.id != id {
			continue
		}
		switch f.state {
		case packCondemned, packFinal:
			return filepath.Join(r.packDir(id), name), nil
		case packMoved:
			moved = &f
		}
	}
	if moved == nil {
		return "", damage.New(pack.Name(id), err)
	}
	path := filepath.Join(r.packDir(id), moved.name)
	info, err := r.fs.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist): // given back in between
		return final, nil
	case err != nil:
		return "", fmt.Errorf("%s: %w", pack.Name(id), err)
	case info.Size == 0:
		return "", &movedError{id, moved.to}
	default:
		return path, nil
	}
}

// followPack is findPack that follows moves. actual is the pack at path.
func (r *Repository) followPack(id pack.ID) (actual pack.ID, path string, err error) {
	actual = id
	for range maxMoves {
		path, err = r.findPack(actual)
		var moved *movedError
		if !errors.As(err, &moved) {
			return actual, path, err
		}
		actual = moved.to
	}
	return id, "", damage.New(pack.Name(id), errors.New("moved in a circle"))
}

// openPack opens a finalised pack for reading.
//
// On error: as for findPack.
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
