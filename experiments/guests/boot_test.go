package guests

import (
	"bufio"
	"context"
	"io"
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

	qemu := exec.CommandContext(ctx, "qemu-system-x86_64",
		"-nodefaults", "-vga", "none", "-display", "none", "-no-reboot",
		"-machine", "pc-q35-7.2,accel=tcg", "-cpu", "qemu64", "-smp", "1,maxcpus=2", "-m", "128",
		"-kernel", filepath.Join(dir, "vmlinuz"), "-initrd", filepath.Join(dir, "initrd.img"),
		"-netdev", "hubport,id=net,hubid=0", "-device", "virtio-net-pci,netdev=net,mac="+MAC(1, 0).String(),
		"-append", cluster.Cmdline(1), "-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console")
	var complaints strings.Builder
	qemu.Stderr = &complaints
	console, err := qemu.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := qemu.Start(); err != nil {
		t.Fatal(err)
	}
	kinds := map[string]Line{}
	var text strings.Builder
	for lines := bufio.NewScanner(io.TeeReader(console, &text)); lines.Scan(); {
		if line, ok := Parse(lines.Text()); ok {
			kinds[line.Kind] = line
		}
	}
	if err := qemu.Wait(); err != nil {
		t.Fatalf("qemu: %v\n%s\n%s", err, complaints.String(), text.String())
	}

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
	if t.Failed() {
		t.Log(text.String())
	}
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
