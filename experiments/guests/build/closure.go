package main

import (
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// errNoLibrary marks a library that no unpacked package has.
var errNoLibrary = errors.New("library not in any package")

// linker finds the shared libraries of programs and plugins below root, as the
// dynamic linker of the guest will.
type linker struct {
	root string
	dirs []string          // below root, searched in order
	path map[string]string // path below root of each library found so far, by name
}

func newLinker(root string) *linker {
	return &linker{root: root, dirs: []string{coreLibDir, libDir}, path: map[string]string{}}
}

// add takes the libraries that file needs, and those they need, into the
// closure. On error the closure is unchanged.
func (l *linker) add(file string) error {
	found := map[string]string{}
	if err := l.collect(file, found); err != nil {
		return err
	}
	for name, path := range found {
		l.path[name] = path
	}
	return nil
}

func (l *linker) collect(file string, found map[string]string) error {
	f, err := elf.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	needed, err := f.ImportedLibraries()
	if err != nil {
		return fmt.Errorf("libraries of %s: %w", file, err)
	}
	for _, name := range needed {
		if found[name] != "" || l.path[name] != "" || name == loaderName {
			continue
		}
		path, err := l.find(name)
		if err != nil {
			return fmt.Errorf("%s needs %s: %w", filepath.Base(file), name, err)
		}
		found[name] = path
		if err := l.collect(filepath.Join(l.root, path), found); err != nil {
			return err
		}
	}
	return nil
}

func (l *linker) find(name string) (string, error) {
	for _, dir := range l.dirs {
		path := filepath.Join(dir, name)
		if _, err := os.Stat(filepath.Join(l.root, path)); err == nil {
			return path, nil
		} else if !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	return "", errNoLibrary
}

// libraries are the names of the closure, sorted.
func (l *linker) libraries() []string {
	var names []string
	for name := range l.path {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
