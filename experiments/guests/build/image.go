package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
)

const (
	busyboxPath = "/bin/busybox"
	loaderName  = "ld-linux-x86-64.so.2"
)

// modules are what a stock cloud kernel has not built in, in the order in which
// they must be loaded. No balloon: it takes pages away behind a capture's back.
var modules = []string{
	"drivers/virtio/virtio_ring", "drivers/virtio/virtio",
	"drivers/virtio/virtio_pci_modern_dev", "drivers/virtio/virtio_pci_legacy_dev", "drivers/virtio/virtio_pci",
	"net/core/failover", "drivers/net/net_failover", "drivers/net/virtio_net",
	"drivers/block/virtio_blk", "drivers/char/hw_random/virtio-rng", "drivers/char/virtio_console",
}

// launchers are mpirun and the daemon that it starts on the other guests.
var launchers = []string{"usr/bin/orterun", "usr/bin/orted"}

// wantedPlugins are the parts of Open MPI without which a job does not start;
// plugins of hardware that guests do not have may be missing.
var wantedPlugins = []string{
	"mca_pmix_ext3x.so", "mca_ess_hnp.so", "mca_ess_env.so", "mca_plm_rsh.so", "mca_odls_default.so",
	"mca_oob_tcp.so", "mca_rml_oob.so", "mca_pml_ob1.so", "mca_btl_tcp.so", "mca_btl_self.so",
	"mca_coll_basic.so", "mca_coll_tuned.so", "mca_coll_libnbc.so",
}

// image is a guest's root filesystem and the part of it that is Open MPI.
type image struct {
	root        tree
	mpi         tree // Open MPI without the C library, for the host
	apps        tree // applications that only some guests run, laid over root
	kernel      string
	initrdBytes int64
}

func (im *image) unpackedBytes() int64 {
	var n int64
	for _, node := range im.root {
		n += int64(len(node.data))
	}
	return n
}

// layOut puts the image together in memory from the unpacked packages and the
// compiled programs.
func layOut(root, programs string) (*image, error) {
	kernel, err := one(filepath.Join(root, "boot", "vmlinuz-*"))
	if err != nil {
		return nil, err
	}
	im := &image{root: tree{}, mpi: tree{}, apps: tree{}, kernel: kernel}
	im.root.put("dev/console", node{mode: fs.ModeDevice | fs.ModeCharDevice | 0o600, rdev: [2]uint32{5, 1}})
	for _, step := range []func(root, programs string) error{im.addBusybox, im.addPrograms, im.addModules, im.addMPI, im.addAgent, im.addApps} {
		if err := step(root, programs); err != nil {
			return nil, err
		}
	}
	return im, nil
}

func (im *image) addBusybox(_, _ string) error {
	data, err := os.ReadFile(busyboxPath)
	if err != nil {
		return err
	}
	im.root.file("bin/busybox", 0o755, data)
	applets, err := exec.Command(busyboxPath, "--list").Output()
	if err != nil {
		return fmt.Errorf("busybox --list: %w", err)
	}
	for _, name := range strings.Fields(string(applets)) {
		if name != "busybox" {
			im.root.link(path.Join("bin", name), "busybox")
		}
	}
	return nil
}

func (im *image) addPrograms(_, programs string) error {
	for _, p := range []struct{ name, path string }{
		{"init", "init"}, {"rsh", "bin/rsh"}, {"say", "bin/say"}, {"canary", "bin/canary"},
		{"dirty", "bin/dirty"}, {"jacobi", "bin/jacobi"}, {"secret", "bin/secret"}, {toolName, "bin/" + toolName},
	} {
		data, err := os.ReadFile(filepath.Join(programs, p.name))
		if err != nil {
			return err
		}
		im.root.file(p.path, 0o755, data)
	}
	// The launcher asks for the user's name and home.
	im.root.file("etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/bin/sh\n"))
	im.root.file("etc/group", 0o644, []byte("root:x:0:\n"))
	im.root.file("etc/nsswitch.conf", 0o644, []byte("passwd: files\ngroup: files\nhosts: files\n"))
	return nil
}

func (im *image) addModules(root, _ string) error {
	dir, err := one(filepath.Join(root, "lib", "modules", "*"))
	if err != nil {
		return err
	}
	var order bytes.Buffer
	for _, module := range modules {
		name := path.Base(module)
		data, err := os.ReadFile(filepath.Join(dir, "kernel", module+".ko"))
		if err != nil {
			return err
		}
		im.root.file("modules/"+name+".ko", 0o644, data)
		fmt.Fprintln(&order, name)
	}
	im.root.file("modules/order", 0o644, order.Bytes())
	return nil
}

