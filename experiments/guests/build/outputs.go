package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/klauspost/compress/zstd"
)

// outputs are the files whose absence makes a build incomplete.
var outputs = []string{"vmlinuz", "initrd.img", "initrd-apps.img", "jacobi", "canary", "dirty", "native-jacobi", "openmpi"}

// nativeScript runs the guests' MPI program on the host as one rank, with the
// guests' Open MPI and the host's C library.
const nativeScript = `#!/bin/sh
# Usage: native-jacobi N ITERATIONS EVERY
dir=$(cd "$(dirname "$0")" && pwd)
lib=$dir/openmpi/` + libDir + `
export LD_LIBRARY_PATH=$lib
export OPAL_PREFIX=$dir/openmpi/usr PMIX_PREFIX=$dir/openmpi/usr
# One process needs neither a daemon nor a transport.
export OMPI_MCA_ess_singleton_isolated=1 OMPI_MCA_btl=self OMPI_MCA_pml=ob1
exec "$dir/jacobi" "$@"
`

func writeOutputs(dir, root, programs string, im *image) error {
	if err := copyFile(im.kernel, filepath.Join(dir, "vmlinuz"), 0o644); err != nil {
		return err
	}
	for _, name := range []string{"jacobi", "canary", "dirty"} {
		if err := copyFile(filepath.Join(programs, name), filepath.Join(dir, name), 0o755); err != nil {
			return err
		}
	}
	if err := writeTree(filepath.Join(dir, "openmpi"), im.mpi); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "native-jacobi"), []byte(nativeScript), 0o755); err != nil {
		return err
	}
	n, err := writeInitrd(filepath.Join(dir, "initrd.img"), im.root)
	if err != nil {
		return fmt.Errorf("write initrd: %w", err)
	}
	im.initrdBytes = n
	return writeAppInitrd(filepath.Join(dir, "initrd-apps.img"), filepath.Join(dir, "initrd.img"), im.apps)
}

// writeAppInitrd writes the initial RAM disk of guests that run applications: base,
// followed by an archive of the applications. The kernel unpacks one after the other.
func writeAppInitrd(path, base string, apps tree) error {
	if _, err := writeInitrd(path, apps); err != nil {
		return fmt.Errorf("write applications: %w", err)
	}
	layer, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := copyFile(base, path, 0o644); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	// Archives begin at multiples of four bytes
	// (Documentation/driver-api/early-userspace/buffer-format.rst).
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	if _, err := f.Write(make([]byte, -end&3)); err != nil {
		return err
	}
	if _, err := f.Write(layer); err != nil {
		return err
	}
	return f.Close()
}

// writeInitrd compresses the archive to a third. Under emulation a guest boots
// 0.1 to 0.3 s later than from the plain archive.
func writeInitrd(path string, t tree) (int64, error) {
	f, err := os.Create(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	z, err := zstd.NewWriter(f, zstd.WithEncoderLevel(zstd.SpeedBetterCompression), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return 0, err
	}
	if err := t.writeTo(z); err != nil {
		return 0, err
	}
	if err := z.Close(); err != nil {
		return 0, err
	}
	n, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return 0, err
	}
	return n, f.Close()
}

// writeTree writes t as plain files below dir, anew.
func writeTree(dir string, t tree) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	for _, name := range t.names() {
		n := t[name]
		path := filepath.Join(dir, name)
		var err error
		if n.mode.IsDir() {
			err = os.MkdirAll(path, 0o755)
		} else {
			err = os.WriteFile(path, n.data, n.mode.Perm())
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func copyFile(from, to string, perm os.FileMode) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if err := os.Remove(to); err != nil && !os.IsNotExist(err) {
		return err
	}
	return os.WriteFile(to, data, perm)
}
