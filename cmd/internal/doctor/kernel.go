package doctor

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"fermata/vmm/uffd"
)

// minKernel is the first kernel that write-protects shared memory by
// userfaultfd (commit b1f9e8768, Linux 5.19).
var minKernel = [2]int{5, 19}

func (m machine) kernel() finding {
	release, err := m.read("/proc/sys/kernel/osrelease")
	if err != nil {
		return fail("mount /proc", "unknown: %v", err)
	}
	version, known := kernelVersion(release)
	if !known {
		return warn("", "%s: version not understood", release)
	}
	if version[0] < minKernel[0] || version[0] == minKernel[0] && version[1] < minKernel[1] {
		return fail(fmt.Sprintf("install Linux %d.%d or later", minKernel[0], minKernel[1]), "%s", release)
	}
	return ok("%s", release)
}

// kernelVersion reads the first two numbers of a release.
func kernelVersion(release string) (v [2]int, known bool) {
	parts := strings.SplitN(release, ".", 3)
	if len(parts) < 2 {
		return v, false
	}
	minor := parts[1]
	if i := strings.IndexFunc(minor, func(r rune) bool { return r < '0' || r > '9' }); i >= 0 {
		minor = minor[:i]
	}
	var err1, err2 error
	v[0], err1 = strconv.Atoi(parts[0])
	v[1], err2 = strconv.Atoi(minor)
	return v, err1 == nil && err2 == nil
}

func privileges() finding {
	if os.Geteuid() == 0 {
		return ok("root")
	}
	return fail("run the node agent as root: it traces QEMU, owns network namespaces and reads guests' memory", "user %d", os.Geteuid())
}

func (m machine) userfaultfd() finding {
	if err := uffd.Probe(); err != nil {
		return fail("live capture is impossible without it", "%v", err)
	}
	return ok("write protection of shared memory")
}

// ptrace asks whether a process may be traced by one that is not its parent.
func (m machine) ptrace() finding {
	scope, err := m.read("/proc/sys/kernel/yama/ptrace_scope")
	if os.IsNotExist(err) {
		return ok("not restricted by yama")
	}
	if err != nil {
		return warn("", "unknown: %v", err)
	}
	switch scope {
	case "0":
		return ok("yama scope 0")
	case "1", "2":
		if os.Geteuid() == 0 {
			return ok("yama scope %s, which root passes", scope)
		}
		return fail("run as root, or set kernel.yama.ptrace_scope=0", "yama scope %s", scope)
	default:
		return fail("set kernel.yama.ptrace_scope to 0 or 1 and reboot: a scope of 3 cannot be lowered", "yama scope %s", scope)
	}
}

// pidfdGetfd takes a copy of a descriptor out of this very process.
func pidfdGetfd() finding {
	const remedy = "install Linux 5.6 or later, and let seccomp filters pass pidfd_getfd"
	pidfd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return fail(remedy, "pidfd_open: %v", err)
	}
	defer unix.Close(pidfd)
	fd, err := unix.PidfdGetfd(pidfd, pidfd, 0)
	if err != nil {
		return fail(remedy, "pidfd_getfd: %v", err)
	}
	unix.Close(fd)
	return ok("works")
}

// networkNamespaces makes one, on a thread that ends with it.
func networkNamespaces() finding {
	made := make(chan error, 1)
	go func() {
		// A goroutine that returns locked takes its thread along, so that no
		// other code sees the namespace.
		runtime.LockOSThread()
		made <- unix.Unshare(unix.CLONE_NEWNET)
	}()
	if err := <-made; err != nil {
		return warn("run as root with CONFIG_NET_NS: labs of several nodes on one machine need it", "unshare: %v", err)
	}
	return ok("can be made")
}

// clockSource matters because pauses of a few milliseconds are measured, and
// compared between guests, by the host's clock.
func (m machine) clockSource() finding {
	source, err := m.read("/sys/devices/system/clocksource/clocksource0/current_clocksource")
	if err != nil {
		return warn("", "unknown: %v", err)
	}
	switch source {
	case "tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page":
		return ok("%s", source)
	default:
		return warn("choose a faster clock (clocksource=tsc): reading this one takes microseconds", "%s", source)
	}
}
