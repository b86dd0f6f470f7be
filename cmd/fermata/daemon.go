package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"fermata/cmd/internal/app"
	"fermata/protocol/fault"
	"fermata/protocol/identity"
)

// maxConfigBytes bounds a daemon's configuration file.
const maxConfigBytes = 1 << 20

// readConfig decodes a daemon's configuration file strictly: a misspelt key is
// an error, named with its line.
func readConfig(path string, into any) error {
	f, err := os.Open(path)
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "configuration")
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxConfigBytes+1))
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "configuration")
	}
	if len(data) > maxConfigBytes {
		return fault.New(fault.Invalid, "%s: larger than %d bytes", path, maxConfigBytes)
	}
	d := yaml.NewDecoder(bytes.NewReader(data))
	d.KnownFields(true)
	if err := d.Decode(into); err != nil && !errors.Is(err, io.EOF) {
		return fault.Wrap(fault.Invalid, err, "%s", path)
	}
	return nil
}

// endedAsAsked hides the cancellation that a signal to a daemon is.
func endedAsAsked(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// watchIdentity logs what happens to a daemon's certificate until the function that
// it returns is called. id may be nil.
func watchIdentity(ctx context.Context, id *identity.Identity, log hclog.Logger) (stop func()) {
	if id == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	var watching sync.WaitGroup
	watching.Go(func() {
		id.Watch(ctx, identity.Events{
			Warn: func(text string) { log.Warn("certificate needs attention", "problem", text) },
			Renewed: func(notAfter time.Time) {
				log.Info("certificate was renewed", "file", id.Files().Cert, "expires", notAfter.UTC().Format(time.DateOnly))
			},
		})
	})
	return func() { cancel(); watching.Wait() }
}

// logFlags are the flags of every daemon's log.
type logFlags struct {
	level string
	json  bool
}

func (l *logFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVar(&l.level, "log-level", "info", "trace, debug, info, warn or error")
	cmd.Flags().BoolVar(&l.json, "log-json", false, "log one JSON document a line")
}

func (l *logFlags) logger(w io.Writer, name string) (hclog.Logger, error) {
	level := hclog.LevelFromString(l.level)
	if level == hclog.NoLevel {
		return nil, app.Usagef("log level %q: need trace, debug, info, warn or error", l.level)
	}
	return hclog.New(&hclog.LoggerOptions{Name: name, Level: level, JSONFormat: l.json, Output: w}), nil
}
