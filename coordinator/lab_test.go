package coordinator_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"fermata/coordinator"
	"fermata/coordinator/coordinatortest"
	"fermata/coordinator/store/memstore"
	"fermata/imageio/repository"
	"fermata/protocol/api"
	"fermata/protocol/fault"
	"fermata/protocol/fault/faultgrpc"
)

// TestMain lets a few tests wait at once; the command line still has the last word.
func TestMain(m *testing.M) {
	if err := flag.Set("test.parallel", "4"); err != nil {
		panic(err) // the flag is the testing package's
	}
	goleak.VerifyTestMain(m)
}

// patience bounds every wait of a test; a regression fails, it does not hang.
const patience = 20 * time.Second

// lab is coordinators and agents around one repository.
type lab struct {
	t        *testing.T
	dir      string
	repo     *repository.Repository
	store    *memstore.Store
	election *coordinatortest.Election
	agents   map[string]*coordinatortest.Agent
	disk     *coordinatortest.Disk
	timeouts coordinator.Timeouts
	leaseTTL time.Duration
}

// quick are timeouts for tests of what hangs: short, but not for a machine that
// is busy with other tests.
func quick() coordinator.Timeouts {
	const d = 1500 * time.Millisecond
	return coordinator.Timeouts{Describe: d, Create: d, Release: d, Destroy: d, Prepare: d, Cut: d, Persist: d, Finish: d}
}

const mib = 1 << 20

// newLab makes the repository and agents of these nodes, with room for two
// guests each. No coordinator runs yet.
//
// Tests with a lab run side by side: most of their time is waiting.
func newLab(t *testing.T, nodes ...string) *lab {
	t.Helper()
	t.Parallel()
	return newLoneLab(t, nodes...)
}

// newLoneLab is newLab for tests that run alone.
func newLoneLab(t *testing.T, nodes ...string) *lab {
	t.Helper()
	// Socket paths are short (unix(7)), and those of t.TempDir are not.
	dir, err := os.MkdirTemp("", "lab")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	l := &lab{t: t, dir: dir, disk: &coordinatortest.Disk{}, leaseTTL: 10 * time.Second, agents: map[string]*coordinatortest.Agent{}}
	if l.repo, err = repository.Create(t.Context(), l.repoConfig()); err != nil {
		t.Fatal(err)
	}
	l.wipe()
	for _, name := range nodes {
		l.addAgent(name)
	}
	return l
}

func (l *lab) repoDir() string { return filepath.Join(l.dir, "repository") }
func (l *lab) repoConfig() repository.Config {
	return repository.Config{Dir: l.repoDir(), FS: l.disk}
}
func (l *lab) socket(i int) string  { return filepath.Join(l.dir, fmt.Sprintf("c%d.sock", i)) }
func (l *lab) address(i int) string { return "unix:" + l.socket(i) }
func (l *lab) logger() hclog.Logger { return testLogger(l.t) }

// wipe takes everything but the repository and the agents away.
func (l *lab) wipe() {
	l.store = memstore.New(memstore.Config{})
	l.election = coordinatortest.NewElection(l.store)
}

func (l *lab) addAgent(name string) {
	l.t.Helper()
	a, err := coordinatortest.New(l.t.Context(), coordinatortest.Config{
		Name: name, Repository: l.repoConfig(), MemoryBytes: 64 * mib,
		Coordinators: []string{l.address(0), l.address(1)}, Socket: filepath.Join(l.dir, name+".sock"),
	})
	if err != nil {
		l.t.Fatal(err)
	}
	l.agents[name] = a
	run(l.t, "agent "+name, a.Run)
	l.t.Cleanup(func() {
		for _, text := range a.Broken() {
			l.t.Errorf("promise broken towards %s: %s", name, text)
		}
	})
}

// run runs a daemon until the returned function is called, or the test ends.
func run(t *testing.T, what string, f func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- f(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil && !errors.Is(err, context.Canceled) {
				t.Errorf("%s: %v", what, err)
			}
		case <-time.After(patience):
			t.Errorf("%s does not end", what)
		}
	})
	t.Cleanup(stop)
	return stop
}

// client is an operator's connection to one coordinator.
type client struct {
	api.OperatorClient
	registry api.RegistryClient
	lab      *lab
	stop     func() // ends the coordinator
}

