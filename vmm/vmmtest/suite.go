package vmmtest

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"fermata/imageio/extent"
	"fermata/vmm"
)

const (
	// budget bounds every wait of the suite: the program's start under a KVM
	// that is nested by software on a busy machine takes longest.
	budget = time.Minute

	// settle is how many steps count as progress: more than what a machine
	// could have written before it obeyed.
	settle = 20

	// quiet is how long a guest that stands still is watched for an answer.
	quiet = 50 * time.Millisecond
)

// Run holds a driver to the contract of vmm.Machine.
func Run(t *testing.T, rig Rig) {
	t.Run("life", func(t *testing.T) { testLife(t, rig) })
	t.Run("crash", func(t *testing.T) { testCrash(t, rig) })
	t.Run("broken_launch", func(t *testing.T) { testBrokenLaunch(t, rig) })
}

// testLife is one guest from its launch to its second restart. The steps build
// on each other: a guest takes seconds to begin where KVM is nested.
func testLife(t *testing.T, rig Rig) {
	b := newBench(t, rig)
	g := b.launch(t, "first", false)
	steps := []struct {
		name string
		step func(*testing.T, *bench, *stand)
	}{
		{"launched_stopped", launchedStopped},
		{"locate", locates},
		{"continue", continues},
		{"stop", stops},
		{"save", saves},
		{"frames", answersFrames},
		{"frames_while_stopped", keepsFrames},
		{"reattach", reattaches},
		{"cancelled", survivesCancel},
		{"restart", restarts},
	}
	for _, s := range steps {
		if !t.Run(s.name, func(t *testing.T) { s.step(t, b, g) }) {
			t.FailNow()
		}
	}
}

func launchedStopped(t *testing.T, b *bench, g *stand) {
	g.wantStatus(t, vmm.StatusPaused)
	if name := g.Name(); name != "first" {
		t.Errorf("name %q, want first", name)
	}
	mem := g.Memory()
	if len(mem) != 1 || mem[0].Size != ProgramMemory {
		t.Fatalf("memory %+v, want one block of %d bytes", mem, ProgramMemory)
	}
	if st, err := os.Stat(mem[0].Path); err != nil || st.Size() != ProgramMemory {
		t.Fatalf("memory file: %v, %v", st, err)
	}
	if _, err := g.LoadDevices(b.ctx, []byte("no state")); !errors.Is(err, vmm.ErrCorrupt) {
		t.Errorf("load garbage: %v, want ErrCorrupt", err)
	}
	if g.console(t) != "" || g.counter(t).Started {
		t.Error("the guest ran before Continue")
	}
}

// locates asks where the program's counter is.
func locates(t *testing.T, b *bench, g *stand) {
	l, ok := g.Machine.(vmm.Locator)
	if !ok {
		t.Fatal("it is no vmm.Locator")
	}
	counter := vmm.Part{Block: g.Memory()[0].Name, Where: extent.Extent{Off: counterAt, Len: 4096}}
	ring := vmm.Part{Block: counter.Block, Where: extent.Extent{Off: ringAt, Len: 8192}}
	if parts, err := l.Locate(b.ctx, extent.Of(ring.Where, counter.Where)); err != nil || len(parts) != 2 || parts[0] != counter || parts[1] != ring {
		t.Errorf("%+v, %v, want %+v and %+v", parts, err, counter, ring)
	}
	if parts, err := l.Locate(b.ctx, extent.Set{}); err != nil || len(parts) != 0 {
		t.Errorf("nowhere: %+v, %v", parts, err)
	}
	for _, e := range []extent.Extent{{Off: ProgramMemory, Len: 4096}, {Off: ProgramMemory - 4096, Len: 8192}} {
		if parts, err := l.Locate(b.ctx, extent.Of(counter.Where, e)); !errors.Is(err, vmm.ErrNotRAM) {
			t.Errorf("%s: %+v, %v", e, parts, err)
		}
	}
}

func continues(t *testing.T, b *bench, g *stand) {
	g.cont(t)
	g.cont(t)
	g.wantStatus(t, vmm.StatusRunning)
	g.progress(t)
	if _, err := g.SaveDevices(b.ctx); !errors.Is(err, vmm.ErrNotStopped) {
		t.Errorf("save a running guest: %v, want ErrNotStopped", err)
	}
	g.progress(t)
}

func stops(t *testing.T, b *bench, g *stand) {
	g.stop(t)
	g.wantStatus(t, vmm.StatusPaused)
	ram, console := g.digest(t), g.console(t)
	g.stop(t)
	for range 5 { // hashing takes long enough for many steps of a guest that runs
		if g.digest(t) != ram {
			t.Fatal("memory changed while the guest was stopped")
		}
	}
	if g.console(t) != console {
		t.Fatal("the guest wrote while it was stopped")
	}
	g.wantStatus(t, vmm.StatusPaused)
	g.cont(t)
	g.progress(t)
}

func saves(t *testing.T, b *bench, g *stand) {
	g.stop(t)
	before := g.counter(t)
	var sizes [2]int
	for i := range sizes {
		start := time.Now()
		state, err := g.SaveDevices(b.ctx)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("saved %d bytes in %v", len(state), time.Since(start))
		sizes[i] = len(state)
		g.wantStatus(t, vmm.StatusPaused)
	}
	if sizes[0] == 0 || sizes[0] > 2*sizes[1] || sizes[1] > 2*sizes[0] {
		t.Errorf("states of %d and %d bytes from one stopped guest", sizes[0], sizes[1])
	}
	if after := g.counter(t); after != before {
		t.Errorf("counter %+v became %+v while the guest was stopped", before, after)
	}
	g.cont(t)
	g.progress(t)
}

