package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"fermata/vmm"
	"fermata/vmm/qmp"
)

// Preview describes the machine that Launch would make of c on this host, and refuses
// what Launch would refuse, without starting or making anything. freed is how many bytes
// of MemoryDir will have been given back before the launch.
//
// The result lacks the digests of kernel and initrd, which a guest brings along that is
// restored, and the CPU features that are missing, which only a running machine knows.
func (c Config) Preview(ctx context.Context, freed uint64) (Description, error) {
	d, err := c.preview(ctx, freed)
	if err != nil {
		return Description{}, fmt.Errorf("guest %s cannot be launched here: %w", c.Name, err)
	}
	return d, nil
}

func (c Config) preview(ctx context.Context, freed uint64) (Description, error) {
	c = c.withDefaults()
	if err := c.Validate(); err != nil {
		return Description{}, err
	}
	info, err := c.prepare(ctx)
	if err != nil {
		return Description{}, err
	}
	if c.Accel == KVM {
		if err := canOpenKVM(); err != nil {
			return Description{}, err
		}
	}
	if err := c.roomForRAM(freed); err != nil {
		return Description{}, err
	}
	c.Kernel, c.Initrd = "", ""
	return c.Describe(info)
}

func canOpenKVM() error {
	dev, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("accel kvm: %w: %w", vmm.ErrUnsupported, err)
	}
	return dev.Close()
}

// roomForRAM is the check of createRAM, as it will come out when freed bytes have been
// given back. MemoryDir may not exist yet; its parent does.
func (c Config) roomForRAM(freed uint64) error {
	var fs unix.Statfs_t
	err := unix.Statfs(c.MemoryDir, &fs)
	if errors.Is(err, unix.ENOENT) {
		err = unix.Statfs(filepath.Dir(c.MemoryDir), &fs)
	}
	if err != nil {
		return fmt.Errorf("memory dir %s: %w", c.MemoryDir, err)
	}
	if err := fitForRAM(c, fs, freed); err != nil {
		return fmt.Errorf("memory dir %s: %w", c.MemoryDir, err)
	}
	return nil
}

// AskStatus asks the QEMU that listens at a monitor's socket what its guest does.
//
// A monitor serves one connection: while somebody else has it, the answer waits for ctx.
func AskStatus(ctx context.Context, socket string) (vmm.Status, error) {
	monitor, err := qmp.Dial(ctx, socket)
	if err != nil {
		return 0, err
	}
	defer monitor.Close()
	state, err := monitor.QueryStatus(ctx)
	if err != nil {
		return 0, err
	}
	return statusOf(state), nil
}
