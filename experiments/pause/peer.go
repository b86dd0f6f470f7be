package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"fermata/vmm/qmp"
)

// ramKind is where a peer's guest has its memory.
type ramKind int

const (
	anonymousRAM ramKind = iota + 1 // as by default
	sharedRAM                       // a file on tmpfs, as Fermata's guests have it
)

// ramDir holds shared memory. QEMU makes a file without a name in it, which is
// gone with QEMU.
const ramDir = "/dev/shm"

// emulator is one QEMU program.
type emulator struct {
	program string // name in PATH, or a path
	version string
}

// peer is a guest in a QEMU with nothing but a monitor around it. Its machine
// is that of a guest of Fermata's.
type peer struct {
	console console

	cmd        *exec.Cmd
	wire       *os.File        // other end of the guest's card; nobody reads it
	complaints strings.Builder // owned by cmd until it has ended
	monitor    *qmp.Client
}

// startPeer runs QEMU with its files in dir. The caller ends it.
func startPeer(ctx context.Context, e emulator, g guest, ram ramKind, dir string) (_ *peer, err error) {
	p := &peer{console: console{filepath.Join(dir, "console.log")}}
	socket := filepath.Join(dir, "qmp")
	listener, err := qmp.Listen(socket)
	if err != nil {
		return nil, err
	}
	defer listener.Close()
	file, err := listener.File()
	if err != nil {
		return nil, fmt.Errorf("pass monitor to QEMU: %w", err)
	}
	defer file.Close()
	card, err := p.plug()
	if err != nil {
		return nil, fmt.Errorf("make wire: %w", err)
	}
	defer card.Close()

	p.cmd = exec.Command(e.program, peerArguments(g, ram, p.console.path)...)
	p.cmd.ExtraFiles = []*os.File{monitorFD - 3: file, cardFD - 3: card}
	p.cmd.Stderr = &p.complaints
	// In a group of its own: Ctrl-C is for us, who end it in order. And it does
	// not outlive us, however we end.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start QEMU: %w", err), p.wire.Close())
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.end())
		}
	}()
	if p.monitor, err = qmp.Dial(ctx, socket); err != nil {
		return nil, err
	}
	return p, nil
}

// plug makes the wire that the guest's card is on, and returns the card's end.
func (p *peer) plug() (*os.File, error) {
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	p.wire = os.NewFile(uintptr(ends[0]), "wire")
	return os.NewFile(uintptr(ends[1]), "card"), nil
}

// Descriptor numbers in QEMU: those of ExtraFiles begin at 3.
const (
	monitorFD = 3
	cardFD    = 4
)

func peerArguments(g guest, ram ramKind, consolePath string) []string {
	object := fmt.Sprintf("memory-backend-ram,id=ram0,size=%dM", g.memory/mib)
	if ram == sharedRAM {
		object = fmt.Sprintf("memory-backend-file,id=ram0,size=%dM,mem-path=%s,share=on", g.memory/mib, ramDir)
	}
	return []string{
		"-no-user-config", "-nodefaults", "-display", "none", "-vga", "none", "-no-reboot",
		"-accel", accel + ",thread=multi",
		"-machine", machine + ",memory-backend=ram0,vmport=off,dump-guest-core=off",
		"-cpu", cpu, "-smp", "1", "-m", fmt.Sprintf("%dM", g.memory/mib),
		"-object", object, "-rtc", "base=utc,clock=vm",
		"-chardev", fmt.Sprintf("socket,id=qmp,fd=%d,server=on,wait=off", monitorFD), "-mon", "chardev=qmp,mode=control",
		"-chardev", "file,id=console,path=" + consolePath, "-device", "isa-serial,chardev=console",
		"-netdev", fmt.Sprintf("dgram,id=lan,local.type=fd,local.str=%d", cardFD), "-device", "virtio-net-pci,netdev=lan,mac=52:54:00:4d:00:01,romfile=",
		"-kernel", g.kernel, "-initrd", g.initrd, "-append", g.cmdline,
	}
}

// end kills QEMU: its guest is of no use any more.
func (p *peer) end() error {
	var errs []error
	if p.monitor != nil {
		if err := p.monitor.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, fmt.Errorf("close monitor: %w", err))
		}
	}
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		errs = append(errs, fmt.Errorf("kill QEMU: %w", err))
	}
	if err := p.wire.Close(); err != nil {
		errs = append(errs, fmt.Errorf("close wire: %w", err))
	}
	var killed *exec.ExitError
	if err := p.cmd.Wait(); err != nil && !errors.As(err, &killed) {
		errs = append(errs, fmt.Errorf("end QEMU: %w", err))
	}
	if said := strings.TrimSpace(p.complaints.String()); said != "" {
		errs = append(errs, fmt.Errorf("QEMU said: %s", strings.ReplaceAll(said, "\n", "; ")))
	}
	return errors.Join(errs...)
}

// takeFunc takes one checkpoint of a peer's guest into the file image.
type takeFunc func(ctx context.Context, p *peer, image string) (taken, error)

// peerTrial boots a guest, lets its load run and takes n checkpoints of it.
func (x *experiment) peerTrial(ctx context.Context, e emulator, g guest, ram ramKind, n int, take takeFunc) (_ []taken, err error) {
	dir, err := os.MkdirTemp(x.dir, "peer-")
	if err != nil {
		return nil, fmt.Errorf("make directory of a trial: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	p, err := startPeer(ctx, e, g, ram, dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.end()) }()
	if err := p.console.awaitLoad(ctx, warmUp); err != nil {
		return nil, err
	}
	image := filepath.Join(dir, "image", "ram")
	s := site{guest: g, console: p.console, pids: []int{p.cmd.Process.Pid}}
	all, err := s.measure(ctx, n,
		func(context.Context) error { return os.RemoveAll(filepath.Dir(image)) },
		func(ctx context.Context) (taken, error) { return take(ctx, p, image) })
	if err != nil {
		return nil, err
	}
	for i := range all {
		all[i].qemu = e.version
	}
	if err := p.console.awaitLoad(ctx, time.Second); err != nil {
		return nil, fmt.Errorf("guest after its checkpoints: %w", err)
	}
	return all, nil
}
