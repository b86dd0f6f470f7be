package result

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"testing"
)

func TestStatus(t *testing.T) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for _, c := range []struct {
		name string
		ctx  context.Context
		err  error
		want int
		says string
	}{
		{"measured", t.Context(), nil, Measured, ""},
		{"help", t.Context(), fmt.Errorf("flags: %w", flag.ErrHelp), Measured, ""},
		{"measured in spite of Ctrl-C", ended, nil, Measured, ""},
		{"usage", t.Context(), &UsageError{errors.New("n: 0")}, Misused, "it: n: 0\n"},
		{"missing", t.Context(), Missing{"QEMU", "a guest image"}, NotMeasured, "it: missing: QEMU; a guest image\n"},
		{"interrupted", ended, errors.New("wait: context canceled"), Interrupted, "it: interrupted: wait: context canceled\n"},
	} {
		var out, complaints bytes.Buffer
		got := status(c.ctx, "it", func(context.Context, []string, io.Writer, io.Writer) error { return c.err }, nil, &out, &complaints)
		if got != c.want || complaints.String() != c.says || out.Len() > 0 {
			t.Errorf("%s: status %d and %q, want %d and %q", c.name, got, complaints.String(), c.want, c.says)
		}
	}
}
