package nodeagent

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"fermata/vmm/qemu"
	"fermata/vmm/uffd"
)

// Users that QEMU runs as unless the configuration says otherwise: the first that
// this host has.
var defaultQEMUUsers = []string{"fermata-qemu", "nobody"}

// noCgroup is the value of Config.Cgroup that leaves guests in the agent's cgroup.
const noCgroup = "none"

// jail is how this node's QEMUs are confined.
type jail struct {
	qemu.Confinement        // of every guest; Cgroup is empty
	cgroups          string // directory of the guests' cgroups; empty: there are none
}

// of returns the confinement of one guest.
func (j jail) of(cluster, guest string) qemu.Confinement {
	c := j.Confinement
	if j.cgroups != "" {
		c.Cgroup = filepath.Join(j.cgroups, cluster+"."+guest)
	}
	return c
}

// makeJail finds out how QEMU can be confined here, and says what cannot be done.
func (a *Agent) makeJail() (jail, error) {
	var j jail
	if os.Geteuid() == 0 {
		uid, gid, err := qemuUser(a.cfg.QEMUUser)
		if err != nil {
			return jail{}, err
		}
		j.UID, j.GID = uid, gid
		if uid != 0 {
			a.warnOfTracking()
		}
	}
	if j.Sandbox = a.qemu.HasSandbox; !j.Sandbox {
		a.log.Warn("QEMU was built without seccomp; it runs without a filter of system calls", "qemu", a.qemu.Binary)
	}
	var err error
	if j.cgroups, err = cgroupsFor(a.cfg.Cgroup); err != nil {
		if a.cfg.Cgroup != "" {
			return jail{}, fmt.Errorf("cgroup: %w", err)
		}
		a.log.Info("guests run in the cgroup of the agent: have its service manager end the agent alone (KillMode=process)", "reason", err)
	}
	return j, nil
}

// tidy removes the directory of the guests' cgroups if no guest of any agent is left in
// it. One that was configured stays: somebody may have set limits there.
func (a *Agent) tidy() {
	if a.jail.cgroups != "" && a.cfg.Cgroup == "" {
		_ = unix.Rmdir(a.jail.cgroups) // fails while there are guests
	}
}

// warnOfTracking tells of hosts where only root's QEMU can be captured live.
func (a *Agent) warnOfTracking() {
	if err := uffd.ProbeUnprivileged(); err != nil {
		a.log.Warn("live capture is not possible with this qemu_user; checkpoints copy memory while guests stand still", "reason", err)
	}
}

// qemuUser returns the ids of a user by name.
func qemuUser(name string) (uid, gid uint32, err error) {
	names := defaultQEMUUsers
	if name != "" {
		names = []string{name}
	}
	var u *user.User
	for _, n := range names {
		if u, err = user.Lookup(n); err == nil {
			break
		}
	}
	if err != nil {
		return 0, 0, fmt.Errorf("qemu_user: %w; make it with: useradd --system --no-create-home --shell /usr/sbin/nologin %s", err, names[0])
	}
	ids := [2]uint64{}
	for i, text := range []string{u.Uid, u.Gid} {
		if ids[i], err = strconv.ParseUint(text, 10, 32); err != nil {
			return 0, 0, fmt.Errorf("qemu_user: %s has id %q: %w", u.Username, text, err)
		}
	}
	if ids[0] == 0 {
		return 0, 0, nil
	}
	return uint32(ids[0]), uint32(ids[1]), nil
}

// cgroupsFor returns the directory in which guests get cgroups, made: the one that was
// configured; else one below the agent's own cgroup if that was delegated to it (systemd's
// Delegate=yes says so by an attribute), and for any other service manager, which may end
// all processes of the agent's cgroup, one at the top.
func cgroupsFor(configured string) (string, error) {
	dir := configured
	switch {
	case configured == noCgroup:
		return "", nil
	case configured == "":
		mount, own, err := ownCgroup()
		if err != nil {
			return "", err
		}
		dir = filepath.Join(mount, "fermata")
		if own != mount && delegated(own) {
			dir = filepath.Join(own, "guests")
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return "", &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	if st.Type != unix.CGROUP2_SUPER_MAGIC {
		return "", fmt.Errorf("%s is not on a cgroup2 file system", dir)
	}
	return dir, nil
}

// ownCgroup returns where the cgroup2 file system is mounted, and this process's cgroup
// in it.
func ownCgroup() (mount, own string, err error) {
	mount, root, err := cgroupMount("/proc/self/mountinfo")
	if err != nil {
		return "", "", err
	}
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", "", err
	}
	for line := range strings.Lines(string(b)) {
		if path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return mount, filepath.Join(mount, strings.TrimPrefix(path, root)), nil
		}
	}
	return "", "", errors.New("this process has no cgroup of version 2")
}

// cgroupMount finds the first cgroup2 file system (proc_pid_mountinfo(5)): fields 4 and
// 5 are the directory that is mounted and where, the type follows a dash.
func cgroupMount(mountinfo string) (mount, root string, err error) {
	f, err := os.Open(mountinfo)
	if err != nil {
		return "", "", err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		before, after, _ := strings.Cut(lines.Text(), " - ")
		fields := strings.Fields(before)
		if strings.HasPrefix(after, "cgroup2 ") && len(fields) > 4 {
			return fields[4], strings.TrimSuffix(fields[3], "/"), nil
		}
	}
	if err := lines.Err(); err != nil {
		return "", "", err
	}
	return "", "", fmt.Errorf("no cgroup2 file system is mounted: %w", fs.ErrNotExist)
}

// delegated reports whether a service manager has left a cgroup to us (systemd.exec(5)
// and the attributes in systemd's cg_set_xattr).
func delegated(dir string) bool {
	for _, name := range []string{"trusted.delegate", "user.delegate"} {
		value := make([]byte, 8)
		if n, err := unix.Getxattr(dir, name, value); err == nil && string(value[:n]) == "1" {
			return true
		}
	}
	return false
}
