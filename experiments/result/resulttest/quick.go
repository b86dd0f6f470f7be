// Package resulttest runs experiments in tests.
package resulttest

import (
	"bytes"
	"context"
	"io"
	"os"
	"testing"

	"fermata/experiments/result"
)

// Quick runs an experiment with --quick and more arguments, decodes strictly what it
// prints, and sees that it leaves nothing behind. run is the experiment's own.
func Quick[R any](t *testing.T, run func(ctx context.Context, args []string, stdout, stderr io.Writer) error, more ...string) result.Document[R] {
	t.Helper()
	scratch := t.TempDir()
	var out bytes.Buffer
	if err := run(t.Context(), append([]string{"--quick", "-o", "json", "--dir", scratch}, more...), &out, t.Output()); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(scratch); err != nil || len(entries) > 0 {
		t.Errorf("left behind: %v, %v", entries, err)
	}
	doc, err := result.Decode[R](&out)
	if err != nil {
		t.Fatal(err)
	}
	return doc
}
