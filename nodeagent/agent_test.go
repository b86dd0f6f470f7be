package nodeagent

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"fermata/experiments/guests"
	"fermata/imageio/repository"
	"fermata/nodeagent/dataplane"
	"fermata/nodeagent/guard"
	"fermata/protocol/api"
	"fermata/protocol/fault"
	"fermata/protocol/fault/faultgrpc"
	"fermata/protocol/mustrun"
	"fermata/vmm/qmp"
	"fermata/vmm/uffd"
)

// TestMain lets the test binary play the guard process and the data plane of the agents it runs.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "data-plane" {
		if err := dataplane.Main(context.Background(), os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if len(os.Args) == 2 && os.Args[1] == "guard" {
		err := guard.Serve(context.Background(), os.Stdin, guard.Rescue{Revoke: uffd.Revoke, Resume: func(ctx context.Context, socket string) error {
			c, err := qmp.Dial(ctx, socket)
			if err != nil {
				return err
			}
			defer c.Close()
			return c.Cont(ctx)
		}})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

const (
	bootBudget = 2 * time.Minute
	stepBudget = 30 * time.Second
)

// rig is some agents over loopback and the coordinator's side of their wire.
type rig struct {
	t     *testing.T
	repo  string
	app   guests.Cluster
	disks []*api.DiskSpec // of every guest
	nodes map[string]*rigNode
	fence *api.Fence
}

type rigNode struct {
	name   string
	cfg    Config
	agent  *Agent
	client api.NodeClient
	cancel context.CancelFunc
	done   chan error
}

func newRig(t *testing.T, names ...string) *rig {
	mustrun.Need(t, mustrun.QEMU, mustrun.GuestImage)
	r := &rig{
		t: t, repo: filepath.Join(t.TempDir(), "repository"), nodes: map[string]*rigNode{},
		fence: &api.Fence{Token: 1, Store: 1},
		app:   guests.Cluster{Count: 2, Work: guests.RunCanary, Canary: guests.Canary{Rate: 200, SizeBytes: 200, Length: time.Hour}, Tick: 50 * time.Millisecond},
	}
	if _, err := repository.Create(t.Context(), repository.Config{Dir: r.repo}); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		r.add(name)
		r.start(name)
	}
	t.Cleanup(func() {
		for _, n := range r.nodes {
			r.stop(n.name)
		}
	})
	return r
}

// add makes a node that is not started.
func (r *rig) add(name string) *rigNode {
	t := r.t
	mem, err := os.MkdirTemp("/dev/shm", "fermata-agent-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.stop(name)
		if err := os.RemoveAll(mem); err != nil {
			t.Error(err)
		}
	})
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	n := &rigNode{name: name, cfg: Config{
		Name: name, StateDir: filepath.Join(t.TempDir(), name), MemoryDir: mem, Repository: repository.Config{Dir: r.repo},
		Listen: freeAddress(t), FabricListen: freeAddress(t), Plaintext: true, AllowedPaths: []string{"/"},
		MemoryBytes: 1 << 30, CaptureBytes: 1 << 30, Guard: []string{exe, "guard"}, DataPlane: []string{exe, "data-plane"}, DestroyOnExit: true,
		Logger: hclog.New(&hclog.LoggerOptions{Name: name, Level: hclog.Debug, Output: testWriter{t}}),
	}}
	r.nodes[name] = n
	return n
}

// testWriter sends log lines to the test that ran when they were made.
type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(string(bytes.TrimRight(b, "\n")))
	return len(b), nil
}

