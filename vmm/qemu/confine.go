package qemu

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// Confinement is what keeps a QEMU that its guest has taken over from the host. The
// zero value confines nothing.
//
// QEMU gets every file as a descriptor (inherited.go), so the user needs no permission
// on any path.
type Confinement struct {
	// UID and GID are the user and group that QEMU runs as; 0: those of the caller.
	UID uint32 `json:"uid,omitempty"`
	GID uint32 `json:"gid,omitempty"`

	// Sandbox has QEMU give up system calls that it does not need (-sandbox).
	Sandbox bool `json:"sandbox,omitempty"`

	// Cgroup is a directory of the cgroup2 file system for this QEMU alone: whoever ends
	// all processes of the caller's cgroup does not end it. Launch makes it, and the
	// machine's end removes it. Empty: QEMU stays in the caller's.
	Cgroup string `json:"cgroup,omitempty"`
}

// sandbox denies what no machine of ours needs. QEMU kills itself at a call that is
// denied. userfaultfd(2), ptrace(2) by others and all that tracking injects stay allowed
// (qemu-seccomp.c lists what is denied).
const sandbox = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

// kvmDevice is opened by QEMU itself.
const kvmDevice = "/dev/kvm"

// attributes are those of QEMU's process. The caller closes cgroup once it has started.
func (c Confinement) attributes() (attr *syscall.SysProcAttr, cgroup *os.File, err error) {
	attr = &syscall.SysProcAttr{Setsid: true}
	if c.UID != 0 {
		attr.Credential = &syscall.Credential{Uid: c.UID, Gid: c.GID, Groups: c.groups()}
	}
	if c.Cgroup == "" {
		return attr, nil, nil
	}
	// Another agent of this host may just be removing the parent, which was empty.
	for range 3 {
		if err = os.MkdirAll(c.Cgroup, 0o755); !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	if err != nil {
		return nil, nil, fmt.Errorf("make cgroup: %w", err)
	}
	if cgroup, err = os.Open(c.Cgroup); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("open cgroup: %w", err), c.removeCgroup())
	}
	// From its first instruction: there is no moment at which it is in ours.
	attr.UseCgroupFD, attr.CgroupFD = true, int(cgroup.Fd())
	return attr, cgroup, nil
}

// removeCgroup removes the cgroup of a QEMU that has ended. One that somebody has put
// another process into stays.
func (c Confinement) removeCgroup() error {
	if c.Cgroup == "" {
		return nil
	}
	err := unix.Rmdir(c.Cgroup)
	if err == nil || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EBUSY) {
		return nil
	}
	return &os.PathError{Op: "remove cgroup", Path: c.Cgroup, Err: err}
}

// groups are the user's further groups: the one that may use KVM.
func (c Confinement) groups() []uint32 {
	var st unix.Stat_t
	if unix.Stat(kvmDevice, &st) != nil || st.Mode&0o060 != 0o060 || st.Gid == 0 {
		return nil
	}
	return []uint32{st.Gid}
}

// checkKVM refuses a user who could not open KVM's device.
func (c Confinement) checkKVM() error {
	var st unix.Stat_t
	if c.UID == 0 || unix.Stat(kvmDevice, &st) != nil {
		return nil // as the caller; or there is none, as QEMU will say
	}
	if st.Mode&0o006 == 0o006 || st.Uid == c.UID || st.Gid == c.GID && st.Mode&0o060 == 0o060 || c.groups() != nil {
		return nil
	}
	return fmt.Errorf("user %d, which QEMU runs as, may not use %s (mode %04o, group %d): give it to a group other than root's (chgrp kvm %s; chmod 660 %s)",
		c.UID, kvmDevice, st.Mode&0o777, st.Gid, kvmDevice, kvmDevice)
}

// own gives the user a file of the machine that QEMU opens anew.
func (c Confinement) own(f *os.File) error {
	if c.UID == 0 {
		return nil
	}
	return f.Chown(int(c.UID), int(c.GID))
}

func (c Confinement) validate(p *problems) {
	p.unless(c.UID != 0 || c.GID == 0, "confine: group %d without a user", c.GID)
	p.unless(c.Cgroup == "" || filepath.IsAbs(c.Cgroup), "confine: cgroup %q: want an absolute path", c.Cgroup)
}
