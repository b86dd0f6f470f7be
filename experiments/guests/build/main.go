// Build makes the guests of the demo and the tests: a stock Debian kernel and
// one small initial RAM disk for all of them, put together from Debian packages
// and the sources under experiments/guests/programs. Nothing is installed on the
// host; packages are downloaded and unpacked below the output directory.
//
//	go run ./experiments/guests/build [-o DIR]
//
// The output directory (default build/guest under the module's root) then holds
//
//	vmlinuz        the kernel of the package linux-image-*-cloud-amd64, unmodified
//	initrd.img     busybox, virtio modules, Open MPI and our programs
//	jacobi         the very MPI program of the guests
//	canary         the very canary of the guests
//	dirty          their very writer of memory
//	openmpi/       the Open MPI of the guests, for the host
//	native-jacobi  runs jacobi on the host with it
//	stamp          digest of all inputs, and the packages used
//	cache/         downloaded and unpacked packages
//
// A second run with the same inputs (builder, sources, package versions, host
// compiler, busybox) does nothing.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"fermata/experiments/deb"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "guest build:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("build", flag.ContinueOnError)
	out := flags.String("o", "", "output `directory` (default build/guest under the module's root)")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *out == "" {
		root, err := moduleRoot()
		if err != nil {
			return err
		}
		*out = filepath.Join(root, "build", "guest")
	}
	dir, err := filepath.Abs(*out)
	if err != nil {
		return err
	}
	return build(ctx, dir)
}

func build(ctx context.Context, dir string) error {
	begun := time.Now()
	pkgs, err := resolve(ctx)
	if err != nil {
		return err
	}
	module, err := moduleRoot()
	if err != nil {
		return err
	}
	tool, err := buildTool(ctx, module, filepath.Join(dir, "cache"))
	if err != nil {
		return err
	}
	stamp, err := newStamp(ctx, pkgs, tool)
	if err != nil {
		return err
	}
	if stamp.matches(dir) {
		fmt.Printf("guest image in %s is up to date\n", dir)
		return nil
	}
	if err := stamp.remove(dir); err != nil {
		return err
	}
	root, err := deb.Source{}.Unpack(ctx, filepath.Join(dir, "cache"), pkgs)
	if err != nil {
		return err
	}
	programs, err := compile(ctx, filepath.Join(dir, "cache", "bin"), root, tool)
	if err != nil {
		return err
	}
	image, err := layOut(root, programs)
	if err != nil {
		return err
	}
	if err := writeOutputs(dir, root, programs, image); err != nil {
		return err
	}
	if err := stamp.write(dir); err != nil {
		return err
	}
	size := image.initrdBytes
	fmt.Printf("guest image in %s: initrd %.1f MiB (%.1f MiB unpacked), %.1f s\n",
		dir, mib(size), mib(image.unpackedBytes()), time.Since(begun).Seconds())
	return nil
}

func mib(n int64) float64 { return float64(n) / (1 << 20) }

// moduleRoot is the nearest directory upwards that has a go.mod.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("no go.mod here or above: give -o")
		}
		dir = parent
	}
}
