package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"fermata/cmd/internal/app"
	"fermata/cmd/internal/render"
)

// versionDocument is the document of "version".
type versionDocument struct {
	Version  string `json:"version"`
	Revision string `json:"revision"`
	Modified bool   `json:"modified"`
	Go       string `json:"go"`
}

// WriteTable writes one line.
func (v versionDocument) WriteTable(w io.Writer) error {
	_, err := fmt.Fprintf(w, "%s %s, %s\n", app.Name, v.Version, v.Go)
	return err
}

func newVersionCommand(env *app.Env) *cobra.Command {
	var format render.Format
	c := &cobra.Command{
		Use:     "version",
		Short:   "Print which fermata this is",
		Example: "  fermata version\n  fermata version -o json",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return render.Write(env.Stdout, format, versionDocument(app.Build()))
		},
	}
	formatFlag(c, &format)
	return c
}
