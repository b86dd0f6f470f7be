package result

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"
)

// ParseFlags adds -o to the flags of an experiment and reads args. check then says
// what is wrong with the experiment's own, all at once. asJSON tells which form of the
// result is wanted.
//
// On error: *UsageError, or flag.ErrHelp when help was asked for and given.
func ParseFlags(fs *flag.FlagSet, args []string, check func() error) (asJSON bool, err error) {
	format := fs.String("o", "table", "`format` of the result: table or json")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return false, err
		}
		return false, &UsageError{Err: err}
	}
	errs := []error{check()}
	if *format != "table" && *format != "json" {
		errs = append(errs, fmt.Errorf("-o %s: want table or json", *format))
	}
	if fs.NArg() > 0 {
		errs = append(errs, fmt.Errorf("unexpected argument %q", fs.Arg(0)))
	}
	if err := errors.Join(errs...); err != nil {
		return false, &UsageError{Err: err}
	}
	return *format == "json", nil
}

// Need tells what the machine lacks of root, programs and files that make guests
// makes: Missing, or nil when it has all.
func Need(programs []string, files ...string) error {
	var m Missing
	if os.Geteuid() != 0 {
		m = append(m, "root (network namespaces)")
	}
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			m = append(m, p)
		}
	}
	for _, f := range files {
		if _, err := os.Stat(f); err != nil {
			m = append(m, fmt.Sprintf("%s (make guests)", f))
		}
	}
	if m == nil {
		return nil
	}
	return m
}

// Notes returns a function that writes a line of progress to w, with the time since.
func Notes(w io.Writer) func(format string, args ...any) {
	begun := time.Now()
	return func(format string, args ...any) {
		fmt.Fprintf(w, "[%6.1fs] %s\n", time.Since(begun).Seconds(), fmt.Sprintf(format, args...))
	}
}

// New begins the document of an experiment on this machine, at the commit of the
// working directory.
func New[R any](ctx context.Context, name string) (d Document[R], err error) {
	d.Experiment = name
	if d.Machine, err = Here(ctx); err == nil {
		d.Commit, err = Commit(ctx, ".")
	}
	return d, err
}

// Print writes the document, or its table.
func (d Document[R]) Print(w io.Writer, asJSON bool, columns []Column[R]) error {
	if asJSON {
		return d.Encode(w)
	}
	return d.WriteTable(w, columns)
}

// Draw writes panels to a file.
func Draw(path string, panels ...Panel) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("draw result: %w", err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return WriteSVG(f, panels...)
}
