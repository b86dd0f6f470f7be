package vmmtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"fermata/imageio/extent"
	"fermata/vmm"
)

var (
	_ vmm.Machine   = (*Fake)(nil)
	_ vmm.NICHolder = (*Fake)(nil)
	_ vmm.Locator   = (*Fake)(nil)
)

// FakeConfig says what a fake machine is made of.
type FakeConfig struct {
	Name        string
	MemoryPath  string // made; must not exist
	MemoryBytes uint64 // at least ProgramMemory
	ConsolePath string // appended to
	Incoming    bool
	NICs        []FakeNIC
}

// FakeNIC is a card whose frames are answered as Program answers them. Both
// files stay the caller's.
type FakeNIC struct {
	Name string
	File *os.File // non-blocking
	Keep *os.File
}

// Fake is a handle on a machine without a monitor: a goroutine that does what
// Program does, with RAM in a real file and frames on real sockets. It passes
// the contract suite, and is no vmm.Process: there is no process to protect.
type Fake struct {
	guest    *fakeGuest // shared by all handles
	detached atomic.Bool
}

// NewFake makes a fake machine, stopped or waiting for a state. It runs until
// Kill or Crash.
func NewFake(c FakeConfig) (*Fake, error) {
	g, err := newFakeGuest(c)
	if err != nil {
		return nil, fmt.Errorf("launch fake %s: %w", c.Name, err)
	}
	return &Fake{guest: g}, nil
}

// Reattach returns a new handle, as a restarted agent would have.
func (f *Fake) Reattach() (*Fake, error) {
	if f.guest.current() == vmm.StatusDead {
		return nil, fmt.Errorf("attach to fake %s: %w", f.Name(), vmm.ErrGone)
	}
	return &Fake{guest: f.guest}, nil
}

// Crash ends the machine as a fault would, and leaves its RAM file.
func (f *Fake) Crash() { f.guest.end() }

// Name implements vmm.Machine.
func (f *Fake) Name() string { return f.guest.config.Name }

// Status implements vmm.Machine.
func (f *Fake) Status(ctx context.Context) (vmm.Status, error) {
	if err := f.usable(ctx); err != nil {
		return 0, err
	}
	return f.guest.current(), nil
}

// Stop implements vmm.Machine.
func (f *Fake) Stop(ctx context.Context) error {
	return f.change(ctx, "stop", func(s vmm.Status) (vmm.Status, error) {
		if s == vmm.StatusRunning {
			return vmm.StatusPaused, nil
		}
		return s, nil
	})
}

// Continue implements vmm.Machine.
func (f *Fake) Continue(ctx context.Context) error {
	return f.change(ctx, "continue", func(s vmm.Status) (vmm.Status, error) {
		if s == vmm.StatusIncoming {
			return s, vmm.ErrIncoming
		}
		return vmm.StatusRunning, nil
	})
}

// Memory implements vmm.Machine.
func (f *Fake) Memory() []vmm.Memory {
	return []vmm.Memory{{Name: "ram0", Path: f.guest.config.MemoryPath, Size: f.guest.config.MemoryBytes}}
}

// Locate implements vmm.Locator: RAM begins at address 0.
func (f *Fake) Locate(_ context.Context, addresses extent.Set) (parts []vmm.Part, err error) {
	ram := f.Memory()[0]
	for e := range addresses.All() {
		if e.End() > int64(ram.Size) {
			return nil, fmt.Errorf("addresses %s: %w", e, vmm.ErrNotRAM)
		}
		parts = append(parts, vmm.Part{Block: ram.Name, Where: e})
	}
	return parts, nil
}

// SaveDevices implements vmm.Machine.
func (f *Fake) SaveDevices(ctx context.Context) ([]byte, error) {
	var record []byte
	err := f.change(ctx, "save devices of", func(s vmm.Status) (vmm.Status, error) {
		if s != vmm.StatusPaused {
			return s, vmm.ErrNotStopped
		}
		var err error
		record, err = f.guest.registers.encode()
		return s, err
	})
	return record, err
}

// LoadDevices implements vmm.Machine.
func (f *Fake) LoadDevices(ctx context.Context, state []byte) (vmm.Loaded, error) {
	return vmm.Loaded{}, f.change(ctx, "load devices of", func(s vmm.Status) (vmm.Status, error) {
		registers, err := decodeRegisters(state)
		if err != nil {
			return s, err
		}
		if s != vmm.StatusIncoming {
			return s, vmm.ErrNotIncoming
		}
		f.guest.registers = registers
		return vmm.StatusPaused, nil
	})
}

// Exited implements vmm.Machine.
func (f *Fake) Exited() <-chan struct{} { return f.guest.exited }

