package trials

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fermata/experiments/guests"
	"fermata/experiments/labrun"
	"fermata/protocol/fault"
	"fermata/protocol/mustrun"
	"fermata/vmm/vmmtest"
)

// stranger is a QEMU that no part of Fermata started. Its guest rewrites memory
// and checks it.
type stranger struct {
	r               *rig
	name            string
	socket, console string
	pid             int
	ended           <-chan struct{} // closed when QEMU was waited for
}

// strangersWork is what the guest of a stranger does.
var strangersWork = guests.Cluster{
	Count: 1, Work: guests.RunDirty, Tick: 100 * time.Millisecond, Writer: guests.Writer{MiB: 32, Every: 100 * time.Millisecond},
}

func newStranger(r *rig, name string) *stranger {
	dir := r.TempDir()
	return &stranger{r: r, name: name, socket: filepath.Join(dir, "qmp"), console: filepath.Join(dir, "console")}
}

// boot starts QEMU with everything but what is needed left at its default.
func (s *stranger) boot(extra ...string) {
	s.r.Helper()
	image, err := mustrun.GuestDir()
	if err != nil {
		s.r.Fatal(err)
	}
	args := []string{
		"-name", s.name, "-accel", "tcg", "-machine", "pc-q35-7.2", "-cpu", "qemu64", "-m", "256", "-display", "none", "-nic", "none",
		"-kernel", filepath.Join(image, "vmlinuz"), "-initrd", filepath.Join(image, "initrd.img"), "-append", strangersWork.Cmdline(1),
		"-chardev", "file,id=c,append=on,path=" + s.console, "-serial", "chardev:c",
		"-qmp", "unix:" + s.socket + ",server=on,wait=off",
	}
	cmd := exec.Command("qemu-system-x86_64", append(args, extra...)...)
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		s.r.Fatal(err)
	}
	ended := make(chan struct{})
	s.ended = ended
	go func() {
		defer close(ended)
		_ = cmd.Wait()
	}()
	s.pid = cmd.Process.Pid
	s.r.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
		if s.r.Failed() {
			s.r.Logf("QEMU %s said: %s", s.name, said.Bytes())
		}
	})
}

// kill ends QEMU, waits until it is gone, and takes its socket away, so that it is not
// taken for its like: a process that ends listens for a while.
func (s *stranger) kill() {
	s.r.Helper()
	if err := unix.Kill(s.pid, unix.SIGKILL); err != nil {
		s.r.Fatal(err)
	}
	<-s.ended
	if err := os.Remove(s.socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		s.r.Fatal(err)
	}
}

func (s *stranger) awaitSocket() {
	s.r.Helper()
	err := labrun.Poll(s.r.Context(), stepBudget, "guest "+s.name+" to listen", func() (bool, error) {
		return vmmtest.Listens(s.socket)
	})
	if err != nil {
		s.r.Fatal(err)
	}
}

// lines returns what the guest's writer has told so far, and its last heartbeat.
func (s *stranger) lines() (tick uint64, dirty []guests.Dirty) {
	s.r.Helper()
	b, err := os.ReadFile(s.console)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		s.r.Fatal(err)
	}
	labrun.Each(b, func(l guests.Line) {
		if d, ok := l.Body.(guests.Dirty); ok {
			dirty = append(dirty, d)
		}
	})
	return lastTick(b), dirty
}

// works waits until the guest has printed further heartbeats and has looked at
// its memory, all of which was right.
func (s *stranger) works(budget time.Duration) {
	s.r.Helper()
	first, before := s.lines()
	err := labrun.Poll(s.r.Context(), budget, "heartbeats of guest "+s.name, func() (bool, error) {
		now, dirty := s.lines()
		return now >= first+3 && len(dirty) >= len(before)+2, nil
	})
	if err != nil {
		s.r.Fatal(err)
	}
	_, dirty := s.lines()
	if last := dirty[len(dirty)-1]; last.Bad != 0 {
		s.r.Fatalf("guest %s found %d bad pages", s.name, last.Bad)
	}
}

