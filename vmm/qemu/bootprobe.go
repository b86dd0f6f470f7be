package qemu

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"runtime"
	"time"

	"fermata/vmm"
)

const (
	// bootTime bounds a trial whose context has no deadline. A Debian cloud
	// kernel speaks after 1 to 2 s under TCG and sooner under KVM.
	bootTime = 30 * time.Second

	// bootMemory is enough to unpack a distribution's kernel.
	bootMemory = "256M"

	// bootMark is the first thing that a Linux kernel says about itself, after
	// it has unpacked itself and found a console.
	bootMark = "Linux version "

	// bootOutput bounds what a kernel may say before the mark.
	bootOutput = 64 << 10
)

// BootReport is what came of a trial boot.
type BootReport struct {
	Booted  bool
	Elapsed time.Duration // until the kernel spoke, or until the trial was given up
	Output  string        // what was on the serial port, for a person to read
	Said    string        // QEMU's own last words
}

// BootProbe really boots a kernel under an accelerator and looks for its first
// words: a /dev/kvm that opens, and even runs small programs, need not be one
// that boots a kernel. The trial ends with ctx, or after half a minute when ctx
// has no deadline; a kernel that has not spoken by then is a report and not an
// error.
func BootProbe(ctx context.Context, binary, kernel string, accel Accel) (BootReport, error) {
	report, err := bootProbe(ctx, binary, kernel, accel)
	if err != nil {
		return BootReport{}, fmt.Errorf("boot %s under %s: %w", kernel, accel, err)
	}
	return report, nil
}

func bootProbe(ctx context.Context, binary, kernel string, accel Accel) (BootReport, error) {
	if accel != KVM && accel != TCG {
		return BootReport{}, fmt.Errorf("accel %q: want kvm or tcg", accel)
	}
	path, err := findBinary(binary)
	if err != nil {
		return BootReport{}, err
	}
	info, err := Probe(ctx, path)
	if err != nil {
		return BootReport{}, err
	}
	machine, ok := info.Aliases["q35"]
	if !ok {
		return BootReport{}, fmt.Errorf("%w: no q35 machine", vmm.ErrUnsupported)
	}
	limit := time.Now().Add(bootTime)
	if own, ok := ctx.Deadline(); ok {
		limit = own
	}
	ctx, cancel := context.WithDeadline(ctx, limit)
	defer cancel()
	runtime.LockOSThread() // see withUs
	defer runtime.UnlockOSThread()
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, path,
		"-no-user-config", "-nodefaults", "-display", "none", "-no-reboot",
		"-accel", string(accel), "-machine", machine+",vmport=off", "-cpu", "qemu64", "-m", bootMemory,
		"-chardev", "stdio,id=console,signal=off", "-device", "isa-serial,chardev=console",
		"-kernel", kernel, "-append", "console=ttyS0 earlyprintk=ttyS0 panic=-1")
	cmd.SysProcAttr = withUs()
	cmd.Stderr = &said
	out, err := cmd.StdoutPipe()
	if err != nil {
		return BootReport{}, err
	}
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return BootReport{}, err
	}
	text, err := readUntil(out, bootMark, bootOutput)
	report := BootReport{Elapsed: time.Since(start), Booted: err == nil, Output: text}
	cancel() // kills it
	waitErr := cmd.Wait()
	report.Said = lastWords(said.Bytes())
	var exit *exec.ExitError
	if waitErr != nil && !errors.As(waitErr, &exit) && !errors.Is(waitErr, context.Canceled) && !errors.Is(waitErr, context.DeadlineExceeded) {
		return BootReport{}, waitErr
	}
	return report, nil
}

// readUntil reads until mark has come, and what came with it. Without mark the
// error says how the stream ended.
func readUntil(r io.Reader, mark string, limit int) (string, error) {
	var text []byte
	buf := make([]byte, 4096)
	for {
		n, err := r.Read(buf)
		text = append(text, buf[:n]...)
		if bytes.Contains(text, []byte(mark)) {
			return string(text), nil
		}
		if err != nil {
			return string(text), err
		}
		if len(text) > limit {
			return string(text), fmt.Errorf("%d bytes without %q", len(text), mark)
		}
	}
}
