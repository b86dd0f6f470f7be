// Command fermata checkpoints and restarts virtual clusters. It is the one
// binary: the operator's verbs, and the daemons they speak to.
package main

import (
	"os"

	"fermata/cmd/internal/app"
)

func main() {
	os.Exit(app.Main(run, os.Args[1:], os.Stdout, os.Stderr))
}