// answersFrames: what was sent to a running guest is answered, whole and in
// order, and a guest that is stopped once its socket is empty owes nothing.
func answersFrames(t *testing.T, b *bench, g *stand) {
	w := g.wire
	b.must(t, w.send(sequence(1, 30)...))
	b.must(t, w.expect(sequence(1, 30)...))

	b.must(t, w.send(sequence(31, 40)...))
	b.until(t, "the machine takes all frames", func() (bool, error) {
		n, err := w.queued()
		return n == 0, err
	})
	g.stop(t)
	g.cont(t)
	b.must(t, w.expect(sequence(31, 40)...))
}

// keepsFrames: frames that come while the guest stands still are answered after
// Continue, none before.
func keepsFrames(t *testing.T, b *bench, g *stand) {
	g.stop(t)
	b.must(t, g.wire.send(sequence(101, 105)...))
	b.must(t, g.wire.silent(quiet))
	g.cont(t)
	b.must(t, g.wire.expect(sequence(101, 105)...))
}

// reattaches: after the first handle is gone a second one can do everything,
// and finds the card's files in the machine.
func reattaches(t *testing.T, b *bench, g *stand) {
	b.must(t, g.Detach())
	b.must(t, g.Detach())
	if err := g.Stop(b.ctx); !errors.Is(err, vmm.ErrDetached) {
		t.Errorf("stop by a detached handle: %v, want ErrDetached", err)
	}
	g.progress(t)
	again, err := g.Reattach(b.ctx)
	if err != nil {
		t.Fatal(err)
	}
	g.Guest = again
	g.wantStatus(t, vmm.StatusRunning)
	g.stop(t)
	g.cont(t)
	g.progress(t)

	holder, ok := g.Machine.(vmm.NICHolder)
	if !ok {
		return
	}
	keep, file, err := holder.NICFiles(nicName)
	if err != nil {
		t.Fatal(err)
	}
	defer keep.Close()
	defer file.Close()
	b.must(t, wire{keep}.send(sequence(201, 205)...))
	b.must(t, wire{keep}.expect(sequence(201, 205)...))
	if _, _, err := holder.NICFiles("absent"); !errors.Is(err, vmm.ErrUnknownNIC) {
		t.Errorf("files of an absent card: %v, want ErrUnknownNIC", err)
	}
}

// survivesCancel: a caller that gives up leaves a machine that still obeys.
func survivesCancel(t *testing.T, b *bench, g *stand) {
	ctx, cancel := context.WithCancel(b.ctx)
	cancel()
	if err := g.Stop(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("stop under a cancelled context: %v, want context.Canceled", err)
	}
	g.cont(t)
	g.progress(t)
}

// restarts: a guest put back goes on with the next step, twice from one
// checkpoint, and the restarted guest can be saved and put back in turn.
func restarts(t *testing.T, b *bench, g *stand) {
	g.stop(t)
	cp := b.checkpoint(t, g)
	g.cont(t)
	g.progress(t)
	g.kill(t)

	second := b.restart(t, "second", cp)
	second.cont(t)
	second.progress(t)
	b.must(t, second.wire.send(sequence(301, 305)...))
	b.must(t, second.wire.expect(sequence(301, 305)...))
	second.stop(t)
	next := b.checkpoint(t, second)
	second.kill(t)

	third := b.restart(t, "third", next)
	third.cont(t)
	third.progress(t)
	third.kill(t)

	rollback := b.restart(t, "rollback", cp)
	rollback.cont(t)
	rollback.progress(t)
	rollback.kill(t)
}

func testCrash(t *testing.T, rig Rig) {
	b := newBench(t, rig)
	g := b.launch(t, "crash", false)
	g.cont(t)
	select {
	case <-g.Exited():
		t.Fatal("exited before the crash")
	default:
	}
	b.must(t, rig.Crash(g.Guest))
	select {
	case <-g.Exited():
	case <-time.After(budget):
		t.Fatal("the end of the machine was not noticed")
	}
	g.wantStatus(t, vmm.StatusDead)
	if err := g.Stop(b.ctx); !errors.Is(err, vmm.ErrGone) {
		t.Errorf("stop a dead guest: %v, want ErrGone", err)
	}
	if _, err := g.Reattach(b.ctx); !errors.Is(err, vmm.ErrGone) {
		t.Errorf("attach to a dead guest: %v, want ErrGone", err)
	}
	g.kill(t)
}

func testBrokenLaunch(t *testing.T, rig Rig) {
	b := newBench(t, rig)
	spec := b.spec(t, "broken", false)
	if err := rig.LaunchBroken(b.ctx, spec); err == nil {
		t.Fatal("a broken launch reported no error")
	} else {
		t.Log(err)
	}
	for _, dir := range []string{spec.Dir, spec.MemoryDir} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		for _, e := range entries {
			t.Errorf("a broken launch left %s", filepath.Join(dir, e.Name()))
		}
	}
}

// digestFile returns the SHA-256 of a file.
func digestFile(path string) (sum [sha256.Size]byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return sum, err
	}
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	return [sha256.Size]byte(h.Sum(nil)), err
}
