package mustrun

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// GuestDirEnv names the environment variable that overrides where GuestDir looks.
const GuestDirEnv = "FERMATA_GUEST_DIR"

// KVM_GET_API_VERSION and the only answer it has ever had (linux/kvm.h).
const (
	kvmGetAPIVersion = 0xAE00
	kvmAPIVersion    = 12
)

// hugePages is where the kernel says how many pages of 2 MiB it keeps
// (Documentation/admin-guide/mm/hugetlbpage.rst).
const hugePages = "/sys/kernel/mm/hugepages/hugepages-2048kB"

func probe(tier Tier) error {
	switch tier {
	case QEMU:
		_, err := exec.LookPath("qemu-system-x86_64")
		return err
	case OVMF:
		_, err := os.Stat(OVMFCode)
		return err
	case Libvirt:
		return inPath("libvirtd", "virsh")
	case Gluster:
		return errors.Join(probeNetNS(), probeFUSE(), inPath("glusterd", "gluster", "mount.glusterfs"))
	case Etcd:
		_, err := exec.LookPath("etcd")
		return err
	case KVM:
		return probeKVM()
	case HugePages:
		if os.Geteuid() != 0 {
			return errors.New("not root")
		}
		_, err := os.Stat(hugePages)
		return err
	case UFFD:
		return probeUFFD()
	case NetNS:
		return probeNetNS()
	case FUSE:
		return probeFUSE()
	case GuestImage:
		_, err := GuestDir()
		return err
	default:
		return fmt.Errorf("unknown tier %q", string(tier))
	}
}

// UEFI firmware for guests, as Debian's package ovmf installs it: the code, and the
// variables that a guest gets a copy of.
const (
	OVMFCode = "/usr/share/OVMF/OVMF_CODE_4M.fd"
	OVMFVars = "/usr/share/OVMF/OVMF_VARS_4M.fd"
)

// offered lists the tiers that this kernel can offer. One that was started
// without KVM has neither the device nor its number in /proc/misc; where one of
// the two is there, KVM is to work.
func offered() []Tier {
	_, err := os.Stat("/dev/kvm")
	misc, readErr := os.ReadFile("/proc/misc") // "number name" a line (proc_misc(5))
	kvm := err == nil || readErr != nil || hasWord(string(misc), "kvm")
	_, err = os.Stat(hugePages)
	huge := !errors.Is(err, os.ErrNotExist)
	return slices.DeleteFunc(Tiers(), func(t Tier) bool { return t == KVM && !kvm || t == HugePages && !huge })
}

func inPath(names ...string) error {
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			return err
		}
	}
	return nil
}

func hasWord(text, word string) bool { return slices.Contains(strings.Fields(text), word) }

func probeKVM() error {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	v, err := unix.IoctlRetInt(int(f.Fd()), kvmGetAPIVersion)
	if err != nil {
		return fmt.Errorf("ioctl KVM_GET_API_VERSION: %w", err)
	}
	if v != kvmAPIVersion {
		return fmt.Errorf("KVM API version %d, want %d", v, kvmAPIVersion)
	}
	return nil
}

func probeUFFD() error {
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK, 0, 0)
	if errno != 0 {
		return fmt.Errorf("userfaultfd: %w", errno)
	}
	return unix.Close(int(fd))
}

func probeFUSE() error {
	if os.Geteuid() != 0 {
		return errors.New("not root")
	}
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return f.Close()
}

// probeNetNS makes a namespace on a thread that ends with it, so that no other
// code sees the namespace.
func probeNetNS() error {
	if os.Geteuid() != 0 {
		return errors.New("not root")
	}
	if err := onThrowawayThread(func() error { return unix.Unshare(unix.CLONE_NEWNET) }); err != nil {
		return fmt.Errorf("unshare CLONE_NEWNET: %w", err)
	}
	return nil
}

// onThrowawayThread runs do on a thread that ends when do returns: the runtime
// ends the thread of a goroutine that returns locked to it. The main thread is
// the exception; it would live on, and /proc/self with it. See
// TestProbe_NetNSLeavesProcessAlone.
func onThrowawayThread(do func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// As long as this goroutine holds the main thread, another cannot get it.
			defer runtime.UnlockOSThread()
			done <- onThrowawayThread(do)
			return
		}
		done <- do()
	}()
	return <-done
}

// GuestDir returns the directory with the kernel (vmlinuz) and the initial RAM
// disk (initrd.img) that tests boot: the one FERMATA_GUEST_DIR names, or else
// build/guest of the module.
func GuestDir() (string, error) {
	dir := os.Getenv(GuestDirEnv)
	if dir == "" {
		root, err := moduleRoot()
		if err != nil {
			return "", err
		}
		dir = filepath.Join(root, "build", "guest")
	}
	for _, name := range []string{"vmlinuz", "initrd.img"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			return "", err
		}
	}
	return dir, nil
}

func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		mod, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.HasPrefix(string(mod), "module fermata\n") {
			return dir, nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", errors.New("the working directory is not inside module fermata")
		}
		dir = up
	}
}
