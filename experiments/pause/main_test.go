package main

import (
	"bytes"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"fermata/experiments/labrun"
	"fermata/experiments/result"
)

func TestParseOptions(t *testing.T) {
	for _, c := range []struct {
		args  []string
		n     int
		sizes []size
		json  bool
	}{
		{nil, 20, []size{512 * mib, 2 * gib, 4 * gib}, false},
		{[]string{"--quick"}, 2, []size{256 * mib}, false},
		{[]string{"--quick", "--n", "1", "--sizes", "512MiB", "-o", "json"}, 1, []size{512 * mib}, true},
		{[]string{"-n", "3", "--sizes=2GiB,256MiB"}, 3, []size{2 * gib, 256 * mib}, false},
	} {
		o, err := parseOptions(c.args, io.Discard)
		if err != nil || o.n != c.n || !slices.Equal(o.sizes, c.sizes) || o.json != c.json {
			t.Errorf("%v: %+v, %v", c.args, o, err)
		}
	}
	for _, args := range [][]string{
		{"--n", "0"}, {"--boots", "0"}, {"--n", "many"}, {"--sizes", "1KiB"}, {"-o", "yaml"}, {"--slow"}, {"1GiB"},
	} {
		var usage *result.UsageError
		if _, err := parseOptions(args, io.Discard); !errors.As(err, &usage) {
			t.Errorf("%v: error %v, want one of usage", args, err)
		}
	}
	if _, err := parseOptions([]string{"--help"}, io.Discard); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("help: %v", err)
	}
}

func TestRun_SaysWhatIsMissingInOneLine(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	nowhere := t.TempDir()
	var out, progress bytes.Buffer
	err := run(t.Context(), []string{"--guest-dir", nowhere}, &out, &progress)
	var missing result.Missing
	if !errors.As(err, &missing) {
		t.Fatalf("error %v, want what is missing", err)
	}
	for _, want := range []string{result.QEMU, labrun.Setpriv, "go", filepath.Join(nowhere, "vmlinuz"), filepath.Join(nowhere, "initrd.img")} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not name %s", err, want)
		}
	}
	if strings.Contains(err.Error(), "\n") || out.Len()+progress.Len() > 0 {
		t.Errorf("more than one line: %q, %q, %q", err, out.String(), progress.String())
	}
}

func TestRun_RefusesWithoutRoom(t *testing.T) {
	if _, err := os.Stat(ramDir); err != nil {
		t.Skip(err)
	}
	o := options{sizes: []size{256 * mib, 1 << 60}}
	if err := o.room(); err == nil || !strings.Contains(err.Error(), "missing") {
		t.Errorf("room for an exbibyte: %v", err)
	}
}