// wentOnFrom checks that the guest goes on from a checkpoint that was begun after the
// heartbeat before: one that was booted anew would begin with the first.
func (s *stranger) wentOnFrom(before uint64) {
	s.r.Helper()
	if now, _ := s.lines(); now < before {
		s.r.Errorf("guest %s is at heartbeat %d after its restart, was at %d before its checkpoint", s.name, now, before)
	}
}

// tracked tells whether any of the process's memory is registered with a
// userfaultfd ("um" and "uw" in proc_pid_smaps(5)).
func (s *stranger) tracked() bool {
	s.r.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", s.pid))
	if err != nil {
		s.r.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if flags, ok := strings.CutPrefix(line, "VmFlags:"); ok && (strings.Contains(flags, " uw") || strings.Contains(flags, " um")) {
			return true
		}
	}
	return false
}

// report is what of a checkpoint's report tells how guests were captured.
type report struct {
	Guests []struct {
		Name string `json:"name"`
		Mode string `json:"mode"`
	} `json:"guests"`
}

// TestAdoption_OfQEMUsThatSomebodyElseStarted takes two of them under checkpoint,
// loses the agent, lets go of them, loses them, and puts their likes back.
func TestAdoption_OfQEMUsThatSomebodyElseStarted(t *testing.T) {
	mustrun.Need(t, mustrun.QEMU, mustrun.NetNS, mustrun.GuestImage, mustrun.UFFD)
	r := newRig(t, 2)
	r.start()
	a, b := newStranger(r, "a"), newStranger(r, "b")
	shm, err := os.MkdirTemp("/dev/shm", "fermata-stranger-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(shm) })
	// One with anonymous memory, one with two processors and memory that is shared.
	shared := []string{"-smp", "2", "-object", "memory-backend-file,id=ram,share=on,size=256M,mem-path=" + filepath.Join(shm, "ram"), "-machine", "memory-backend=ram"}
	a.boot()
	b.boot(shared...)
	both := func(budget time.Duration) {
		t.Helper()
		a.works(budget)
		b.works(budget)
	}
	both(bootBudget)

	r.refused(fault.Invalid, []string{"absolute"}, "adopt", r.cluster, "a=n1:relative")
	r.refused(fault.NotFound, []string{"nosuch"}, "release", "nosuch")
	r.refused(fault.Invalid, []string{"no QEMU listens"}, "adopt", r.cluster, "a=n1:"+a.socket+"x")
	where := []string{"adopt", r.cluster, "a=n1:" + a.socket, "b=n2:" + b.socket}
	r.must(nil, where...)
	both(stepBudget)
	var kept checkpoint
	for _, mode := range []string{"live", "live", "stop", "live"} {
		var rep report
		r.must(&rep, "checkpoint", r.cluster, "--mode", mode, "-o", "json")
		for _, g := range rep.Guests {
			if g.Mode != mode {
				t.Errorf("guest %s was captured by mode %s, want %s", g.Name, g.Mode, mode)
			}
		}
		if len(rep.Guests) != 2 {
			t.Errorf("report of %d guests", len(rep.Guests))
		}
		both(stepBudget)
	}
	if !a.tracked() || !b.tracked() {
		t.Error("writes are not tracked between checkpoints")
	}

	// The agents die; the guests never notice, and their successors find them.
	for _, node := range []string{"n1", "n2"} {
		if err := run(t.Context(), "kill", "-KILL", r.agentPID(node)); err != nil {
			t.Fatal(err)
		}
	}
	both(stepBudget)
	err = labrun.Poll(t.Context(), stepBudget, "a checkpoint to succeed again", func() (bool, error) {
		return r.Command(t.Context(), t.Output(), &kept, "checkpoint", r.cluster, "--mode", "live", "-o", "json") == nil, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	both(stepBudget)

	r.must(nil, "release", r.cluster)
	both(stepBudget)
	if a.tracked() || b.tracked() {
		t.Error("writes are tracked after the guests were let go of")
	}
	r.refused(fault.NotFound, []string{r.cluster}, "cluster", "show", r.cluster)
	// A running QEMU cannot be set back, and is none the worse for the attempt.
	r.refused(fault.Invalid, []string{"-incoming defer"}, "restart", r.cluster)
	both(stepBudget)

	// Again under checkpoint, and then both are lost.
	r.must(nil, where...)
	ticks := map[*stranger]uint64{}
	for _, s := range []*stranger{a, b} {
		ticks[s], _ = s.lines()
	}
	r.must(nil, "checkpoint", r.cluster, "--mode", "live")
	for _, s := range []*stranger{a, b} {
		s.kill()
	}
	a.boot("-S", "-incoming", "defer")
	b.boot(append(shared, "-S", "-incoming", "defer")...)
	a.awaitSocket()
	b.awaitSocket()
	r.must(nil, "restart", r.cluster)
	both(stepBudget)
	for s, before := range ticks {
		s.wentOnFrom(before)
	}
	r.must(nil, "checkpoint", r.cluster, "--mode", "live")
	both(stepBudget)
	r.must(nil, "release", r.cluster)
	both(stepBudget)
}

// TestAdoption_OfAGuestOfLibvirt takes a guest under checkpoint whose QEMU libvirt
// has started as it likes to: without privileges, with libvirt's own monitor, in
// a seccomp sandbox. Only a second QMP socket was added.
func TestAdoption_OfAGuestOfLibvirt(t *testing.T) {
	mustrun.Need(t, mustrun.QEMU, mustrun.NetNS, mustrun.GuestImage, mustrun.UFFD, mustrun.Libvirt)
	r := newRig(t, 1)
	v := startLibvirt(r)
	r.start()
	s := v.create()
	s.works(bootBudget)
	if owner, err := os.Stat(fmt.Sprintf("/proc/%d", s.pid)); err != nil || owner.Sys().(*syscall.Stat_t).Uid == 0 {
		t.Fatalf("QEMU has privileges: %v, %v", owner, err)
	}

	r.must(nil, "adopt", r.cluster, "g1=n1:"+s.socket)
	var before uint64
	for range 3 {
		before, _ = s.lines()
		r.must(nil, "checkpoint", r.cluster, "--mode", "live")
		s.works(stepBudget)
	}
	if state := v.virsh("domstate", s.name); !strings.HasPrefix(state, "running") {
		t.Errorf("libvirt takes the guest for %s", state)
	}
	v.virsh("destroy", s.name)

	like := v.create("-incoming", "defer")
	r.must(nil, "rollback", r.cluster)
	like.works(stepBudget)
	like.wentOnFrom(before)
	if state := v.virsh("domstate", s.name); !strings.HasPrefix(state, "running") {
		t.Errorf("libvirt takes the restarted guest for %s", state)
	}
	r.must(nil, "release", r.cluster)
	like.works(stepBudget)
	if like.tracked() {
		t.Error("writes are tracked after the guest was let go of")
	}
	v.virsh("destroy", s.name)
}

// libvirt is a libvirtd of a session of its own, of a user without privileges.
type libvirt struct {
	r          *rig
	dir        string
	credential *syscall.Credential
}

// libvirtUser is one that every Debian has (base-passwd) and nobody uses here.
const libvirtUser = "games"

func startLibvirt(r *rig) *libvirt {
	r.Helper()
	u, err := user.Lookup(libvirtUser)
	if err != nil {
		r.Fatal(err)
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		r.Fatal(err)
	}
	gid, err := strconv.Atoi(u.Gid)
	if err != nil {
		r.Fatal(err)
	}
	// Below /tmp: others must be able to enter it, and sockets want short paths.
	dir, err := os.MkdirTemp("", "fermata-libvirt-")
	if err != nil {
		r.Fatal(err)
	}
	v := &libvirt{r: r, dir: dir, credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	r.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			r.Error(err)
		}
	})
	image, err := mustrun.GuestDir()
	if err != nil {
		r.Fatal(err)
	}
	for _, name := range []string{"vmlinuz", "initrd.img"} {
		b, err := os.ReadFile(filepath.Join(image, name))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), b, 0o644)
		}
		if err != nil {
			r.Fatal(err)
		}
	}
	config := filepath.Join(dir, "home", "config", "libvirt", "qemu.conf")
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "run"), 0o700), os.MkdirAll(filepath.Dir(config), 0o700)); err != nil {
		r.Fatal(err)
	}
	// Else a virtlogd is started, which outlives its libvirtd by minutes.
	if err := os.WriteFile(config, []byte("stdio_handler = \"file\"\n"), 0o600); err != nil {
		r.Fatal(err)
	}
	err = filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		return errors.Join(err, os.Chown(path, uid, gid))
	})
	if err != nil {
		r.Fatal(err)
	}
	daemon := v.command("libvirtd")
	log, err := os.Create(filepath.Join(dir, "libvirtd.log"))
	if err != nil {
		r.Fatal(err)
	}
	defer log.Close()
	daemon.Stdout, daemon.Stderr = log, log
	if err := daemon.Start(); err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() {
		// The guests of a session end with its daemon only if told.
		if list := v.virsh("list", "--name"); strings.TrimSpace(list) != "" {
			for name := range strings.FieldsSeq(list) {
				v.virsh("destroy", name)
			}
		}
		_ = daemon.Process.Signal(unix.SIGTERM)
		_ = daemon.Wait()
		if r.Failed() {
			b, _ := os.ReadFile(log.Name())
			r.Logf("libvirtd: %s", b[max(0, len(b)-4<<10):])
		}
	})
	err = labrun.Poll(r.Context(), stepBudget, "libvirtd to answer", func() (bool, error) {
		return v.command("virsh", "-c", "qemu:///session", "list").Run() == nil, nil
	})
	if err != nil {
		r.Fatal(err)
	}
	return v
}