// Kill implements vmm.Machine.
func (f *Fake) Kill(ctx context.Context) error {
	if err := f.usable(ctx); err != nil {
		return fmt.Errorf("kill fake %s: %w", f.Name(), err)
	}
	f.guest.end()
	if err := os.Remove(f.guest.config.MemoryPath); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("clean up after fake %s: %w", f.Name(), err)
	}
	return nil
}

// Detach implements vmm.Machine.
func (f *Fake) Detach() error {
	f.detached.Store(true)
	return nil
}

// NICFiles implements vmm.NICHolder.
func (f *Fake) NICFiles(nic string) (keep, guest *os.File, err error) {
	f.guest.mu.Lock()
	defer f.guest.mu.Unlock()
	for _, n := range f.guest.nics {
		if n.Name != nic {
			continue
		}
		if keep, err = copyOf(n.Keep); err != nil {
			return nil, nil, fmt.Errorf("files of network card %s: %w", nic, err)
		}
		if guest, err = copyOf(n.File); err != nil {
			return nil, nil, errors.Join(fmt.Errorf("files of network card %s: %w", nic, err), keep.Close())
		}
		return keep, guest, nil
	}
	return nil, nil, fmt.Errorf("%w: %s", vmm.ErrUnknownNIC, nic)
}

func (f *Fake) usable(ctx context.Context) error {
	if f.detached.Load() {
		return vmm.ErrDetached
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// change lets step look at the guest and move it while it stands between two
// instructions.
func (f *Fake) change(ctx context.Context, what string, step func(vmm.Status) (vmm.Status, error)) error {
	if err := f.usable(ctx); err != nil {
		return fmt.Errorf("%s fake %s: %w", what, f.Name(), err)
	}
	f.guest.mu.Lock()
	defer f.guest.mu.Unlock()
	if f.guest.status == vmm.StatusDead {
		return fmt.Errorf("%s fake %s: %w", what, f.Name(), vmm.ErrGone)
	}
	status, err := step(f.guest.status)
	if err != nil {
		return fmt.Errorf("%s fake %s: %w", what, f.Name(), err)
	}
	f.guest.status = status
	return nil
}

// copyOf duplicates a file and leaves the modes of the original alone.
func copyOf(f *os.File) (*os.File, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	var fd int
	var inner error
	if err := raw.Control(func(old uintptr) { fd, inner = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return nil, err
	}
	if inner != nil {
		return nil, inner
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// fakeGuest is the machine itself: what all handles share.
type fakeGuest struct {
	config FakeConfig    // immutable
	ram    *os.File      // written by run, under mu
	out    *os.File      // written by run, under mu
	exited chan struct{} // closed by end

	cpu  sync.WaitGroup
	quit chan struct{} // closed by end

	mu        sync.Mutex
	status    vmm.Status // guarded by mu
	registers registers  // guarded by mu
	nics      []FakeNIC  // guarded by mu; copies, closed by end
}

func newFakeGuest(c FakeConfig) (_ *fakeGuest, err error) {
	if c.MemoryBytes < ProgramMemory {
		return nil, fmt.Errorf("memory of %d bytes: at least %d", c.MemoryBytes, ProgramMemory)
	}
	g := &fakeGuest{config: c, status: vmm.StatusPaused, exited: make(chan struct{}), quit: make(chan struct{})}
	if c.Incoming {
		g.status = vmm.StatusIncoming
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.closeFiles())
			if g.ram != nil {
				err = errors.Join(err, os.Remove(c.MemoryPath))
			}
		}
	}()
	if g.ram, err = os.OpenFile(c.MemoryPath, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
		return nil, err
	}
	if err := g.ram.Truncate(int64(c.MemoryBytes)); err != nil {
		return nil, err
	}
	if g.out, err = os.OpenFile(c.ConsolePath, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600); err != nil {
		return nil, err
	}
	for _, n := range c.NICs {
		own := FakeNIC{Name: n.Name}
		if own.File, err = copyOf(n.File); err != nil {
			return nil, err
		}
		g.nics = append(g.nics, own)
		if g.nics[len(g.nics)-1].Keep, err = copyOf(n.Keep); err != nil {
			return nil, err
		}
	}
	g.cpu.Go(g.run)
	return g, nil
}

func (g *fakeGuest) current() vmm.Status {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.status
}

// end stops the machine for good, once.
func (g *fakeGuest) end() {
	g.mu.Lock()
	first := g.status != vmm.StatusDead
	g.status = vmm.StatusDead
	g.mu.Unlock()
	if first {
		close(g.quit)
		g.cpu.Wait()
		g.mu.Lock()
		g.closeFiles()
		g.nics = nil
		g.mu.Unlock()
		close(g.exited)
	}
	<-g.exited
}

func (g *fakeGuest) closeFiles() error {
	files := []*os.File{g.ram, g.out}
	for _, n := range g.nics {
		files = append(files, n.File, n.Keep)
	}
	var errs []error
	for _, f := range files {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}