// start runs coordinator number i, 0 or 1, and waits until it serves; it leads
// when no other does.
func (l *lab) start(i int) *client {
	l.t.Helper()
	c, err := coordinator.New(coordinator.Config{
		Listen: []string{l.address(i)}, Plaintext: true,
		State:      &coordinator.State{Store: l.store, Elector: coordinatortest.Candidate{Election: l.election, Address: l.address(i)}},
		Repository: l.repoConfig(), Timeouts: l.timeouts, NodeLeaseTTL: l.leaseTTL,
		ShutdownGrace: time.Second, Logger: l.logger().Named(fmt.Sprintf("c%d", i)),
	})
	if err != nil {
		l.t.Fatal(err)
	}
	stop := run(l.t, fmt.Sprintf("coordinator %d", i), c.Run)
	l.await("coordinator listens", func() bool { return len(c.Addresses()) == 1 })
	cl := dial(l.t, l.address(i))
	cl.lab, cl.stop = l, stop
	return cl
}

func dial(t *testing.T, address string) *client {
	t.Helper()
	conn, err := grpc.NewClient(address, append(faultgrpc.DialOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &client{OperatorClient: api.NewOperatorClient(conn), registry: api.NewRegistryClient(conn)}
}

// ready is start that waits until it leads and all nodes have registered.
func (l *lab) ready(i int) *client {
	l.t.Helper()
	c := l.start(i)
	c.awaitNodes()
	return c
}

// awaitNodes waits until the coordinator leads and all nodes have registered.
func (c *client) awaitNodes() {
	c.lab.t.Helper()
	c.lab.await("the coordinator leads", func() bool {
		_, err := c.DeleteCluster(c.lab.t.Context(), &api.DeleteClusterRequest{Name: "nobody"})
		return fault.ClassOf(err) == fault.NotFound
	})
	c.lab.await("all nodes are registered", func() bool { return c.alive() == len(c.lab.agents) })
}

func (c *client) alive() int {
	reply, err := c.ListNodes(c.lab.t.Context(), &api.ListNodesRequest{})
	if err != nil {
		return -1
	}
	n := 0
	for _, node := range reply.GetNodes() {
		if node.GetAlive() {
			n++
		}
	}
	return n
}

// await polls until cond holds.
func (l *lab) await(what string, cond func() bool) {
	l.t.Helper()
	await(l.t, what, cond)
}

func await(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("waited %s in vain: %s", patience, what)
		}
		<-time.After(5 * time.Millisecond)
	}
}

// specOf is a cluster of guests with 16 MiB each.
func specOf(name string, guests ...string) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, "name: %s\nnetworks:\n  - name: lan\ndefaults:\n  memory: 16MiB\n  kernel: /boot/vmlinuz\n  nics:\n    - network: lan\nguests:\n", name)
	for _, g := range guests {
		fmt.Fprintf(&b, "  - name: %s\n", g)
	}
	return []byte(b.String())
}

func (c *client) create(name string, guests ...string) {
	c.lab.t.Helper()
	if _, err := c.CreateCluster(c.lab.t.Context(), &api.CreateClusterRequest{SpecYaml: specOf(name, guests...)}); err != nil {
		c.lab.t.Fatal(err)
	}
}

// follow reads a call's events to the end and returns the last one.
func follow(stream grpc.ServerStreamingClient[api.Event], err error) (*api.Event, error) {
	if err != nil {
		return nil, err
	}
	var last *api.Event
	for {
		e, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			if last.GetResult() == nil {
				return nil, errors.New("no result")
			}
			return last, nil
		}
		if err != nil {
			return nil, err
		}
		last = e
	}
}

func (c *client) startCluster(name string) (*api.Cluster, error) {
	e, err := follow(c.StartCluster(c.lab.t.Context(), &api.StartClusterRequest{Name: name}))
	return e.GetCluster(), err
}

func (c *client) stopCluster(name string) (*api.Cluster, error) {
	e, err := follow(c.StopCluster(c.lab.t.Context(), &api.StopClusterRequest{Name: name}))
	return e.GetCluster(), err
}

func (c *client) checkpoint(name string) (*api.Checkpoint, error) {
	return c.checkpointCtx(c.lab.t.Context(), name)
}

func (c *client) checkpointCtx(ctx context.Context, name string) (*api.Checkpoint, error) {
	e, err := follow(c.TakeCheckpoint(ctx, &api.CheckpointRequest{Cluster: name, Label: "test"}))
	return e.GetCheckpoint(), err
}