// command makes one of the session's user.
func (v *libvirt) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	home := filepath.Join(v.dir, "home")
	cmd.Dir = v.dir
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + home, "XDG_RUNTIME_DIR=" + filepath.Join(v.dir, "run"),
		"XDG_CONFIG_HOME=" + filepath.Join(home, "config"), "XDG_CACHE_HOME=" + filepath.Join(home, "cache"), "XDG_DATA_HOME=" + filepath.Join(home, "data"),
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: v.credential}
	return cmd
}

func (v *libvirt) virsh(args ...string) string {
	v.r.Helper()
	out, err := v.command("virsh", append([]string{"-q", "-c", "qemu:///session"}, args...)...).CombinedOutput()
	if err != nil {
		v.r.Errorf("virsh %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// create has libvirt start the guest; with further arguments for QEMU it is left
// as QEMU leaves it, which is how libvirt takes "paused".
func (v *libvirt) create(qemuArgs ...string) *stranger {
	v.r.Helper()
	s := &stranger{r: v.r, name: "g1", socket: filepath.Join(v.dir, "qmp"), console: filepath.Join(v.dir, "console")}
	if err := os.Remove(s.socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		v.r.Fatal(err)
	}
	var more strings.Builder
	for _, a := range append([]string{"-qmp", "unix:" + s.socket + ",server=on,wait=off"}, qemuArgs...) {
		fmt.Fprintf(&more, "<qemu:arg value='%s'/>", a)
	}
	xml := fmt.Sprintf(`<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>%s</name><memory unit='MiB'>256</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
    <kernel>%s/vmlinuz</kernel><initrd>%s/initrd.img</initrd><cmdline>%s</cmdline></os>
  <features><acpi/></features>
  <cpu mode='custom'><model>qemu64</model></cpu>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <serial type='file'><source path='%s' append='on'/></serial>
    <memballoon model='virtio'/>
  </devices>
  <qemu:commandline>%s</qemu:commandline>
</domain>`, s.name, v.dir, v.dir, strangersWork.Cmdline(1), s.console, more.String())
	file := filepath.Join(v.dir, "domain.xml")
	if err := os.WriteFile(file, []byte(xml), 0o644); err != nil {
		v.r.Fatal(err)
	}
	args := []string{"create", file}
	if len(qemuArgs) > 0 {
		args = append(args, "--paused")
	}
	v.virsh(args...)
	s.awaitSocket()
	b, err := os.ReadFile(filepath.Join(v.dir, "run", "libvirt", "qemu", "run", s.name+".pid"))
	if err != nil {
		v.r.Fatal(err)
	}
	if s.pid, err = strconv.Atoi(strings.TrimSpace(string(b))); err != nil {
		v.r.Fatal(err)
	}
	return s
}
