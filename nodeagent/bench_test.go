package nodeagent

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"fermata/imageio/extent"
	"fermata/imageio/repository"
	"fermata/nodeagent/capture"
	"fermata/nodeagent/dataplane"
	"fermata/nodeagent/fabric"
	"fermata/nodeagent/guard"
	"fermata/nodeagent/journal"
	"fermata/protocol/api"
	"fermata/vmm"
	"fermata/vmm/qemu"
	"fermata/vmm/vmmtest"
)

const (
	pageBytes = 4096
	// givenAt is where memory is confidential by the specification of a bench's guests.
	givenAt = 0xc00000
)

// fakeMachine is a fake with places where a test makes it fail. A hook that is
// nil does nothing.
type fakeMachine struct {
	*vmmtest.Fake
	dir string

	onStop, onContinue, onSave, onFlush func(context.Context) error
	memoryPath                          string // instead of the real one

	noRoom atomic.Bool // the guest's next request to its disk stops it
	stands atomic.Bool // it stands still for that

	tool chan net.Conn // what DialTool returns, one after the other
}

var _ machine = (*fakeMachine)(nil)

func (m *fakeMachine) PID() int                                          { return os.Getpid() }
func (m *fakeMachine) ConsolePath() string                               { return filepath.Join(m.dir, "console") }
func (m *fakeMachine) GuardConnection(context.Context) (*os.File, error) { return nil, nil }
func (m *fakeMachine) ExitReason() string                                { return "it crashed" }
func (m *fakeMachine) ReadySave(context.Context) error                   { return nil }
func (m *fakeMachine) Lend(context.Context, *os.File) (int, func() error, error) {
	return 0, nil, vmm.ErrUnsupported
}
func (m *fakeMachine) StepClock(context.Context) error { return vmm.ErrUnsupported }
func (m *fakeMachine) DialTool(ctx context.Context) (net.Conn, error) {
	select {
	case conn := <-m.tool:
		return conn, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
func (m *fakeMachine) TAPName(string) (string, error) { return "", vmm.ErrUnknownNIC }
func (m *fakeMachine) State() qemu.State {
	return qemu.State{GuardPath: filepath.Join(m.dir, "guard.sock")}
}

// write is a request to the guest's disk.
func (m *fakeMachine) write() {
	if m.noRoom.Load() {
		m.stands.Store(true)
	}
}

func (m *fakeMachine) DiskErrors(context.Context) ([]vmm.DiskError, error) {
	if !m.stands.Load() {
		return nil, nil
	}
	return []vmm.DiskError{{Disk: "root", NoSpace: true}}, nil
}

func (m *fakeMachine) Status(ctx context.Context) (vmm.Status, error) {
	if m.stands.Load() {
		return vmm.StatusIOError, nil
	}
	return m.Fake.Status(ctx)
}

// Trackable: our own process cannot be traced by itself.
func (m *fakeMachine) Trackable(context.Context) error { return vmm.ErrUntrackable }

func (m *fakeMachine) Describe(context.Context) (qemu.Description, error) {
	return qemu.Description{}, nil
}

func (m *fakeMachine) Stop(ctx context.Context) error {
	if m.onStop != nil {
		if err := m.onStop(ctx); err != nil {
			return err
		}
	}
	if m.stands.Load() {
		return vmm.ErrIOError
	}
	return m.Fake.Stop(ctx)
}

func (m *fakeMachine) FlushDisks(ctx context.Context) error {
	if m.onFlush != nil {
		return m.onFlush(ctx)
	}
	return nil
}

func (m *fakeMachine) Continue(ctx context.Context) error {
	if m.onContinue != nil {
		if err := m.onContinue(ctx); err != nil {
			return err
		}
	}
	if m.stands.Load() && m.noRoom.Load() {
		return vmm.ErrIOError
	}
	m.stands.Store(false)
	return m.Fake.Continue(ctx)
}

func (m *fakeMachine) SaveDevices(ctx context.Context) ([]byte, error) {
	if m.onSave != nil {
		if err := m.onSave(ctx); err != nil {
			return nil, err
		}
	}
	return m.Fake.SaveDevices(ctx)
}

func (m *fakeMachine) Memory() []vmm.Memory {
	blocks := m.Fake.Memory()
	if m.memoryPath != "" {
		blocks[0].Path = m.memoryPath
	}
	return blocks
}

// bench is an agent with journal, repository, fabric and guard, all real, and a
// released cluster c of fake machines.
type bench struct {
	t        *testing.T
	agent    *Agent
	cluster  *cluster
	machines []*fakeMachine
	fence    *api.Fence
	chatty   bool // guests that answer also send to all others
}

func newBench(t *testing.T, guests int) *bench {
	t.Helper()
	dir := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	must(err)
	a, err := New(Config{
		Name: "n1", StateDir: filepath.Join(dir, "state"), MemoryDir: filepath.Join(dir, "memory"),
		Repository: repository.Config{Dir: filepath.Join(dir, "repository")}, Listen: "127.0.0.1:1", FabricListen: "127.0.0.1:1",
		Plaintext: true, AllowedPaths: []string{"/"}, MemoryBytes: 1 << 30, CaptureBytes: 1 << 30, Logger: hclog.NewNullLogger(),
	})
	must(err)
	a.journal, err = journal.Open(a.cfg.StateDir)
	must(err)
	repo, err := repository.Create(t.Context(), a.cfg.Repository)
	must(err)
	a.repo.set(repo)
	a.budget = capture.NewBudget(a.cfg.CaptureBytes)
	a.digests = newDigests(a.journal, a.beside)
	inside, err := fabric.New(dataplane.FabricConfig(a.cfg.Name, a.incarnation, listener, nil, a.log))
	must(err)
	a.plane = dataplane.Inside{Fabric: inside}
	exe, err := os.Executable()
	must(err)
	a.guard, err = guard.Start([]string{exe, "guard"}, os.Stderr)
	must(err)
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- inside.Run(ctx) }()

	b := &bench{t: t, agent: a, fence: &api.Fence{Token: 1, Store: 1}}
	b.cluster, err = a.fence(t.Context(), "c", b.fence)
	must(err)
	c := b.cluster
	must(a.update(c, func(rec *journal.Cluster) { rec.Epoch, rec.Released = 1, true }))
	must(a.joinFabric(c, c.rec.Epoch))
	for i := range guests {
		name := fmt.Sprintf("g%d", i+1)
		m := &fakeMachine{dir: a.guestDir("c", name), tool: make(chan net.Conn)}
		must(os.MkdirAll(m.dir, 0o700))
		m.Fake, err = vmmtest.NewFake(vmmtest.FakeConfig{
			Name: name, MemoryPath: filepath.Join(m.dir, "ram"), MemoryBytes: vmmtest.ProgramMemory, ConsolePath: m.ConsolePath(),
		})
		must(err)
		g := &guest{cluster: "c", spec: &api.GuestSpec{
			Name: name, MemoryBytes: vmmtest.ProgramMemory, GuestTool: true, Confidential: []*api.MemoryRange{{Start: givenAt, Bytes: 2 * pageBytes}},
		}, dir: m.dir, machine: m, epoch: 1}
		must(a.journal.PutGuest(journal.Guest{Cluster: "c", Name: name, Created: true}))
		must(a.hides(t.Context(), g, extent.Set{}, extent.Set{}))
		a.openTool(c, g)
		c.complete(g)
		a.watch(c, g)
		b.machines = append(b.machines, m)
	}
	must(a.letRun(t.Context(), c))
	must(a.startRounds(c, nil))
	t.Cleanup(func() {
		if err := c.endRound(context.Background()); err != nil {
			t.Error(err)
		}
		for _, g := range c.list() {
			g.unwatch()
			g.closeTool()
		}
		for _, m := range b.machines {
			m.Crash()
		}
		cancel()
		for _, err := range []error{<-ran, a.guard.Close(), a.journal.Close()} {
			if err != nil {
				t.Error(err)
			}
		}
	})
	return b
}

func (b *bench) round(epoch uint64) *api.Round {
	return &api.Round{Fence: b.fence, Cluster: "c", Epoch: epoch}
}

// cut prepares and cuts.
func (b *bench) cut(epoch uint64, budget time.Duration) error {
	b.t.Helper()
	_, err := b.agent.PrepareRound(b.t.Context(), &api.PrepareRoundRequest{
		Round: b.round(epoch), Nodes: []string{"n1"}, PauseBudgetMs: uint64(budget.Milliseconds()),
	})
	if err != nil {
		b.t.Fatalf("prepare: %v", err)
	}
	_, err = b.agent.CutRound(b.t.Context(), &api.CutRoundRequest{Round: b.round(epoch)})
	return err
}

func (b *bench) finish(epoch uint64, committed bool) {
	b.t.Helper()
	if err := b.agent.FinishRound(b.t.Context(), &api.FinishRoundRequest{Round: b.round(epoch), Committed: committed}); err != nil {
		b.t.Fatalf("finish: %v", err)
	}
}

// checkpoint runs a whole round, which must succeed.
func (b *bench) checkpoint(epoch uint64) *api.NodeImage {
	b.t.Helper()
	if err := b.cut(epoch, stepBudget); err != nil {
		b.t.Fatalf("cut: %v", err)
	}
	var image *api.NodeImage
	err := b.agent.PersistRound(b.t.Context(), &api.PersistRoundRequest{Round: b.round(epoch)}, func(u *api.PersistRoundUpdate) error {
		image = u.Image
		return nil
	})
	if err != nil {
		b.t.Fatalf("persist: %v", err)
	}
	b.finish(epoch, true)
	return image
}

func (b *bench) await(what string, is func() bool) {
	b.t.Helper()
	deadline := time.Now().Add(stepBudget)
	for !is() {
		if time.Now().After(deadline) {
			b.t.Fatalf("waited %s for: %s", stepBudget, what)
		}
		time.Sleep(time.Millisecond) // between looks
	}
}

func (b *bench) status(i int) vmm.Status {
	b.t.Helper()
	s, err := b.machines[i].Status(context.Background())
	if err != nil {
		b.t.Fatal(err)
	}
	return s
}

// allRun waits until every guest runs.
func (b *bench) allRun() {
	b.t.Helper()
	for i, m := range b.machines {
		b.await("guest "+m.Name()+" to run", func() bool { return b.status(i) == vmm.StatusRunning })
	}
}

// nothingCopied checks that all memory of copies was given back.
func (b *bench) nothingCopied() {
	b.t.Helper()
	b.await("the budget of copies to be whole", func() bool { return b.agent.budget.Free() == b.agent.cfg.CaptureBytes })
}
