// Package oracle proves the live capture of guests' memory on real guests: each
// image equals what memory was at its cut, byte for byte.
package oracle

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"fermata/experiments/guests"
	"fermata/imageio/repository"
	"fermata/nodeagent/capture"
	"fermata/protocol/mustrun"
	"fermata/vmm/qemu"
	"fermata/vmm/uffd"
)

const (
	guestBudget = 2 * time.Minute
	mib         = 1 << 20
	pageBytes   = 4096
	patience    = 20 * time.Second // of a cut: longer than storage ever takes here
)

// linuxGuest is a Linux guest that rewrites memory and checks it.
type linuxGuest struct {
	*qemu.Machine
	t      testing.TB
	config qemu.Config
	ended  sync.Once
}

// bootGuest boots a guest with some memory and waits until it writes.
func bootGuest(t testing.TB, memory int64, vcpus int, w guests.Writer) *linuxGuest {
	t.Helper()
	mustrun.Need(t, mustrun.QEMU, mustrun.GuestImage, mustrun.UFFD)
	dir, err := mustrun.GuestDir()
	if err != nil {
		t.Fatal(err)
	}
	cluster := guests.Cluster{Count: 1, Work: guests.RunDirty, Writer: w, Tick: 100 * time.Millisecond}
	if err := cluster.Validate(); err != nil {
		t.Fatal(err)
	}
	g := launchGuest(t, qemu.Config{
		Name: "oracle", Accel: qemu.TCG, Machine: "pc-q35-7.2", CPU: "qemu64",
		MemoryBytes: uint64(memory), VCPUs: vcpus,
		Kernel: filepath.Join(dir, "vmlinuz"), Initrd: filepath.Join(dir, "initrd.img"), Cmdline: cluster.Cmdline(1),
	})
	if err := g.Continue(t.Context()); err != nil {
		t.Fatal(err)
	}
	g.awaitWriter(1)
	return g
}

func launchGuest(t testing.TB, c qemu.Config) *linuxGuest {
	t.Helper()
	memoryDir, err := os.MkdirTemp("/dev/shm", "fermata-capture-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(memoryDir) })
	c.Dir, c.MemoryDir = filepath.Join(t.TempDir(), "guest"), memoryDir
	m, err := qemu.Launch(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	g := &linuxGuest{Machine: m, t: t, config: c}
	t.Cleanup(g.end)
	return g
}

func (g *linuxGuest) end() {
	g.ended.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), guestBudget)
		defer cancel()
		if err := errors.Join(g.Kill(ctx), g.Detach()); err != nil {
			g.t.Error(err)
		}
	})
}

// writer returns what the guest's memory writer said last, and how often it has.
func (g *linuxGuest) writer() (last guests.Dirty, lines int) {
	g.t.Helper()
	b, err := os.ReadFile(g.ConsolePath())
	if err != nil {
		g.t.Fatal(err)
	}
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		if line, ok := guests.Parse(s.Text()); ok {
			if d, ok := line.Body.(guests.Dirty); ok {
				last = d
				lines++
			}
		}
	}
	return last, lines
}

// awaitWriter waits for n more lines of the writer; none may tell of a bad page.
func (g *linuxGuest) awaitWriter(n int) {
	g.t.Helper()
	_, from := g.writer()
	for deadline := time.Now().Add(guestBudget); ; time.Sleep(20 * time.Millisecond) { // polls, with a deadline
		last, lines := g.writer()
		if last.Bad != 0 {
			g.t.Fatalf("the guest found %d pages of another instant", last.Bad)
		}
		if lines >= from+n {
			return
		}
		if time.Now().After(deadline) {
			g.t.Fatalf("the guest's writer said %d lines in %s, want %d", lines-from, guestBudget, n)
		}
	}
}

// track begins to track the guest.
func (g *linuxGuest) track(budget *capture.Budget) *capture.Tracker {
	g.t.Helper()
	if err := g.Trackable(g.t.Context()); err != nil {
		g.t.Fatal(err)
	}
	mem := g.Memory()[0]
	f, err := os.Open(mem.Path)
	if err != nil {
		g.t.Fatal(err)
	}
	tr, err := budget.Track(g.t.Context(), uffd.Process{PID: g.PID()}, []capture.Block{{Name: mem.Name, File: f, Size: int64(mem.Size)}})
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() {
		if err := tr.Close(); err != nil {
			g.t.Error(err)
		}
	})
	return tr
}

// memory is what the guest's memory file holds.
func (g *linuxGuest) memory() []byte {
	g.t.Helper()
	b, err := os.ReadFile(g.Memory()[0].Path)
	if err != nil {
		g.t.Fatal(err)
	}
	return b
}

// bytesAt is memory that an image is read into.
type bytesAt []byte

func (b bytesAt) WriteAt(p []byte, off int64) (int, error) { return copy(b[off:], p), nil }

// store is a repository for some rounds.
type store struct {
	t    testing.TB
	repo *repository.Repository
	dir  string
	base *repository.Image
	used int // rounds
}

// freshen begins a new repository when the last one has grown: the oracle's
// pages cannot be compressed.
func (s *store) freshen() {
	s.t.Helper()
	if s.repo != nil && s.used < 10 {
		return
	}
	s.remove()
	var err error
	if s.dir, err = os.MkdirTemp("/dev/shm", "fermata-capture-test-"); err != nil {
		s.t.Fatal(err)
	}
	s.repo, err = repository.Create(s.t.Context(), repository.Config{Dir: filepath.Join(s.dir, "repository"), Compression: "none"})
	if err != nil {
		s.t.Fatal(err)
	}
	s.base, s.used = nil, 0
}

