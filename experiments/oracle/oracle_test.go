// Package oracle proves the live capture of guests' memory on real guests: each
// image equals what memory was at its cut, byte for byte.
package oracle

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fermata/experiments/guests"
	"fermata/imageio/repository"
	"fermata/nodeagent/capture"
	"fermata/protocol/mustrun"
	"fermata/vmm/qemu"
	"fermata/vmm/uffd"
	"fermata/vmm/vmmtest"
)

const (
	guestBudget = 2 * time.Minute
	mib         = 1 << 20
	pageBytes   = 4096
	patience    = 20 * time.Second // of a cut: longer than storage ever takes here
)

// subject is a guest that checks itself.
type subject struct {
	*qemu.Machine
	t      testing.TB
	config qemu.Config
	check  func(*subject, int)
	ended  sync.Once

	flood func() // ends the traffic; nil: there is none
}

// bootLinux boots a Linux guest that rewrites memory, and a disk if it has one,
// and waits until it does.
func bootLinux(t testing.TB, c qemu.Config, w guests.Writer) *subject {
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
	c.Name, c.Accel, c.Machine, c.CPU = "oracle", qemu.TCG, "pc-q35-7.2", "qemu64"
	c.Kernel, c.Initrd, c.Cmdline = filepath.Join(dir, "vmlinuz"), filepath.Join(dir, "initrd.img"), cluster.Cmdline(1)
	g := launch(t, c, (*subject).awaitWriter)
	if err := g.Continue(t.Context()); err != nil {
		t.Fatal(err)
	}
	g.await(1)
	return g
}

// bootProgram boots the program of the driver's contract suite, which needs no
// operating system: it runs where KVM is nested by software, too.
func bootProgram(t testing.TB, accel qemu.Accel) *subject {
	t.Helper()
	kernel := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(kernel, vmmtest.Program(), 0o600); err != nil {
		t.Fatal(err)
	}
	g := launch(t, qemu.Config{
		Name: "oracle", Accel: accel, Machine: "pc-q35-7.2", CPU: "qemu64", MemoryBytes: vmmtest.ProgramMemory, VCPUs: 1, Kernel: kernel,
	}, (*subject).awaitSteps)
	if err := g.Continue(t.Context()); err != nil {
		t.Fatal(err)
	}
	g.await(1)
	return g
}

// launch starts a machine; its memory lies where c says, or on tmpfs.
func launch(t testing.TB, c qemu.Config, check func(*subject, int)) *subject {
	t.Helper()
	if c.MemoryDir == "" {
		memoryDir, err := os.MkdirTemp("/dev/shm", "fermata-capture-test-")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(memoryDir) })
		c.MemoryDir = memoryDir
	}
	c.Dir = filepath.Join(t.TempDir(), "guest")
	m, err := qemu.Launch(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	g := &subject{Machine: m, t: t, config: c, check: check}
	t.Cleanup(g.end)
	return g
}

func (g *subject) end() {
	g.ended.Do(func() {
		if g.flood != nil {
			g.flood()
		}
		ctx, cancel := context.WithTimeout(context.Background(), guestBudget)
		defer cancel()
		if err := errors.Join(g.Kill(ctx), g.Detach()); err != nil {
			g.t.Error(err)
		}
	})
}

// await waits until the guest has checked itself n more times, and fails when it
// found something.
func (g *subject) await(n int) {
	g.t.Helper()
	g.check(g, n)
}

func (g *subject) console() []byte {
	g.t.Helper()
	b, err := os.ReadFile(g.ConsolePath())
	if err != nil {
		g.t.Fatal(err)
	}
	return b
}

// writer returns what the guest's memory writer said last, and how often it has.
func (g *subject) writer() (last guests.Dirty, lines int) {
	g.t.Helper()
	for s := bufio.NewScanner(bytes.NewReader(g.console())); s.Scan(); {
		if line, ok := guests.Parse(s.Text()); ok {
			if d, ok := line.Body.(guests.Dirty); ok {
				last = d
				lines++
			}
		}
	}
	return last, lines
}

// awaitWriter waits for n more lines of a Linux guest's writer; none may tell of
// a bad page or record.
func (g *subject) awaitWriter(n int) {
	g.t.Helper()
	_, from := g.writer()
	g.poll(fmt.Sprintf("%d lines of the writer", n), func() bool {
		last, lines := g.writer()
		if last.Bad+last.BadRecords != 0 {
			g.t.Fatalf("the guest found %d pages and %d records of another instant", last.Bad, last.BadRecords)
		}
		return lines >= from+n
	})
}