func freeAddress(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func (r *rig) start(name string) {
	r.t.Helper()
	n := r.nodes[name]
	a, err := New(n.cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	n.agent = a
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel, n.done = cancel, make(chan error, 1)
	go func(done chan<- error) { done <- a.Run(ctx) }(n.done)
	conn, err := grpc.NewClient(n.cfg.Listen, append(faultgrpc.DialOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { conn.Close() })
	n.client = api.NewNodeClient(conn)
	r.await("agent "+name+" answers", stepBudget, func() bool {
		_, err := n.client.Describe(r.t.Context(), &api.DescribeRequest{})
		return err == nil
	})
}

// stop ends an agent as a signal would.
func (r *rig) stop(name string) {
	r.t.Helper()
	n := r.nodes[name]
	if n.cancel == nil {
		return
	}
	n.cancel()
	n.cancel = nil
	select {
	case err := <-n.done:
		if err != nil {
			r.t.Errorf("agent %s: %v", name, err)
		}
	case <-time.After(stepBudget):
		r.t.Errorf("agent %s does not end", name)
	}
}

func (r *rig) await(what string, budget time.Duration, is func() bool) {
	r.t.Helper()
	deadline := time.Now().Add(budget)
	for !is() {
		if time.Now().After(deadline) {
			r.t.Fatalf("waited %s for: %s", budget, what)
		}
		time.Sleep(20 * time.Millisecond) // between looks
	}
}

func (r *rig) spec(index int) *api.GuestSpec {
	dir, err := mustrun.GuestDir()
	if err != nil {
		r.t.Fatal(err)
	}
	return &api.GuestSpec{
		Name: guests.Name(index), Accel: "tcg", Machine: "pc-q35-7.2", Cpu: "qemu64", MemoryBytes: 128 << 20, Vcpus: 1,
		Kernel: filepath.Join(dir, "vmlinuz"), Initrd: filepath.Join(dir, "initrd.img"), Cmdline: r.app.Cmdline(index),
		Nics:  []*api.NICSpec{{Name: "net0", Network: "lan", Mac: guests.MAC(index, 0).String()}},
		Disks: r.disks,
	}
}

// create makes guest index on each node named by where, and lets all run.
func (r *rig) create(epoch uint64, where map[int]string, images map[string]*api.GuestImage, packs []string) (injected uint64) {
	r.t.Helper()
	var peers []*api.Peer
	for _, n := range r.nodes {
		p := &api.Peer{Node: n.name, FabricAddress: n.cfg.FabricListen}
		for i, node := range where {
			if node == n.name {
				p.Cards = append(p.Cards, &api.PeerCard{Network: "lan", Mac: guests.MAC(i, 0)})
			}
		}
		peers = append(peers, p)
	}
	for _, n := range r.nodes {
		req := &api.CreateGuestsRequest{Fence: r.fence, Cluster: "c", Epoch: epoch, Packs: packs}
		for i, node := range where {
			if node != n.name {
				continue
			}
			req.Guests = append(req.Guests, r.spec(i))
			if images != nil {
				req.Images = append(req.Images, images[guests.Name(i)])
			}
		}
		for _, p := range peers {
			if p.Node != n.name {
				req.Peers = append(req.Peers, p)
			}
		}
		stream, err := n.client.CreateGuests(r.t.Context(), req)
		if err != nil {
			r.t.Fatal(err)
		}
		for {
			u, err := stream.Recv()
			if err == io.EOF {
				break
			}
			if err != nil {
				r.t.Fatalf("create on %s: %v", n.name, err)
			}
			injected += u.FramesInjected
		}
	}
	for _, n := range r.nodes {
		if _, err := n.client.ReleaseGuests(r.t.Context(), &api.ReleaseGuestsRequest{Fence: r.fence, Cluster: "c"}); err != nil {
			r.t.Fatal(err)
		}
	}
	return injected
}

// check asks a node whether it could make guests.
func (r *rig) check(node string, req *api.CheckGuestsRequest) error {
	stream, err := r.nodes[node].client.CheckGuests(r.t.Context(), req)
	for err == nil {
		var u *api.CheckGuestsUpdate
		if u, err = stream.Recv(); u.GetChecked() {
			return nil
		}
	}
	return err
}

func (r *rig) destroy() {
	r.t.Helper()
	for _, n := range r.nodes {
		if _, err := n.client.DestroyGuests(r.t.Context(), &api.DestroyGuestsRequest{Fence: r.fence, Cluster: "c"}); err != nil {
			r.t.Fatal(err)
		}
	}
}

// console returns what guest index has printed on its node.
func (r *rig) console(node string, index int) []byte {
	stream, err := r.nodes[node].client.ReadConsole(r.t.Context(), &api.ConsoleRequest{Cluster: "c", Guest: guests.Name(index)})
	if err != nil {
		return nil
	}
	var out []byte
	for {
		chunk, err := stream.Recv()
		if err != nil {
			return out
		}
		out = append(out, chunk.Data...)
	}
}

// ticks returns the heartbeats on a console.
func ticks(console []byte) []guests.Tick {
	var out []guests.Tick
	for text := range bytes.Lines(console) {
		if line, ok := guests.Parse(string(text)); ok {
			if tick, ok := line.Body.(guests.Tick); ok {
				out = append(out, tick)
			}
		}
	}
	return out
}

// canary returns the last account of a guest's canary.
func canary(console []byte) (last guests.CanaryStatus) {
	for text := range bytes.Lines(console) {
		if line, ok := guests.Parse(string(text)); ok {
			if c, ok := line.Body.(guests.CanaryStatus); ok {
				last = c
			}
		}
	}
	return last
}

// onAll calls f for every node at once.
func (r *rig) onAll(f func(n *rigNode) error) map[string]error {
	var mu sync.Mutex
	errs := map[string]error{}
	var wg sync.WaitGroup
	for _, n := range r.nodes {
		wg.Go(func() {
			err := f(n)
			mu.Lock()
			errs[n.name] = err
			mu.Unlock()
		})
	}
	wg.Wait()
	return errs
}

func (r *rig) mustAll(what string, f func(n *rigNode) error) {
	r.t.Helper()
	for name, err := range r.onAll(f) {
		if err != nil {
			r.t.Fatalf("%s on %s: %v", what, name, err)
		}
	}
}

func (r *rig) round(epoch uint64) *api.Round {
	return &api.Round{Fence: r.fence, Cluster: "c", Epoch: epoch}
}

func (r *rig) prepare(epoch uint64) {
	r.t.Helper()
	var names []string
	for name := range r.nodes {
		names = append(names, name)
	}
	r.mustAll("prepare", func(n *rigNode) error {
		_, err := n.client.PrepareRound(r.t.Context(), &api.PrepareRoundRequest{Round: r.round(epoch), Nodes: names, PauseBudgetMs: 10_000})
		return err
	})
}

// checkpoint runs a whole round and returns the images by guest, all packs, and the reports.
func (r *rig) checkpoint(epoch uint64) (map[string]*api.GuestImage, []string, []*api.GuestReport) {
	r.t.Helper()
	r.prepare(epoch)
	r.mustAll("cut", func(n *rigNode) error {
		_, err := n.client.CutRound(r.t.Context(), &api.CutRoundRequest{Round: r.round(epoch)})
		return err
	})
	var mu sync.Mutex
	images := map[string]*api.GuestImage{}
	var packs []string
	var reports []*api.GuestReport
	r.mustAll("persist", func(n *rigNode) error {
		stream, err := n.client.PersistRound(r.t.Context(), &api.PersistRoundRequest{Round: r.round(epoch)})
		if err != nil {
			return err
		}
		for {
			u, err := stream.Recv()
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return err
			}
			if u.Image == nil {
				continue
			}
			mu.Lock()
			for _, g := range u.Image.Guests {
				images[g.Guest] = g
			}
			packs = append(packs, u.Image.Packs...)
			reports = append(reports, u.Image.Reports...)
			mu.Unlock()
		}
	})
	r.mustAll("finish", func(n *rigNode) error {
		_, err := n.client.FinishRound(r.t.Context(), &api.FinishRoundRequest{Round: r.round(epoch), Committed: true})
		return err
	})
	slices.Sort(packs)
	return images, slices.Compact(packs), reports
}

// running waits until both guests tick and their canaries have heard each other.
func (r *rig) running(where map[int]string) {
	r.t.Helper()
	for i, node := range where {
		r.await(fmt.Sprintf("guest %d on %s to send and receive", i, node), bootBudget, func() bool {
			c := r.console(node, i)
			return len(ticks(c)) > 3 && canary(c).Received > 100
		})
	}
}

// TestAgents_CheckpointAndRestartElsewhere is the agents' part of the main job:
// two guests on two nodes, cut under load, ended, restored on swapped nodes.
// The canary sees every datagram that is lost, doubled or reordered.
func TestAgents_CheckpointAndRestartElsewhere(t *testing.T) {
	r := newRig(t, "n1", "n2")
	before := map[int]string{1: "n1", 2: "n2"}
	r.create(1, before, nil, nil)
	r.running(before)

	images, packs, reports := r.checkpoint(2)
	var recorded uint64
	for _, rep := range reports {
		t.Logf("%s on %s: pause %d µs (stop %d, devices %d, memory %d, channels %d, resume %d), gate %d, frames %d, non-zero %d of %d",
			rep.Name, rep.Node, rep.PauseUs, rep.StopUs, rep.DevicesUs, rep.MemoryUs, rep.ChannelsUs, rep.ResumeUs, rep.GateUs, rep.FramesRecorded, rep.NonZeroBytes, rep.RawBytes)
		recorded += rep.FramesRecorded
		if rep.PauseUs == 0 || rep.NonZeroBytes == 0 || rep.UndrainedNics != 0 {
			t.Errorf("report %v", rep)
		}
	}
	// The checkpoint did no harm.
	for i, node := range before {
		last := len(ticks(r.console(node, i)))
		r.await("guest to go on", stepBudget, func() bool { return len(ticks(r.console(node, i))) > last+5 })
		if c := canary(r.console(node, i)); c.Doubled != 0 || c.Reordered != 0 || c.Missing != 0 {
			t.Errorf("after the checkpoint: %+v", c)
		}
	}
	// Beside the guests that run, their nodes can say that these images will do.
	after := map[int]string{1: "n2", 2: "n1"}
	for i, node := range after {
		create := &api.CreateGuestsRequest{
			Cluster: "c", Epoch: 3, Guests: []*api.GuestSpec{r.spec(i)}, Images: []*api.GuestImage{images[guests.Name(i)]}, Packs: packs,
		}
		if err := r.check(node, &api.CheckGuestsRequest{Create: create, ReadData: true}); err != nil {
			t.Errorf("guest %d on %s: %v", i, node, err)
		}
	}
	r.destroy()

	if injected := r.create(3, after, images, packs); injected != recorded {
		t.Errorf("%d frames recorded, %d injected", recorded, injected)
	}
	for i, node := range after {
		r.await("restored guest to tick", stepBudget, func() bool { return len(ticks(r.console(node, i))) > 20 })
		c := r.console(node, i)
		for j, tick := range ticks(c) {
			if first := ticks(c)[0].N; tick.N != first+uint64(j) {
				t.Errorf("guest %d: heartbeat %d after %d", i, tick.N, first+uint64(j)-1)
			}
		}
		r.await("restored canary", stepBudget, func() bool { return canary(r.console(node, i)).Received > 0 })
		if s := canary(r.console(node, i)); s.Doubled != 0 || s.Reordered != 0 || s.Missing != 0 || s.Corrupt != 0 {
			t.Errorf("after the restart: %+v", s)
		}
	}
	r.destroy()
	for _, n := range r.nodes {
		info, err := n.client.Describe(t.Context(), &api.DescribeRequest{})
		if err != nil {
			t.Fatal(err)
		}
		if len(info.Guests) != 0 || info.MemoryFreeBytes != info.MemoryBytes {
			t.Errorf("node %s after destroy: %v", n.name, info)
		}
	}
}

// TestAgents_SilentMemberLetsAllRun cuts on one node only. It gets no marker
// from the other, and must let its guest run when the pause budget ends.
func TestAgents_SilentMemberLetsAllRun(t *testing.T) {
	r := newRig(t, "n1", "n2")
	where := map[int]string{1: "n1", 2: "n2"}
	r.create(1, where, nil, nil)
	r.running(where)
	names := []string{"n1", "n2"}
	for _, n := range r.nodes {
		if _, err := n.client.PrepareRound(t.Context(), &api.PrepareRoundRequest{Round: r.round(2), Nodes: names, PauseBudgetMs: 1000}); err != nil {
			t.Fatal(err)
		}
	}
	_, err := r.nodes["n1"].client.CutRound(t.Context(), &api.CutRoundRequest{Round: r.round(2)})
	if err == nil {
		t.Fatal("a cut without the other node's marker succeeded")
	}
	t.Logf("refused with: %v", err)
	for i, node := range where {
		last := len(ticks(r.console(node, i)))
		r.await("guest to go on", stepBudget, func() bool { return len(ticks(r.console(node, i))) > last+5 })
	}
	r.mustAll("finish", func(n *rigNode) error {
		_, err := n.client.FinishRound(t.Context(), &api.FinishRoundRequest{Round: r.round(2)})
		return err
	})
	// The next round works.
	if images, _, _ := r.checkpoint(3); len(images) != 2 {
		t.Errorf("%d images after an aborted round, want 2", len(images))
	}
	for i, node := range where {
		if c := canary(r.console(node, i)); c.Doubled != 0 || c.Reordered != 0 {
			t.Errorf("after an aborted and a committed round: %+v", c)
		}
	}
}

// TestAgent_FindsItsGuestsAgain ends an agent while its guest runs and starts
// another in its place.
func TestAgent_FindsItsGuestsAgain(t *testing.T) {
	r := newRig(t, "n1")
	n := r.nodes["n1"]
	n.cfg.DestroyOnExit = false
	r.stop("n1")
	r.start("n1")
	where := map[int]string{1: "n1", 2: "n1"}
	r.create(1, where, nil, nil)
	r.running(where)

	// Neither the repository nor QEMU's binary is there: both are being replaced.
	r.stop("n1")
	n.cfg.DestroyOnExit = true // for the end of the test
	n.cfg.QEMU = filepath.Join(t.TempDir(), "qemu")
	away := r.repo + ".away"
	if err := os.Rename(r.repo, away); err != nil {
		t.Fatal(err)
	}
	r.start("n1")
	info, err := n.client.Describe(t.Context(), &api.DescribeRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(info.RepositoryProblem, r.repo) {
		t.Errorf("problem with the repository %q, want one that names %s", info.RepositoryProblem, r.repo)
	}
	if len(info.Guests) != 2 || info.Guests[0].State != api.GuestState_GUEST_STATE_RUNNING {
		t.Fatalf("after the agent's restart: %v", info.Guests)
	}
	for _, g := range info.Guests {
		r.wantConfined(g)
	}
	before := canary(r.console("n1", 1)).Received
	r.await("traffic to go on", stepBudget, func() bool { return canary(r.console("n1", 1)).Received > before+500 })
	// The data plane has carried the frames on meanwhile.
	if c := canary(r.console("n1", 1)); c.Doubled != 0 || c.Reordered != 0 || c.Missing != 0 {
		t.Errorf("canary after the agent's restart: %+v", c)
	}
	_, err = n.client.PrepareRound(t.Context(), &api.PrepareRoundRequest{Round: r.round(2), Nodes: []string{"n1"}, PauseBudgetMs: 10_000, SkewBudgetMs: 5_000})
	if err == nil || !strings.Contains(err.Error(), "node n1 cannot use its repository: there is no repository in "+r.repo) {
		t.Errorf("checkpoint without a repository: %v", err)
	}
	if err := os.Rename(away, r.repo); err != nil {
		t.Fatal(err)
	}
	r.await("the repository to be open", stepBudget, func() bool {
		info, err := n.client.Describe(t.Context(), &api.DescribeRequest{})
		return err == nil && info.RepositoryProblem == ""
	})
	if images, _, _ := r.checkpoint(3); len(images) != 2 {
		t.Errorf("%d images, want 2", len(images))
	}
}

// TestAgent_ReplacesItsDataPlane kills the data plane of a node beside its agent. The
// guests are joined to another, and no frame comes twice.
func TestAgent_ReplacesItsDataPlane(t *testing.T) {
	r := newRig(t, "n1", "n2")
	where := map[int]string{1: "n1", 2: "n2"}
	r.create(1, where, nil, nil)
	r.running(where)
	r.checkpoint(2)
	n := r.nodes["n1"]
	before := canary(r.console("n2", 2)).Received
	if err := syscall.Kill(n.agent.process.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	r.await("traffic to go on", stepBudget, func() bool { return canary(r.console("n2", 2)).Received > before+500 })
	for i, node := range where {
		if c := canary(r.console(node, i)); c.Doubled != 0 || c.Reordered != 0 {
			t.Errorf("canary of guest %d after the death of a data plane: %+v", i, c)
		}
	}
	// Its guests have the colour of the last round, not of the beginning of their life.
	if s, err := n.agent.plane.ClusterStats("c"); err != nil || s.Epoch != 2 {
		t.Errorf("epoch %d, %v, want 2", s.Epoch, err)
	}
	if images, _, _ := r.checkpoint(3); len(images) != 2 {
		t.Errorf("%d images, want 2", len(images))
	}
}

// TestAgent_KnowsWhyAGuestEnded has a guest power itself off.
func TestAgent_KnowsWhyAGuestEnded(t *testing.T) {
	r := newRig(t, "n1")
	n := r.nodes["n1"]
	r.app = guests.Cluster{Count: 1, Work: guests.RunMPI, MPI: guests.MPI{Side: 64, Iterations: 2, Every: 1}, PowerOff: true}
	r.create(1, map[int]string{1: "n1"}, nil, nil)
	var g *api.GuestStatus
	r.await("the guest to power itself off", bootBudget, func() bool {
		info, err := n.client.Describe(t.Context(), &api.DescribeRequest{})
		if err != nil || len(info.Guests) != 1 {
			t.Fatalf("%v, %v", info, err)
		}
		g = info.Guests[0]
		return g.State == api.GuestState_GUEST_STATE_DEAD && g.Reason != ""
	})
	if g.Reason != "it powered itself off" || g.EndedUnixNs == 0 {
		t.Errorf("status %v", g)
	}
}

// TestAgent_FencesOutDeposedCoordinators also covers a store that was lost.
func TestAgent_FencesOutDeposedCoordinators(t *testing.T) {
	r := newRig(t, "n1")
	client := r.nodes["n1"].client
	try := func(store, token uint64) error {
		_, err := client.DestroyGuests(t.Context(), &api.DestroyGuestsRequest{Fence: &api.Fence{Store: store, Token: token}, Cluster: "c"})
		return err
	}
	for _, step := range []struct {
		store, token uint64
		stale        bool
	}{
		{1, 10, false}, {1, 9, true}, {1, 10, false}, {1, 11, false},
		{2, 3, false}, // etcd was made anew
		{1, 12, true}, // its predecessor's coordinator comes back
		{2, 3, false}, {2, 2, true},
	} {
		if err := try(step.store, step.token); (fault.ClassOf(err) == fault.Stale) != step.stale || (err != nil) != step.stale {
			t.Errorf("store %d token %d: %v, want stale %t", step.store, step.token, err, step.stale)
		}
	}
}