func (s *store) remove() {
	if s.dir != "" {
		_ = os.RemoveAll(s.dir)
	}
	s.repo = nil
}

// put stores a cut and reads it back from its packs alone.
func (s *store) put(c *capture.Cut, epoch int, audit bool) (*repository.Image, []byte) {
	s.t.Helper()
	ctx := s.t.Context()
	src, err := c.Source("ram0")
	if err != nil {
		s.t.Fatal(err)
	}
	w, err := s.repo.NewWriter(repository.WriterConfig{Cluster: "oracle", Epoch: uint64(epoch), Node: "n1"})
	if err != nil {
		s.t.Fatal(err)
	}
	data, changed := src.Data(), src.Changed()
	image, err := w.PutImage(ctx, src, src.Size(), repository.PutOptions{
		Data: &data, Base: s.base, Changed: &changed, Audit: audit, Urgent: src.Urgent,
	})
	if err != nil {
		s.t.Fatal(errors.Join(err, w.Abort()))
	}
	res, err := w.Finish(ctx)
	if err != nil {
		s.t.Fatal(err)
	}
	s.used++
	r, err := s.repo.NewReader(ctx, res.Packs)
	if err != nil {
		s.t.Fatal(err)
	}
	got := make(bytesAt, src.Size())
	if err := r.ReadImage(ctx, image.Ref, got, repository.ReadOptions{}); err != nil {
		s.t.Fatal(err)
	}
	return image, got
}

// differ compares page by page.
func differ(t testing.TB, got, want []byte) {
	t.Helper()
	for off := 0; off < len(want); off += pageBytes {
		if !bytes.Equal(got[off:off+pageBytes], want[off:off+pageBytes]) {
			t.Fatalf("page %d of the image is not what it was at the cut", off/pageBytes)
		}
	}
}

// TestOracle captures a guest that rewrites its memory as fast as it can, at
// random moments. Each image, stored, and read back from the repository, equals
// page by page what memory was when the guest stood still, and so does the
// device state; now and then a new machine goes on from it, and the guest in it
// finds no page of another instant.
func TestOracle(t *testing.T) {
	for _, c := range []struct {
		vcpus, rounds int
		budget        int64
	}{
		{1, 100, 256 * mib},
		{2, 100, 8 * mib}, // writers have to wait
	} {
		t.Run(fmt.Sprintf("%d vCPUs", c.vcpus), func(t *testing.T) {
			g := bootGuest(t, 160*mib, c.vcpus, guests.Writer{MiB: 48, Threads: c.vcpus})
			oracle(t, g, c.rounds, capture.NewBudget(c.budget))
		})
	}
}

func oracle(t *testing.T, g *linuxGuest, rounds int, budget *capture.Budget) {
	tr := g.track(budget)
	s := &store{t: t}
	t.Cleanup(s.remove)
	var total capture.Stats
	var worst time.Duration
	for round := 1; round <= rounds; round++ {
		s.freshen()
		audit := rand.IntN(8) == 0
		ctx := t.Context()
		if err := tr.Arm(ctx, s.base == nil || audit); err != nil {
			t.Fatal(err)
		}
		if err := tr.Rearm(ctx); err != nil {
			t.Fatal(err)
		}
		if err := g.Stop(ctx); err != nil {
			t.Fatal(err)
		}
		devices, err := g.SaveDevices(ctx)
		if err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		c, err := tr.Cut(patience)
		if err != nil {
			t.Fatal(err)
		}
		worst = max(worst, time.Since(begun))
		want := g.memory()
		again, err := g.SaveDevices(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if sha256.Sum256(devices) != sha256.Sum256(again) {
			t.Fatalf("round %d: the device state is not that of the cut", round)
		}
		if err := g.Continue(ctx); err != nil {
			t.Fatal(err)
		}
		image, got := s.put(c, round, audit)
		differ(t, got, want)
		st := c.Stats()
		total.WriteFaults += st.WriteFaults
		total.LongestWait = max(total.LongestWait, st.LongestWait)
		total.PeakBytes = max(total.PeakBytes, st.PeakBytes)
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		if rand.IntN(4) > 0 {
			c.Keep()
			s.base = image
		}
		if round%(rounds/4) == 0 {
			revive(t, g, got, devices)
		}
		time.Sleep(time.Duration(rand.IntN(200)) * time.Millisecond) // a random moment, not a wait
	}
	g.awaitWriter(2)
	if total.WriteFaults == 0 {
		t.Error("no write met the capture: the test proves nothing")
	}
	t.Logf("%d cuts, longest %s; %+v", rounds, worst, total)
}

// revive goes on from an image in a new machine.
func revive(t *testing.T, g *linuxGuest, memory, devices []byte) {
	t.Helper()
	config := g.config
	config.Incoming = true
	again := launchGuest(t, config)
	defer again.end()
	if err := os.WriteFile(again.Memory()[0].Path, memory, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := again.LoadDevices(t.Context(), devices); err != nil {
		t.Fatal(err)
	}
	if err := again.Continue(t.Context()); err != nil {
		t.Fatal(err)
	}
	again.awaitWriter(2)
}
