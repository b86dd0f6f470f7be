package main

import (
	"path"
	"path/filepath"
)

// appPrograms are the programs of the second image, where the guests' shell finds
// them. redis-check-rdb is the server under another name (Debian's redis-tools).
var appPrograms = []struct{ from, to string }{
	{"usr/bin/hpcc", "bin/hpcc"},
	{"usr/bin/redis-check-rdb", "bin/redis-server"},
	{"usr/bin/redis-cli", "bin/redis-cli"},
}

// blasDir is where Debian's alternatives keep the reference BLAS.
const blasDir = libDir + "/blas"

// addApps takes the applications and those of their libraries that the base image
// lacks. Preconditions: everything else has been added.
func (im *image) addApps(root, programs string) error {
	l := newLinker(root)
	l.dirs = append(l.dirs, blasDir)
	for _, p := range appPrograms {
		if err := l.add(filepath.Join(root, p.from)); err != nil {
			return err
		}
		if err := im.apps.copyFrom(root, p.from, p.to); err != nil {
			return err
		}
	}
	for _, name := range l.libraries() {
		dir := path.Dir(l.path[name])
		if dir == blasDir {
			dir = libDir // the dynamic linker does not look below
		}
		if _, have := im.root[dir+"/"+name]; have {
			continue
		}
		if err := im.apps.copyFrom(root, l.path[name], dir+"/"+name); err != nil {
			return err
		}
	}
	return im.apps.copyFrom(programs, "tally", "bin/tally")
}
