package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"fermata/vmm"
	"fermata/vmm/qmp"
)

// undoTime bounds the removal of a launch that came to nothing. It is for a
// SIGKILL and a few unlinks; a process that survives it hangs in the kernel.
const undoTime = 10 * time.Second

// Launch starts QEMU for a guest and returns when its monitor answers. The
// guest stands still until Continue; with Config.Incoming it waits for
// LoadDevices first.
//
// QEMU outlives the caller. A caller that comes back finds it with Attach.
//
// On error: nothing is left, neither process nor RAM file nor socket; a
// directory that Launch made is removed unless something else lies in it.
func Launch(ctx context.Context, cfg Config) (*Machine, error) {
	m, err := launch(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("launch guest %s: %w", cfg.Name, err)
	}
	return m, nil
}

func launch(ctx context.Context, cfg Config) (_ *Machine, err error) {
	cfg = cfg.withDefaults()
	if err := errors.Join(cfg.Validate(), cfg.validateFiles()); err != nil {
		return nil, err
	}
	info, err := cfg.prepare(ctx)
	if err != nil {
		return nil, err
	}
	var undo undoList
	defer func() {
		if err != nil {
			err = errors.Join(err, undo.run(context.WithoutCancel(ctx)))
		}
	}()
	if err := cfg.claimDir(&undo); err != nil {
		return nil, err
	}
	if err := createRAM(cfg); err != nil {
		return nil, err
	}
	undo.add(func(context.Context) error { return removeFiles(cfg.memoryPath()) })
	described := describeAside(cfg, info)
	proc, startErr := cfg.start(&undo)
	d, err := described()
	if err := errors.Join(startErr, err); err != nil {
		return nil, err
	}
	state, err := newState(cfg, d, proc.pid)
	if err != nil {
		return nil, err
	}
	undo.add(func(context.Context) error { return removeFiles(cfg.statePath(), cfg.statePath()+".tmp") })
	if err := state.write(); err != nil {
		return nil, err
	}
	m := newMachine(state, proc)
	undo.add(func(context.Context) error { return m.closeMonitor() })
	if err := m.greet(ctx); err != nil {
		return nil, err
	}
	return m, nil
}

// prepare makes the choices that need the host and checks c against what the
// binary can do.
func (c *Config) prepare(ctx context.Context) (Info, error) {
	path, err := findBinary(c.Binary)
	if err != nil {
		return Info{}, err
	}
	c.Binary = path
	c.Accel, _ = resolveAccel(c.Accel)
	file, err := fileOf(path)
	if err != nil {
		return Info{}, err
	}
	var info Info
	if c.Info != nil && c.Info.Binary == path && c.Info.file == file {
		info = *c.Info
	} else if info, err = Probe(ctx, path); err != nil {
		return Info{}, err
	}
	c.Info = nil
	if c.Accel == KVM {
		if err := c.Confine.checkKVM(); err != nil {
			return Info{}, err
		}
	}
	if c.Save == SaveAuto {
		c.Save = SaveMigrate
		if info.HasXenSave {
			c.Save = SaveXen
		}
	}
	return info, info.check(*c)
}

// claimDir makes the machine's directory, or takes it over from a machine that
// has ended.
func (c Config) claimDir(undo *undoList) error {
	if err := os.Mkdir(c.Dir, 0o700); err == nil {
		undo.add(func(context.Context) error {
			os.Remove(c.Dir) // stays when somebody has put something into it
			return nil
		})
		return nil
	} else if !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make machine directory: %w", err)
	}
	prior, err := ReadState(c.Dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return prior.Clean()
}

// describeAside reads kernel and initrd while QEMU starts. The function it
// returns must be called: it waits for the reading to end.
func describeAside(c Config, info Info) func() (Description, error) {
	type result struct {
		d   Description
		err error
	}
	done := make(chan result, 1)
	go func() {
		d, err := c.Describe(info)
		done <- result{d, err}
	}()
	return func() (Description, error) {
		r := <-done
		return r.d, r.err
	}
}

