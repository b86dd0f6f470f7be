// Command demo shows Fermata's main job on real guests and proves it.
//
// It starts a lab of two nodes, runs an MPI program and a UDP canary in a
// cluster of Linux guests, takes two checkpoints, kills every process of the
// lab with SIGKILL, deletes etcd's data, and puts the cluster back from the
// repository alone, with the guests on swapped nodes. The proof: the MPI result
// is bit for bit that of a native run, and the canary lost, doubled and
// reordered nothing. With --control the channel state is left out of the
// checkpoints, and the canary must lose.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "demo: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	var o options
	fs := flag.NewFlagSet("demo", flag.ContinueOnError)
	fs.StringVar(&o.Fermata, "fermata", "build/fermata", "the fermata binary")
	fs.StringVar(&o.GuestDir, "guest-dir", "build/guest", "the guests' kernel and root filesystem")
	fs.StringVar(&o.Dir, "dir", "build/demo-lab", "directory of the lab; emptied first")
	fs.StringVar(&o.Out, "out", "", "write the result as JSON to this file")
	fs.IntVar(&o.Guests, "guests", 4, "number of guests")
	fs.BoolVar(&o.Quick, "quick", false, "a shorter MPI program")
	fs.BoolVar(&o.Control, "control", false, "leave channel state out of the checkpoints: must lose canaries")
	fs.BoolVar(&o.Keep, "keep", false, "keep the lab's directory")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return nil
		}
		return err
	}
	if fs.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	report, err := perform(ctx, o, os.Stderr)
	if err != nil {
		return err
	}
	report.writeTable(os.Stdout)
	if o.Out != "" {
		if err := report.writeJSON(o.Out); err != nil {
			return err
		}
	}
	return report.verdict(o.Control)
}
