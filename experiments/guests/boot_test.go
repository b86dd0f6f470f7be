package guests

import (
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"fermata/protocol/mustrun"
)

// bootBudget is more than twenty times the 4.4 s that this run took under TCG.
const bootBudget = 2 * time.Minute

// TestGuest_BootsRunsAndEnds boots one guest with nothing but QEMU around it and
// lets it compute what the host computes natively.
func TestGuest_BootsRunsAndEnds(t *testing.T) {
	mustrun.Need(t, mustrun.QEMU, mustrun.GuestImage)
	dir, err := mustrun.GuestDir()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), bootBudget)
	defer cancel()
	cluster := Cluster{Count: 1, Work: RunMPI, MPI: MPI{Side: 64, Iterations: 40, Every: 20}, PowerOff: true}
	if err := cluster.Validate(); err != nil {
		t.Fatal(err)
	}
	want, err := Native(ctx, dir, cluster.MPI)
	if err != nil {
		t.Fatal(err)
	}

	kinds := lastLines(bootAlone(ctx, t, cluster))
	ready, _ := kinds["READY"].Body.(Ready)
	if ready.Guest != Name(1) || ready.Role != "mpi" || ready.Count != 1 || ready.Uptime <= 0 {
		t.Errorf("READY: %+v", ready)
	}
	if tick, _ := kinds["TICK"].Body.(Tick); tick.N == 0 {
		t.Error("no TICK")
	}
	if done, _ := kinds["MPI-DONE"].Body.(MPIDone); done.Checksum != want || done.Ranks != 1 {
		t.Errorf("MPI-DONE: %+v, want checksum %s", done, want)
	}
	if _, ok := kinds["POWEROFF"]; !ok {
		t.Error("no POWEROFF")
	}
}

// TestGuest_RewritesMemoryAndDisk boots one guest that rewrites memory and a disk
// and finds both as it wrote them.
func TestGuest_RewritesMemoryAndDisk(t *testing.T) {
	mustrun.Need(t, mustrun.QEMU, mustrun.GuestImage)
	ctx, cancel := context.WithTimeout(t.Context(), bootBudget)
	defer cancel()
	disk := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(disk, make([]byte, 1<<16), 0o600); err != nil {
		t.Fatal(err)
	}
	cluster := Cluster{Count: 1, Work: RunDirty, PowerOff: true,
		Writer: Writer{MiB: 1, BallastMiB: 2, Rate: 8, Threads: 2, Length: 2 * time.Second, Every: 200 * time.Millisecond}}
	if err := cluster.Validate(); err != nil {
		t.Fatal(err)
	}
	console := bootAlone(ctx, t, cluster,
		"-drive", "if=none,id=disk,format=raw,file="+disk, "-device", "virtio-blk-pci,drive=disk")
	if start, _ := lastLines(console)["DIRTY-START"].Body.(DirtyStart); start.Pages != 256 || start.Ballast != 512 || start.Threads != 2 {
		t.Errorf("DIRTY-START: %+v", start)
	}
	if exit, ok := lastLines(console)["DIRTY-EXIT"].Body.(DirtyExit); !ok || exit.Status != 0 {
		t.Errorf("DIRTY-EXIT: there %t, status %d", ok, exit.Status)
	}
	s, err := Summarise(map[string]io.Reader{Name(1): strings.NewReader(console)})
	if err != nil {
		t.Fatal(err)
	}
	end := s.Dirty[Name(1)]
	if !end.Ended || end.Bad+end.BadRecords+s.DirtyBad != 0 {
		t.Errorf("DIRTY-END: %+v, %d bad", end, s.DirtyBad)
	}
	// Two rounds and two laps of the disk: everything was checked, and once more.
	if end.Generation < 2 || end.Records < 2*16 {
		t.Errorf("DIRTY-END: %+v, too little was checked", end)
	}
}

// bootAlone boots a guest of the cluster with nothing but QEMU and the devices in
// extra around it, waits until it has powered off, and returns its console.
func bootAlone(ctx context.Context, t *testing.T, cluster Cluster, extra ...string) string {
	t.Helper()
	dir, err := mustrun.GuestDir()
	if err != nil {
		t.Fatal(err)
	}
	args := []string{
		"-nodefaults", "-vga", "none", "-display", "none", "-no-reboot",
		"-machine", "pc-q35-7.2,accel=tcg", "-cpu", "qemu64", "-smp", "1,maxcpus=2", "-m", "128",
		"-kernel", filepath.Join(dir, "vmlinuz"), "-initrd", filepath.Join(dir, "initrd.img"),
		"-netdev", "hubport,id=net,hubid=0", "-device", "virtio-net-pci,netdev=net,mac=" + MAC(1, 0).String(),
		"-append", cluster.Cmdline(1), "-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
	}
	qemu := exec.CommandContext(ctx, "qemu-system-x86_64", append(args, extra...)...)
	var console, complaints strings.Builder
	qemu.Stdout, qemu.Stderr = &console, &complaints
	if err := qemu.Run(); err != nil {
		t.Fatalf("qemu: %v\n%s\n%s", err, complaints.String(), console.String())
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(console.String())
		}
	})
	return console.String()
}

// lastLines are the last line of each kind.
func lastLines(console string) map[string]Line {
	kinds := map[string]Line{}
	for text := range strings.Lines(console) {
		if line, ok := Parse(text); ok {
			kinds[line.Kind] = line
		}
	}
	return kinds
}

func TestNative_RefusesNonsense(t *testing.T) {
	mustrun.Need(t, mustrun.GuestImage)
	dir, err := mustrun.GuestDir()
	if err != nil {
		t.Fatal(err)
	}
	_, err = Native(t.Context(), dir, MPI{Side: -1, Iterations: 1, Every: 1})
	if err == nil || !strings.Contains(err.Error(), "grid size: -1") {
		t.Errorf("error %v, want the program's complaint", err)
	}
	if _, err := Native(t.Context(), t.TempDir(), QuickMPI()); err == nil {
		t.Error("ran a program that is not there")
	}
}
