package trials

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fermata/experiments/guests"
	"fermata/experiments/labrun"
	"fermata/protocol/fault"
	"fermata/protocol/mustrun"
)

// stranger is a QEMU that no part of Fermata started. Its guest rewrites memory
// and checks it.
type stranger struct {
	r               *rig
	name            string
	socket, console string
	proc            *os.Process
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
	app := guests.Cluster{Count: 1, Work: guests.RunDirty, Tick: 100 * time.Millisecond, Writer: guests.Writer{MiB: 32, Every: 100 * time.Millisecond}}
	args := []string{
		"-name", s.name, "-accel", "tcg", "-machine", "pc-q35-7.2", "-cpu", "qemu64", "-m", "256", "-display", "none", "-nic", "none",
		"-kernel", filepath.Join(image, "vmlinuz"), "-initrd", filepath.Join(image, "initrd.img"), "-append", app.Cmdline(1),
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
	go func() {
		defer close(ended)
		_ = cmd.Wait()
	}()
	s.proc = cmd.Process
	s.r.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
		if s.r.Failed() {
			s.r.Logf("QEMU %s said: %s", s.name, said.Bytes())
		}
	})
}

func (s *stranger) kill() {
	s.r.Helper()
	if err := s.proc.Kill(); err != nil {
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

// tracked tells whether any of the process's memory is registered with a
// userfaultfd ("um" and "uw" in proc_pid_smaps(5)).
func (s *stranger) tracked() bool {
	s.r.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", s.proc.Pid))
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
		return r.Command(t.Context(), testLog{t}, &kept, "checkpoint", r.cluster, "--mode", "live", "-o", "json") == nil, nil
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
	r.must(nil, "cluster", "delete", r.cluster)
	r.must(nil, where...)
	var last checkpoint
	r.must(&last, "checkpoint", r.cluster, "--mode", "live", "-o", "json")
	ticks := map[*stranger]uint64{}
	for _, s := range []*stranger{a, b} {
		ticks[s], _ = s.lines()
		s.kill()
		if err := os.Remove(s.socket); err != nil && !errors.Is(err, unix.ENOENT) {
			t.Fatal(err)
		}
	}
	a.boot("-S", "-incoming", "defer")
	b.boot(append(shared, "-S", "-incoming", "defer")...)
	err = labrun.Poll(t.Context(), stepBudget, "their likes to listen", func() (bool, error) {
		_, errA := os.Stat(a.socket)
		_, errB := os.Stat(b.socket)
		return errA == nil && errB == nil, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	r.must(nil, "restart", r.cluster)
	both(stepBudget)
	for s, before := range ticks {
		// A guest that was booted anew would begin with its first heartbeat.
		if now, _ := s.lines(); now < before {
			t.Errorf("guest %s is at heartbeat %d after its restart, was at %d when it was lost", s.name, now, before)
		}
	}
	r.must(nil, "checkpoint", r.cluster, "--mode", "live")
	both(stepBudget)
	r.must(nil, "release", r.cluster)
	both(stepBudget)
}