// awaitSteps waits for n hundred more steps of the contract suite's program,
// which writes a line a step.
func (g *subject) awaitSteps(n int) {
	g.t.Helper()
	from := bytes.Count(g.console(), []byte("\n"))
	g.poll(fmt.Sprintf("%d steps of the program", 100*n), func() bool {
		text := string(g.console())
		if first, _, whole := strings.Cut(text, "\n"); whole {
			// One that was restored begins in the middle of a line.
			if rest := strings.TrimPrefix(text, first+"\n"); len(rest) > 10 {
				number, err := strconv.ParseUint(strings.TrimPrefix(rest[:10], "C "), 16, 32)
				if err == nil {
					_, err = vmmtest.CheckConsole(rest, uint32(number))
				}
				if err != nil {
					g.t.Fatal(err)
				}
			}
		}
		return strings.Count(text, "\n") >= from+100*n
	})
}

func (g *subject) poll(what string, done func() bool) {
	g.t.Helper()
	for deadline := time.Now().Add(guestBudget); !done(); time.Sleep(20 * time.Millisecond) { // polls, with a deadline
		if time.Now().After(deadline) {
			g.t.Fatalf("waited %s for %s", guestBudget, what)
		}
	}
}

// track begins to track the guest.
func (g *subject) track(budget *capture.Budget) *capture.Tracker {
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
func (g *subject) memory() []byte {
	g.t.Helper()
	mem := g.Memory()[0]
	f, err := os.Open(mem.Path)
	if err != nil {
		g.t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, mem.Size)
	if _, err := io.ReadFull(f, b); err != nil {
		g.t.Fatal(err)
	}
	return b
}

// setMemory makes the guest's memory file hold b, by a mapping: one on hugetlbfs
// cannot be written to otherwise.
func (g *subject) setMemory(b []byte) {
	g.t.Helper()
	f, err := os.OpenFile(g.Memory()[0].Path, os.O_RDWR, 0)
	if err != nil {
		g.t.Fatal(err)
	}
	defer f.Close()
	mapped, err := unix.Mmap(int(f.Fd()), 0, len(b), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		g.t.Fatal(err)
	}
	copy(mapped, b)
	if err := unix.Munmap(mapped); err != nil {
		g.t.Fatal(err)
	}
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
	t.Run("1 vCPU", func(t *testing.T) {
		g := bootLinux(t, qemu.Config{MemoryBytes: 160 * mib, VCPUs: 1}, guests.Writer{MiB: 48})
		oracle(t, g, 100, capture.NewBudget(256*mib))
	})
	// With so small a budget writers have to wait for the sweep.
	t.Run("2 vCPUs, disk and network", func(t *testing.T) {
		c := qemu.Config{MemoryBytes: 160 * mib, VCPUs: 2, Disks: []qemu.Disk{newDisk(t, make([]byte, 4*mib))}}
		nic, keep := newNIC(t)
		c.NICs = []qemu.NIC{nic}
		g := bootLinux(t, c, guests.Writer{MiB: 48, Threads: 2})
		g.flood = flood(t, keep, nic.MAC)
		oracle(t, g, 100, capture.NewBudget(8*mib))
	})
	t.Run("pages of 2 MiB", func(t *testing.T) {
		mustrun.Need(t, mustrun.HugePages)
		c := qemu.Config{MemoryBytes: 160 * mib, VCPUs: 2, MemoryDir: hugetlbfs(t, 2*160*mib)} // for a second machine, too
		g := bootLinux(t, c, guests.Writer{MiB: 48, Threads: 2})
		oracle(t, g, 40, capture.NewBudget(64*mib))
	})
	t.Run("KVM", func(t *testing.T) {
		mustrun.Need(t, mustrun.QEMU, mustrun.UFFD, mustrun.KVM)
		oracle(t, bootProgram(t, qemu.KVM), 60, capture.NewBudget(64*mib))
	})
}

// newDisk makes a disk that holds b.
func newDisk(t testing.TB, b []byte) qemu.Disk {
	t.Helper()
	d := qemu.Disk{Name: "data", Path: filepath.Join(t.TempDir(), "disk"), Format: qemu.Raw}
	if err := os.WriteFile(d.Path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return d
}

// newNIC makes a network card, and the other end of its wire.
func newNIC(t testing.TB) (nic qemu.NIC, keep *os.File) {
	t.Helper()
	file, keep, err := vmmtest.SocketPair()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		file.Close()
		keep.Close()
	})
	return qemu.NIC{Name: "eth0", MAC: "52:54:00:00:00:01", File: file, Keep: keep}, keep
}