// addMPI takes the launcher, its daemon, all plugins whose libraries we have,
// and the closure of libraries.
func (im *image) addMPI(root, programs string) error {
	l := newLinker(root)
	for _, name := range launchers {
		if err := l.add(filepath.Join(root, name)); err != nil {
			return err
		}
	}
	if err := l.add(filepath.Join(programs, "jacobi")); err != nil {
		return err
	}
	for _, pattern := range []string{"openmpi/lib/openmpi3/mca_*.so", "pmix2/lib/pmix/*.so"} {
		if err := im.addPlugins(l, filepath.Join(libDir, pattern)); err != nil {
			return err
		}
	}
	for _, name := range wantedPlugins {
		if _, ok := im.root[path.Join(libDir, "openmpi/lib/openmpi3", name)]; !ok {
			return fmt.Errorf("plugin %s: %w", name, errNoLibrary)
		}
	}
	for _, name := range l.libraries() {
		if err := im.addLibrary(root, name, l.path[name]); err != nil {
			return err
		}
	}
	if err := im.addFile(root, coreLibDir+"/"+loaderName, "lib64/"+loaderName); err != nil {
		return err
	}
	for _, name := range launchers {
		if err := im.addMPIFile(root, name, name); err != nil {
			return err
		}
	}
	im.root.link("bin/mpirun", "/usr/bin/orterun")
	im.root.link("bin/orted", "/usr/bin/orted")
	return im.addHelpTexts(root)
}

// addPlugins takes the plugins below l.root whose libraries are there.
func (im *image) addPlugins(l *linker, pattern string) error {
	plugins, err := filepath.Glob(filepath.Join(l.root, pattern))
	if err != nil {
		return err
	}
	for _, plugin := range plugins {
		switch err := l.add(plugin); {
		case errors.Is(err, errNoLibrary):
			continue
		case err != nil:
			return err
		}
		below, err := filepath.Rel(l.root, plugin)
		if err != nil {
			return err
		}
		if err := im.addMPIFile(l.root, below, below); err != nil {
			return err
		}
	}
	return nil
}

// addLibrary takes the library name found at from. It lies in libDir, where both
// the guest's dynamic linker and the host's wrapper look.
func (im *image) addLibrary(root, name, from string) error {
	if strings.HasPrefix(from, coreLibDir) && isCLibrary(name) {
		return im.addFile(root, from, coreLibDir+"/"+name)
	}
	return im.addMPIFile(root, from, libDir+"/"+name)
}

// addAgent takes QEMU's guest agent, what it sets the hardware clock with, and its
// libraries.
func (im *image) addAgent(root, _ string) error {
	const binary = "usr/sbin/qemu-ga"
	l := newLinker(root)
	if err := l.add(filepath.Join(root, binary)); err != nil {
		return err
	}
	for _, name := range l.libraries() {
		to := path.Dir(l.path[name]) + "/" + name
		if _, have := im.root[to]; have {
			continue
		}
		if err := im.addFile(root, l.path[name], to); err != nil {
			return err
		}
	}
	im.root.link("sbin/hwclock", "../bin/busybox")
	return im.addFile(root, binary, "bin/qemu-ga")
}

// isCLibrary tells the parts of libc6, which the host must take from itself,
// from the other libraries.
func isCLibrary(name string) bool {
	switch name {
	case "libc.so.6", "libm.so.6", "libdl.so.2", "librt.so.1", "libpthread.so.0", "libutil.so.1", "libresolv.so.2":
		return true
	}
	return false
}

// addHelpTexts takes Open MPI's messages, without which an error is a riddle.
func (im *image) addHelpTexts(root string) error {
	for _, pattern := range []string{"usr/share/openmpi/*.txt", "usr/share/pmix2/*.txt", libDir + "/pmix2/share/pmix/*.txt"} {
		files, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			return err
		}
		for _, file := range files {
			below, err := filepath.Rel(root, file)
			if err != nil {
				return err
			}
			if err := im.addMPIFile(root, below, below); err != nil {
				return err
			}
		}
	}
	return nil
}

func (im *image) addMPIFile(root, from, to string) error {
	if err := im.addFile(root, from, to); err != nil {
		return err
	}
	im.mpi.put(to, im.root[to])
	return nil
}

func (im *image) addFile(root, from, to string) error { return im.root.copyFrom(root, from, to) }

// copyFrom takes the file from below root into the tree as to.
func (t tree) copyFrom(root, from, to string) error {
	file := filepath.Join(root, from)
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	t.file(to, info.Mode().Perm(), data)
	return nil
}

// one is the only file that pattern names.
func one(pattern string) (string, error) {
	found, err := filepath.Glob(pattern)
	if err != nil {
		return "", err
	}
	if len(found) != 1 {
		return "", fmt.Errorf("%d files for %s, want one", len(found), pattern)
	}
	return found[0], nil
}
