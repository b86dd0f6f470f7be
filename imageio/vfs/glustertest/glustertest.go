// Package glustertest brings up a GlusterFS of one machine, in a network namespace of
// its own, for tests that want a parallel file system that others wrote.
//
// Only tests import it. It needs root, glusterd and mount.glusterfs.
package glustertest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// host is where everything listens, in the namespace only. Loopback addresses are
// refused as hosts of bricks.
const host = "10.77.9.1"

// bricks is how many directories a volume is made of.
const bricks = 3

// Kind is how a volume uses its bricks.
type Kind string

const (
	// Distribute puts each file on one brick.
	Distribute Kind = "distribute"
	// Disperse codes each file over all, of which any one may be lost.
	Disperse Kind = "disperse"
)

// Volume is a mounted volume.
type Volume struct {
	dir    string
	point  string
	holder *exec.Cmd // keeps the namespace
	daemon *exec.Cmd
}

// budget bounds each step of bringing up and down.
const budget = 30 * time.Second

// Mount makes a volume in the directory dir and mounts it. Close it.
func Mount(dir string, kind Kind) (_ *Volume, err error) {
	v := &Volume{dir: dir, point: filepath.Join(dir, "mnt")}
	defer func() {
		if err != nil {
			err = errors.Join(err, v.Close())
		}
	}()
	for _, d := range []string{"mnt", "lib", "run", "log"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	v.holder = exec.Command("unshare", "--net", "sleep", "infinity")
	v.holder.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := v.holder.Start(); err != nil {
		return nil, fmt.Errorf("make network namespace: %w", err)
	}
	if err := await("its namespace", v.apart); err != nil {
		return nil, err
	}
	for _, args := range [][]string{{"ip", "link", "set", "lo", "up"}, {"ip", "addr", "add", host + "/32", "dev", "lo"}} {
		if _, err := v.run(args...); err != nil {
			return nil, err
		}
	}
	if err := v.startDaemon(); err != nil {
		return nil, err
	}
	create := []string{"volume", "create", "v"}
	if kind == Disperse {
		create = append(create, "disperse", strconv.Itoa(bricks), "redundancy", "1")
	}
	for i := range bricks {
		create = append(create, fmt.Sprintf("%s:%s", host, filepath.Join(dir, fmt.Sprint("brick", i))))
	}
	for _, args := range [][]string{append(create, "force"), {"volume", "start", "v"}} {
		if _, err := v.gluster(args...); err != nil {
			return nil, err
		}
	}
	// A volume is started before its bricks have told their ports.
	err = await("the mount", func() bool {
		_, err := v.run("mount", "-t", "glusterfs", "-o", "log-file="+filepath.Join(dir, "log", "mnt.log"), host+":/v", v.point)
		return err == nil && mounted(v.point)
	})
	if err != nil {
		return nil, err
	}
	return v, nil
}

// Dir is the mount point.
func (v *Volume) Dir() string { return v.point }

// KillBrick ends the server of one brick with SIGKILL.
func (v *Volume) KillBrick(i int) error {
	out, err := v.gluster("volume", "status", "v", "detail", "--xml")
	if err != nil {
		return err
	}
	at := strings.Index(out, fmt.Sprint("brick", i, "</path>"))
	if at < 0 {
		return fmt.Errorf("no brick %d in %s", i, out)
	}
	_, rest, _ := strings.Cut(out[at:], "<pid>")
	word, _, _ := strings.Cut(rest, "</pid>")
	pid, err := strconv.Atoi(word)
	if err != nil || pid <= 1 {
		return fmt.Errorf("brick %d has pid %q", i, word)
	}
	return unix.Kill(pid, unix.SIGKILL)
}

// Close takes everything down. It may be called of a volume that is half up.
func (v *Volume) Close() error {
	var errs []error
	if mounted(v.point) {
		if err := unix.Unmount(v.point, 0); err != nil {
			errs = append(errs, fmt.Errorf("unmount: %w", err), unix.Unmount(v.point, unix.MNT_DETACH))
		}
	}
	if v.daemon != nil {
		_, _ = v.gluster("volume", "stop", "v", "force") // ends the bricks; there may be none
		errs = append(errs, v.daemon.Process.Kill())
		_ = v.daemon.Wait() // which says that it was killed
	}
	if v.holder != nil {
		errs = append(errs, v.killAll(), v.holder.Process.Kill())
		_ = v.holder.Wait() // the same
	}
	return errors.Join(errs...)
}

// killAll ends what is left in the namespace, which is ours alone.
func (v *Volume) killAll() error {
	ours, err := os.Readlink(v.namespace())
	if err != nil {
		return err
	}
	return await("all to end", func() bool {
		left := false
		entries, err := os.ReadDir("/proc")
		if err != nil {
			return false
		}
		for _, e := range entries {
			pid, err := strconv.Atoi(e.Name())
			if err != nil || pid == v.holder.Process.Pid {
				continue
			}
			if ns, err := os.Readlink(filepath.Join("/proc", e.Name(), "ns", "net")); err == nil && ns == ours {
				left = true
				_ = unix.Kill(pid, unix.SIGKILL) // it may have ended
			}
		}
		return !left
	})
}

func (v *Volume) namespace() string {
	return filepath.Join("/proc", strconv.Itoa(v.holder.Process.Pid), "ns", "net")
}

// apart tells whether the holder has left our namespace.
func (v *Volume) apart() bool {
	theirs, err := os.Readlink(v.namespace())
	ours, err2 := os.Readlink("/proc/self/ns/net")
	return err == nil && err2 == nil && theirs != ours
}

func (v *Volume) startDaemon() error {
	volfile := filepath.Join(v.dir, "glusterd.vol")
	text := fmt.Sprintf(`volume management
    type mgmt/glusterd
    option working-directory %s
    option run-directory %s
    option glusterd-sockfile %s
    option transport-type socket
    option transport.socket.bind-address %s
    option base-port 49152
    option max-port 60999
end-volume
`, filepath.Join(v.dir, "lib"), filepath.Join(v.dir, "run"), v.socket(), host)
	if err := os.WriteFile(volfile, []byte(text), 0o600); err != nil {
		return err
	}
	v.daemon = v.command("glusterd", "-N", "--volfile="+volfile, "-l", filepath.Join(v.dir, "log", "glusterd.log"), "-p", filepath.Join(v.dir, "run", "glusterd.pid"))
	if err := v.daemon.Start(); err != nil {
		v.daemon = nil
		return fmt.Errorf("start glusterd: %w", err)
	}
	return await("glusterd", func() bool {
		_, err := v.gluster("pool", "list")
		return err == nil
	})
}

func (v *Volume) socket() string { return filepath.Join(v.dir, "run", "glusterd.socket") }

// command runs in the namespace, and ends with us.
func (v *Volume) command(args ...string) *exec.Cmd {
	cmd := exec.Command("nsenter", append([]string{"--net=" + v.namespace(), "--"}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

func (v *Volume) run(args ...string) (string, error) {
	var out bytes.Buffer
	cmd := v.command(args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(out.String()))
	}
	return out.String(), nil
}

func (v *Volume) gluster(args ...string) (string, error) {
	return v.run(append([]string{"gluster", "--mode=script", "--glusterd-sock=" + v.socket(), "--log-file=" + filepath.Join(v.dir, "log", "cli.log")}, args...)...)
}

func mounted(point string) bool {
	var st, up unix.Stat_t
	if unix.Stat(point, &st) != nil {
		return true // it is there and answers with an error, as a mount without its server does
	}
	return unix.Stat(filepath.Dir(point), &up) == nil && st.Dev != up.Dev
}

// await polls, for what tells nobody when it is ready.
func await(what string, ready func() bool) error {
	for begun := time.Now(); !ready(); time.Sleep(50 * time.Millisecond) {
		if time.Since(begun) > budget {
			return fmt.Errorf("waited %s for %s", budget, what)
		}
	}
	return nil
}