func (c *client) restart(req *api.RestartRequest) (*api.RestartReport, error) {
	e, err := follow(c.Restart(c.lab.t.Context(), req))
	return e.GetRestart(), err
}

// running makes a cluster and starts it.
func (c *client) running(name string, guests ...string) {
	c.lab.t.Helper()
	c.create(name, guests...)
	if _, err := c.startCluster(name); err != nil {
		c.lab.t.Fatal(err)
	}
}

// mustCheckpoint takes a checkpoint that must succeed.
func (c *client) mustCheckpoint(name string) *api.Checkpoint {
	c.lab.t.Helper()
	done, err := c.checkpoint(name)
	if err != nil {
		c.lab.t.Fatal(err)
	}
	return done
}

func (c *client) state(name string) api.ClusterState {
	got, err := c.GetCluster(c.lab.t.Context(), &api.GetClusterRequest{Name: name})
	if err != nil {
		return api.ClusterState_CLUSTER_STATE_UNSPECIFIED
	}
	return got.GetState()
}

// wantState fails unless the cluster rests in the state, with this in its reason.
func (c *client) wantState(name string, want api.ClusterState, reason string) {
	c.lab.t.Helper()
	got, err := c.GetCluster(c.lab.t.Context(), &api.GetClusterRequest{Name: name})
	if err != nil {
		c.lab.t.Fatal(err)
	}
	if got.GetState() != want || !strings.Contains(got.GetReason(), reason) {
		c.lab.t.Errorf("cluster %s is %v because of %q, want %v because of %q", name, got.GetState(), got.GetReason(), want, reason)
	}
}

// wantFault fails unless err has the class and says this.
func wantFault(t *testing.T, err error, class fault.Class, texts ...string) {
	t.Helper()
	if fault.ClassOf(err) != class {
		t.Errorf("error %v of class %v, want class %v", err, fault.ClassOf(err), class)
		return
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("error %q does not say %q", err, text)
		}
	}
}

// guests lists the cluster's guests over all nodes, as NODE/GUEST.
func (l *lab) guests(cluster string) []string {
	var all []string
	for name, a := range l.agents {
		for _, g := range a.Guests(cluster) {
			all = append(all, name+"/"+g)
		}
	}
	slices.Sort(all)
	return all
}

func (l *lab) runningGuests(cluster string) int {
	n := 0
	for _, a := range l.agents {
		n += len(a.Running(cluster))
	}
	return n
}

// memory returns the memory of a guest, wherever it is.
func (l *lab) memory(cluster, guest string) []byte {
	l.t.Helper()
	_, m := l.find(cluster, guest)
	return m
}

func (l *lab) find(cluster, guest string) (*coordinatortest.Agent, []byte) {
	l.t.Helper()
	for _, a := range l.agents {
		if m := a.Memory(cluster, guest); m != nil {
			return a, m
		}
	}
	l.t.Fatalf("guest %s of %s is nowhere", guest, cluster)
	return nil, nil
}

// touch writes into a guest's memory, wherever it is.
func (l *lab) touch(cluster, guest string, b byte) {
	l.t.Helper()
	a, _ := l.find(cluster, guest)
	a.Write(cluster, guest, 0, []byte{b})
}

// committed lists the epochs of a cluster that have a checkpoint.
func (l *lab) committed(cluster string) []uint64 {
	l.t.Helper()
	entries, err := l.repo.Checkpoints(l.t.Context(), cluster)
	if err != nil {
		l.t.Fatal(err)
	}
	var epochs []uint64
	for _, e := range entries {
		epochs = append(epochs, e.Epoch)
	}
	return epochs
}

// testLogger logs through t while the test runs.
func testLogger(t *testing.T) hclog.Logger {
	w := &testWriter{t: t}
	t.Cleanup(w.end)
	return hclog.New(&hclog.LoggerOptions{Level: hclog.Debug, Output: w, DisableTime: true})
}

type testWriter struct {
	mu    sync.Mutex
	t     *testing.T // guarded by mu
	ended bool       // guarded by mu
}

func (w *testWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.ended {
		w.t.Logf("%s", strings.TrimSpace(string(p)))
	}
	return len(p), nil
}

func (w *testWriter) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = true
}