// start runs QEMU with the descriptors in the order that the arguments name.
func (c Config) start(undo *undoList) (*process, error) {
	var files []*os.File
	defer func() {
		for _, f := range files { // QEMU has its own copies
			f.Close()
		}
	}()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	files = append(files, null)
	log, err := os.OpenFile(c.logPath(), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	files = append(files, log)
	undo.add(func(context.Context) error { return removeLogs(c) })
	sockets := []string{c.qmpPath(), c.guardPath()}
	for _, p := range c.ports() {
		sockets = append(sockets, p.path)
	}
	for _, path := range sockets {
		l, err := qmp.Listen(path)
		if err != nil {
			return nil, err
		}
		undo.add(func(context.Context) error { return removeFiles(path) })
		f, err := listenerFile(l)
		if err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	order := []*os.File{null, log, log, files[2], files[3]} // qmpFD, guardFD
	for _, n := range c.NICs {
		keep := n.Keep
		if n.TAP {
			keep = null
		}
		order = append(order, n.File, keep) // guestFD, keepFD
	}
	order = append(order, files[4:]...) // portFD
	layers, opened, err := c.openLayers()
	files = append(files, opened...)
	if err != nil {
		return nil, err
	}
	order = append(order, layers...) // firstLayerFD
	inherited, err := c.openInherited()
	files = append(files, inherited...)
	if err != nil {
		return nil, err
	}
	order = append(order, inherited...) // inheritedFD
	proc, err := c.startProcess(order, undo)
	if err != nil {
		return nil, err
	}
	undo.add(func(ctx context.Context) error { return errors.Join(proc.kill(ctx), proc.release()) })
	return proc, nil
}

// startProcess runs QEMU, confined.
func (c Config) startProcess(order []*os.File, undo *undoList) (*process, error) {
	attr, cgroup, err := c.Confine.attributes()
	if err != nil {
		return nil, err
	}
	undo.add(func(context.Context) error { return c.Confine.removeCgroup() })
	if cgroup != nil {
		defer cgroup.Close()
	}
	return startProcess(c.Binary, c.arguments(), order, attr)
}

// listenerFile turns a listener into the file that QEMU inherits.
func listenerFile(l *net.UnixListener) (*os.File, error) {
	f, err := l.File()
	return f, errors.Join(err, l.Close())
}

// removeLogs ends a launch that failed: what QEMU said is in the error.
func removeLogs(c Config) error {
	return removeFiles(c.logPath(), c.consolePath())
}

// greet makes the first connection and confirms that the machine stands as it
// was asked to.
func (m *Machine) greet(ctx context.Context) error {
	status, err := m.Status(ctx)
	if err != nil {
		return err
	}
	want := vmm.StatusPaused
	if m.state.Config.Incoming {
		want = vmm.StatusIncoming
	}
	switch status {
	case want:
		return nil
	case vmm.StatusDead:
		return m.gone()
	default:
		return fmt.Errorf("guest is %s after its launch, want %s", status, want)
	}
}

// undoList takes a launch back, last step first.
type undoList struct {
	steps []func(context.Context) error
}

func (u *undoList) add(step func(context.Context) error) { u.steps = append(u.steps, step) }

func (u *undoList) run(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, undoTime)
	defer cancel()
	var errs []error
	for i := len(u.steps) - 1; i >= 0; i-- {
		errs = append(errs, u.steps[i](ctx))
	}
	return errors.Join(errs...)
}

// logTail returns the last lines of QEMU's own log, for an error message.
func logTail(path string) string {
	const most = 2 << 10 // a message of QEMU and the ones that led to it
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && st.Size() > most {
		if _, err := f.Seek(-most, io.SeekEnd); err != nil {
			return ""
		}
	}
	b, err := io.ReadAll(io.LimitReader(f, most))
	if err != nil {
		return ""
	}
	return lastWords(b)
}
