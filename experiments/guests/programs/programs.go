// Package programs holds the sources of what runs inside a guest: the init
// script, the MPI program, the canary and the console lines they write. They
// are compiled by experiments/guests/build, never by Go.
package programs

import (
	"embed"
	"io/fs"
)

//go:embed src
var sources embed.FS

// Sources are the C sources and headers and the shell scripts, in one flat
// directory.
func Sources() (fs.FS, error) { return fs.Sub(sources, "src") }
