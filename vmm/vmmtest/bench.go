package vmmtest

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"fermata/vmm"
)

const nicName = "eth0"

// bench makes the machines of one test and removes what they leave.
type bench struct {
	ctx       context.Context
	t         *testing.T
	rig       Rig
	dir       string
	memoryDir string
}

func newBench(t *testing.T, rig Rig) *bench {
	t.Helper()
	memoryDir, err := os.MkdirTemp(rig.MemoryDir, "vmmtest-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(memoryDir) })
	return &bench{ctx: t.Context(), t: t, rig: rig, dir: t.TempDir(), memoryDir: memoryDir}
}

func (b *bench) must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// until waits for a condition.
func (b *bench) until(t *testing.T, what string, reached func() (bool, error)) {
	t.Helper()
	deadline := time.After(budget)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		ok, err := reached()
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if ok {
			return
		}
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%s: not within %v", what, budget)
		}
	}
}

func (b *bench) spec(t *testing.T, name string, incoming bool) Spec {
	t.Helper()
	file, keep, err := SocketPair()
	if err != nil {
		t.Fatal(err)
	}
	b.t.Cleanup(func() { file.Close(); keep.Close() })
	return Spec{
		Name: name, Dir: filepath.Join(b.dir, name), MemoryDir: b.memoryDir, Incoming: incoming,
		NIC: nicName, MAC: guestMACText, File: file, Keep: keep,
	}
}

// stand is a guest under test and what it wrote before its machine existed.
type stand struct {
	Guest
	b      *bench
	wire   wire
	before string // what the program wrote up to the cut it was restarted from
}

// launch starts a machine for a step t; it lives until the bench's test ends.
func (b *bench) launch(t *testing.T, name string, incoming bool) *stand {
	t.Helper()
	spec := b.spec(t, name, incoming)
	start := time.Now()
	g, err := b.rig.Launch(b.ctx, spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("launched %s in %v", name, time.Since(start))
	s := &stand{Guest: g, b: b, wire: wire{spec.Keep}}
	b.t.Cleanup(func() {
		// The test's context has ended by now.
		ctx, cancel := context.WithTimeout(context.Background(), budget)
		defer cancel()
		if err := errors.Join(s.Kill(ctx), s.Detach()); err != nil {
			b.t.Error(err)
		}
	})
	return s
}

// checkpoint is what a restart needs.
type checkpoint struct {
	state   []byte
	ram     string // a copy of the RAM file
	console string // everything the program wrote up to the cut
}

// checkpoint records a stopped guest: devices first, because saving them may
// still write to RAM.
func (b *bench) checkpoint(t *testing.T, g *stand) checkpoint {
	t.Helper()
	state, err := g.SaveDevices(b.ctx)
	if err != nil {
		t.Fatal(err)
	}
	ram := filepath.Join(b.dir, g.Name()+".copy")
	b.must(t, copyFile(ram, g.Memory()[0].Path, os.O_CREATE|os.O_EXCL))
	return checkpoint{state: state, ram: ram, console: g.console(t)}
}

// restart puts a checkpoint into a new machine and leaves it stopped.
func (b *bench) restart(t *testing.T, name string, cp checkpoint) *stand {
	t.Helper()
	g := b.launch(t, name, true)
	g.before = cp.console
	g.wantStatus(t, vmm.StatusIncoming)
	if err := g.Continue(b.ctx); !errors.Is(err, vmm.ErrIncoming) {
		t.Fatalf("continue a machine that waits for its state: %v, want ErrIncoming", err)
	}
	damaged := append([]byte(nil), cp.state...)
	damaged[len(damaged)/2] ^= 1
	if _, err := g.LoadDevices(b.ctx, damaged); !errors.Is(err, vmm.ErrCorrupt) {
		t.Fatalf("load a damaged state: %v, want ErrCorrupt", err)
	}
	g.wantStatus(t, vmm.StatusIncoming)
	b.must(t, copyFile(g.Memory()[0].Path, cp.ram, 0))
	start := time.Now()
	loaded, err := g.LoadDevices(b.ctx, cp.state)
	b.must(t, err)
	if len(loaded.Replaced)+len(loaded.Missing) > 0 {
		t.Errorf("a state that was just saved lacks %v", loaded)
	}
	t.Logf("loaded %d bytes in %v", len(cp.state), time.Since(start))
	g.wantStatus(t, vmm.StatusPaused)
	if _, err := g.LoadDevices(b.ctx, cp.state); !errors.Is(err, vmm.ErrNotIncoming) {
		t.Fatalf("load a second state: %v, want ErrNotIncoming", err)
	}
	if own := g.console(t); own != cp.console {
		t.Fatalf("the guest wrote %q before Continue", own[len(cp.console):])
	}
	return g
}

func (g *stand) cont(t *testing.T) {
	t.Helper()
	g.b.must(t, g.Continue(g.b.ctx))
}

func (g *stand) stop(t *testing.T) {
	t.Helper()
	g.b.must(t, g.Stop(g.b.ctx))
}

// kill ends the machine twice and checks that its RAM file is gone.
func (g *stand) kill(t *testing.T) {
	t.Helper()
	ram := g.Memory()[0].Path
	g.b.must(t, g.Kill(g.b.ctx))
	select {
	case <-g.Exited():
	default:
		t.Fatal("Kill returned before the machine had ended")
	}
	g.b.must(t, g.Kill(g.b.ctx))
	g.wantStatus(t, vmm.StatusDead)
	if _, err := os.Stat(ram); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("memory file after Kill: %v, want it gone", err)
	}
}

func (g *stand) wantStatus(t *testing.T, want vmm.Status) {
	t.Helper()
	got, err := g.Status(g.b.ctx)
	if err != nil {
		t.Fatal(err)
	}
	if got != want {
		t.Fatalf("guest is %s, want %s", got, want)
	}
}

// progress waits until the program has gone on for some steps, none lost or
// doubled since it began.
func (g *stand) progress(t *testing.T) {
	t.Helper()
	from := g.last(t)
	g.b.until(t, "the guest goes on", func() (bool, error) { return g.last(t) >= from+settle, nil })
}

// last is the program's last step, after all of them have been checked.
func (g *stand) last(t *testing.T) uint32 {
	t.Helper()
	n, err := CheckConsole(g.console(t), 1)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// console is everything the program wrote since it began.
func (g *stand) console(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(g.Console)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return g.before + string(text)
}

func (g *stand) counter(t *testing.T) Counter {
	t.Helper()
	c, err := ReadCounter(g.Memory()[0])
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (g *stand) digest(t *testing.T) string {
	t.Helper()
	sum, err := digestFile(g.Memory()[0].Path)
	if err != nil {
		t.Fatal(err)
	}
	return string(sum[:])
}

// copyFile copies from onto to, which is opened with the given extra flags.
func copyFile(to, from string, flags int) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|flags, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	_, err = io.Copy(out, in)
	return err
}
