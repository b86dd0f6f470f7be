package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"fermata/experiments/deb"
)

// kernelMeta depends on the newest cloud kernel, whose package name holds its
// version.
const kernelMeta = "linux-image-cloud-amd64"

// mpiPackages are Open MPI and the libraries it needs with TCP as its only
// transport. Plugins that need others (UCX, libfabric, PSM) are left out of the
// image with them. libc6 comes along so that the image does not depend on the
// host's.
var mpiPackages = []string{
	"openmpi-bin", "openmpi-common", "libopenmpi3", "libopenmpi-dev",
	"libhwloc15", "libpmix2", "libevent-core-2.1-7", "libevent-pthreads-2.1-7",
	"libmunge2", "libudev1", "zlib1g", "libc6",
}

// agentPackages are QEMU's guest agent and the libraries it needs.
var agentPackages = []string{"qemu-guest-agent", "libglib2.0-0", "libpcre2-8-0", "libnuma1", "liburing2"}

// appPackages are the applications of the second image, and the libraries they
// need: HPC Challenge with the reference BLAS, and Redis.
var appPackages = []string{
	"hpcc", "libblas3",
	"redis-server", "redis-tools", "libatomic1", "libjemalloc2", "liblzf1", "libssl3", "libsystemd0",
	"libstdc++6", "libgcc-s1", "libcap2", "libgcrypt20", "libgpg-error0", "liblzma5", "libzstd1", "liblz4-1",
}

// resolve asks apt which archives stand for the packages today.
func resolve(ctx context.Context) ([]deb.Archive, error) {
	depends, err := deb.Output(ctx, "", "apt-cache", "depends", "--important", kernelMeta)
	if err != nil {
		return nil, fmt.Errorf("kernel package: %w", err)
	}
	var kernel string
	for line := range strings.Lines(depends) {
		name, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: ")
		if ok && strings.HasPrefix(name, "linux-image-") {
			kernel = name
			break // apt lists the newest version's first
		}
	}
	if kernel == "" {
		return nil, fmt.Errorf("apt knows no %s: run .ci/install or apt-get update", kernelMeta)
	}
	return deb.Source{}.Resolve(ctx, slices.Concat([]string{kernel}, mpiPackages, agentPackages, appPackages)...)
}