// flood sends frames to a guest, as many as it takes, which its card writes into
// its memory, and takes what it sends. The function returned ends that.
func flood(t testing.TB, keep *os.File, mac string) (end func()) {
	t.Helper()
	to, err := net.ParseMAC(mac)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := keep.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		frame := append(append([]byte(to), 0x52, 0x54, 0, 0, 0, 2, 0x88, 0xb5), make([]byte, 1400)...)
		in := make([]byte, 64<<10)
		tick := time.NewTicker(200 * time.Microsecond)
		defer tick.Stop()
		for n := uint64(0); ; n++ {
			select {
			case <-stop:
				return
			case <-tick.C:
			}
			binary.BigEndian.PutUint64(frame[14:], n)
			_ = raw.Control(func(fd uintptr) {
				_ = unix.Sendto(int(fd), frame, unix.MSG_DONTWAIT, nil) // a guest that stands still takes none
				_, _, _ = unix.Recvfrom(int(fd), in, unix.MSG_DONTWAIT)
			})
		}
	})
	return sync.OnceFunc(func() {
		close(stop)
		wg.Wait()
	})
}

// hugetlbfs mounts one with room for n bytes in pages of 2 MiB.
func hugetlbfs(t testing.TB, n int64) string {
	t.Helper()
	const reserved = "/proc/sys/vm/nr_hugepages"
	was, err := os.ReadFile(reserved)
	if err != nil {
		t.Fatal(err)
	}
	before, err := strconv.ParseInt(strings.TrimSpace(string(was)), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	want := before + n/(2*mib)
	if err := os.WriteFile(reserved, fmt.Append(nil, want), 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.WriteFile(reserved, was, 0); err != nil {
			t.Error(err)
		}
	})
	if now, err := os.ReadFile(reserved); err != nil || strings.TrimSpace(string(now)) != fmt.Sprint(want) {
		t.Fatalf("reserved %s huge pages, want %d: %v", now, want, err)
	}
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "hugetlbfs", 0, "pagesize=2M"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func oracle(t *testing.T, g *subject, rounds int, budget *capture.Budget) {
	tr := g.track(budget)
	s := &store{t: t}
	t.Cleanup(s.remove)
	var total capture.Stats
	var worst time.Duration
	for round := 1; round <= rounds; round++ {
		s.freshen()
		audit := rand.IntN(8) == 0
		ctx := t.Context()
		if err := tr.Arm(ctx, s.base == nil || audit, nil); err != nil {
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
		c, err := tr.Cut(patience, nil)
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
		toRevive := round%(rounds/4) == 0
		var disks [][]byte
		for _, d := range g.config.Disks {
			if !toRevive {
				continue
			}
			b, err := os.ReadFile(d.Path)
			if err != nil {
				t.Fatal(err)
			}
			disks = append(disks, b)
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
		if toRevive {
			revive(t, g, got, devices, disks)
		}
		time.Sleep(time.Duration(rand.IntN(200)) * time.Millisecond) // a random moment, not a wait
	}
	g.await(2)
	if total.WriteFaults == 0 {
		t.Error("no write met the capture: the test proves nothing")
	}
	t.Logf("%d cuts, longest %s; %+v", rounds, worst, total)
}

// revive goes on from an image in a new machine.
func revive(t *testing.T, g *subject, memory, devices []byte, disks [][]byte) {
	t.Helper()
	config := g.config
	config.Incoming = true
	config.Disks, config.NICs = nil, nil
	for _, b := range disks {
		config.Disks = append(config.Disks, newDisk(t, b))
	}
	for range g.config.NICs {
		nic, _ := newNIC(t)
		config.NICs = append(config.NICs, nic)
	}
	if config.MemoryDir != "" {
		var err error
		if config.MemoryDir, err = os.MkdirTemp(config.MemoryDir, "revived-"); err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(config.MemoryDir)
	}
	again := launch(t, config, g.check)
	defer again.end()
	again.setMemory(memory)
	if _, err := again.LoadDevices(t.Context(), devices); err != nil {
		t.Fatal(err)
	}
	if err := again.Continue(t.Context()); err != nil {
		t.Fatal(err)
	}
	again.await(2)
}
