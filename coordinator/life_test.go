package coordinator_test

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"fermata/coordinator/coordinatortest"
	"fermata/protocol/api"
	"fermata/protocol/fault"
)

const (
	stopped = api.ClusterState_CLUSTER_STATE_STOPPED
	up      = api.ClusterState_CLUSTER_STATE_RUNNING
	broken  = api.ClusterState_CLUSTER_STATE_BROKEN
)

func TestStart_MakesAndReleasesGuestsOnAllNodes(t *testing.T) {
	l := newLab(t, "n1", "n2")
	c := l.ready(0)
	c.create("web", "a", "b", "c")
	c.wantState("web", stopped, "")
	got, err := c.startCluster("web")
	if err != nil {
		t.Fatal(err)
	}
	if got.GetState() != up || len(got.GetGuests()) != 3 {
		t.Fatalf("started cluster: %v", got)
	}
	for _, g := range got.GetGuests() {
		if g.GetState() != api.GuestState_GUEST_STATE_RUNNING || g.GetNode() == "" {
			t.Errorf("guest %v, want it running on a node", g)
		}
	}
	if l.runningGuests("web") != 3 {
		t.Errorf("%v run, want three guests", l.guests("web"))
	}
	if got := l.agents["n1"].Peers("web"); !slices.Equal(got, []string{"n2"}) {
		t.Errorf("peers of n1 are %v, want n2", got)
	}
	if got := l.agents["n1"].PeerCards("web") + l.agents["n2"].PeerCards("web"); got != 3 {
		t.Errorf("agents know of %d cards on other nodes, want one of each guest", got)
	}
	_, err = c.startCluster("web")
	wantFault(t, err, fault.Busy, "cluster web is running")

	if got, err = c.stopCluster("web"); err != nil || got.GetState() != stopped {
		t.Fatalf("stop: %v, %v", got, err)
	}
	if guests := l.guests("web"); len(guests) != 0 {
		t.Errorf("%v are left after the stop", guests)
	}
	if _, err := c.DeleteCluster(t.Context(), &api.DeleteClusterRequest{Name: "web"}); err != nil {
		t.Fatal(err)
	}
	_, err = c.GetCluster(t.Context(), &api.GetClusterRequest{Name: "web"})
	wantFault(t, err, fault.NotFound, "web")
}

// Whatever goes wrong while a cluster starts: no guest is left, the cluster is
// stopped, the error says where and why, and the next start works.
func TestStart_FailureLeavesNothing(t *testing.T) {
	for _, tc := range []struct {
		name  string
		call  coordinatortest.Call
		fault coordinatortest.Fault
		class fault.Class
		texts []string
	}{
		{"create refused", coordinatortest.Create, coordinatortest.Refuse(fault.NoSpace, "tmpfs is full"), fault.NoSpace, []string{"create-guests", "node n2", "tmpfs is full"}},
		{"create hangs", coordinatortest.Create, coordinatortest.Hang(), fault.Unknown, []string{"create-guests", "node n2", "no answer in time"}},
		{"create done, then silence", coordinatortest.Create, coordinatortest.HangAfter(), fault.Unknown, []string{"create-guests", "node n2"}},
		{"release refused", coordinatortest.Release, coordinatortest.Refuse(fault.Internal, "QEMU said no"), fault.Internal, []string{"release-guests", "node n2", "QEMU said no"}},
		{"release hangs", coordinatortest.Release, coordinatortest.Hang(), fault.Unknown, []string{"release-guests", "node n2"}},
		{"clean-up before refused", coordinatortest.Destroy, coordinatortest.Refuse(fault.Internal, "stuck"), fault.Internal, []string{"destroy-guests", "node n2", "stuck"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newLab(t, "n1", "n2")
			l.timeouts = quick()
			c := l.ready(0)
			c.create("web", "a", "b")
			l.agents["n2"].Inject(tc.call, tc.fault)
			_, err := c.startCluster("web")
			wantFault(t, err, tc.class, tc.texts...)
			if guests := l.guests("web"); len(guests) != 0 {
				t.Errorf("%v are left", guests)
			}
			c.wantState("web", stopped, tc.texts[0])
			if _, err := c.startCluster("web"); err != nil {
				t.Errorf("next start: %v", err)
			}
			if l.runningGuests("web") != 2 {
				t.Errorf("%d guests run, want 2", l.runningGuests("web"))
			}
		})
	}
}

func TestStart_LostAnswersAreAskedAgain(t *testing.T) {
	l := newLab(t, "n1", "n2")
	c := l.ready(0)
	c.create("web", "a", "b")
	for _, call := range []coordinatortest.Call{coordinatortest.Create, coordinatortest.Release, coordinatortest.Destroy} {
		l.agents["n1"].Inject(call, coordinatortest.LoseAnswer())
		l.agents["n2"].Inject(call, coordinatortest.LoseRequest())
	}
	if _, err := c.startCluster("web"); err != nil {
		t.Fatal(err)
	}
	if l.runningGuests("web") != 2 {
		t.Errorf("%d guests run, want 2", l.runningGuests("web"))
	}
}

func TestStart_UndoFailsToo(t *testing.T) {
	l := newLab(t, "n1", "n2")
	c := l.ready(0)
	c.create("web", "a", "b")
	n2 := l.agents["n2"]
	n2.Inject(coordinatortest.Release, coordinatortest.Refuse(fault.Internal, "QEMU said no"))
	// The first destroy is the clean-up before the start.
	n2.Inject(coordinatortest.Destroy, func(_ context.Context, work func() error) error { return work() })
	n2.Inject(coordinatortest.Destroy, coordinatortest.Refuse(fault.Internal, "process does not die"))
	_, err := c.startCluster("web")
	wantFault(t, err, fault.Internal, "QEMU said no", "process does not die")
	c.wantState("web", broken, "process does not die")
	_, err = c.DeleteCluster(t.Context(), &api.DeleteClusterRequest{Name: "web"})
	wantFault(t, err, fault.Busy, "still on node n2")
	if _, err := c.stopCluster("web"); err != nil {
		t.Fatalf("stop mends a broken cluster: %v", err)
	}
	c.wantState("web", stopped, "")
}

func TestStart_CancelEndsTheGuests(t *testing.T) {
	l := newLab(t, "n1", "n2")
	c := l.ready(0)
	c.create("web", "a", "b")
	arrived, never := make(chan struct{}), make(chan struct{})
	l.agents["n2"].Inject(coordinatortest.Create, coordinatortest.Park(arrived, never))
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-arrived; cancel() }()
	if _, err := follow(c.StartCluster(ctx, &api.StartClusterRequest{Name: "web"})); err == nil {
		t.Fatal("a cancelled start succeeded")
	}
	l.await("the cluster is stopped", func() bool { return c.state("web") == stopped })
	c.wantState("web", stopped, "cancelled")
	if guests := l.guests("web"); len(guests) != 0 {
		t.Errorf("%v are left", guests)
	}
}

func TestStart_TooLittleMemoryTouchesNothing(t *testing.T) {
	l := newLab(t, "n1", "n2")
	c := l.ready(0)
	c.create("web", strings.Split("abcdefghi", "")...) // 9 × 16 MiB into 2 × 64 MiB
	_, err := c.startCluster("web")
	wantFault(t, err, fault.NoSpace, "guest i needs", "no node has more", "n1")
	if n := l.agents["n1"].Calls(coordinatortest.Create) + l.agents["n1"].Calls(coordinatortest.Destroy); n != 0 {
		t.Errorf("%d calls were made on n1, want none", n)
	}
	c.wantState("web", stopped, "")
}

func TestOperations_OneAClusterAtATime(t *testing.T) {
	l := newLab(t, "n1")
	c := l.ready(0)
	c.create("web", "a")
	c.create("db", "a")
	arrived, release := make(chan struct{}), make(chan struct{})
	l.agents["n1"].Inject(coordinatortest.Create, coordinatortest.Park(arrived, release))
	started := make(chan error, 1)
	go func() {
		_, err := c.startCluster("web")
		started <- err
	}()
	<-arrived
	_, err := c.stopCluster("web")
	wantFault(t, err, fault.Busy, "stop of cluster web", "start is in progress")
	_, err = c.checkpoint("web")
	wantFault(t, err, fault.Busy, "start is in progress")
	if _, err := c.startCluster("db"); err != nil {
		t.Errorf("another cluster is not concerned: %v", err)
	}
	close(release)
	if err := <-started; err != nil {
		t.Fatal(err)
	}
}

func TestStop_UnreachableNode(t *testing.T) {
	l := newLab(t, "n1", "n2")
	l.timeouts = quick()
	c := l.ready(0)
	c.running("web", "a", "b")
	l.agents["n2"].Inject(coordinatortest.Destroy, coordinatortest.Hang())
	_, err := c.stopCluster("web")
	wantFault(t, err, fault.Unknown, "destroy-guests", "node n2", "no answer in time")
	c.wantState("web", broken, "node n2")
	if _, err := c.stopCluster("web"); err != nil {
		t.Fatal(err)
	}
	c.wantState("web", stopped, "")
}

func TestShow_NodeThatDoesNotAnswer(t *testing.T) {
	l := newLab(t, "n1", "n2")
	l.timeouts = quick()
	c := l.ready(0)
	c.running("web", "a", "b")
	l.agents["n2"].Inject(coordinatortest.Describe, coordinatortest.Hang())
	got, err := c.GetCluster(t.Context(), &api.GetClusterRequest{Name: "web"})
	if err != nil {
		t.Fatal(err)
	}
	states := map[string]api.GuestState{}
	for _, g := range got.GetGuests() {
		states[g.GetNode()] = g.GetState()
	}
	if states["n1"] != api.GuestState_GUEST_STATE_RUNNING || states["n2"] != api.GuestState_GUEST_STATE_UNKNOWN {
		t.Errorf("guests by node: %v, want n1 running and n2 unknown", states)
	}
}

func TestCreate_RefusesWhatMakesNoSense(t *testing.T) {
	l := newLab(t)
	c := l.start(0)
	for name, yaml := range map[string][]byte{
		"empty":         nil,
		"unknown key":   append(specOf("web", "a"), []byte("colour: red\n")...),
		"relative path": []byte(strings.Replace(string(specOf("web", "a")), "/boot/", "boot/", 1)),
		"too large":     make([]byte, 1<<20+1),
	} {
		_, err := c.CreateCluster(t.Context(), &api.CreateClusterRequest{SpecYaml: yaml})
		if fault.ClassOf(err) != fault.Invalid {
			t.Errorf("%s: %v, want class invalid", name, err)
		}
	}
	c.create("web", "a")
	_, err := c.CreateCluster(t.Context(), &api.CreateClusterRequest{SpecYaml: specOf("web", "b")})
	wantFault(t, err, fault.Exists, "web")
}

func TestConsole_IsHandedOn(t *testing.T) {
	l := newLab(t, "n1")
	c := l.ready(0)
	c.running("web", "a")
	stream, err := c.Console(t.Context(), &api.ConsoleRequest{Cluster: "web", Guest: "a", Offset: 6})
	if err != nil {
		t.Fatal(err)
	}
	chunk, err := stream.Recv()
	if err != nil || string(chunk.GetData()) != "a on n1\n" {
		t.Fatalf("console: %q, %v", chunk.GetData(), err)
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("after the end: %v", err)
	}
	stream, err = c.Console(t.Context(), &api.ConsoleRequest{Cluster: "web", Guest: "z"})
	if err == nil {
		_, err = stream.Recv()
	}
	wantFault(t, err, fault.NotFound, "guest z")
}

// traced returns the cards that a trace tells of, sorted, when it has ended.
func (c *client) traced(cluster, network string) (cards []string, err error) {
	stream, err := c.Trace(c.lab.t.Context(), &api.TraceRequest{Cluster: cluster, Network: network})
	for err == nil {
		var chunk *api.TraceChunk
		if chunk, err = stream.Recv(); errors.Is(err, io.EOF) {
			slices.Sort(cards)
			return cards, nil
		}
		for _, f := range chunk.GetFrames() {
			cards = append(cards, f.GetGuest()+" "+f.GetNic())
		}
	}
	return nil, err
}

func TestTrace_IsOfAllNodes(t *testing.T) {
	l := newLab(t, "n1", "n2")
	c := l.ready(0)
	c.running("web", "a", "b")
	got, err := c.traced("web", "lan")
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"on n1 lan", "on n2 lan"}; !slices.Equal(got, want) {
		t.Errorf("traced %q, want %q", got, want)
	}
	_, err = c.traced("web", "wan")
	wantFault(t, err, fault.NotFound, "network wan")
}

func TestRegister(t *testing.T) {
	l := newLab(t, "n1")
	l.leaseTTL = time.Second
	c := l.ready(0)
	for name, info := range map[string]*api.NodeInfo{
		"no name":    {Address: "127.0.0.1:1", FabricAddress: "127.0.0.1:1"},
		"no address": {Name: "x", FabricAddress: "127.0.0.1:1"},
		"no fabric":  {Name: "x", Address: "127.0.0.1:1"},
	} {
		if _, err := c.registry.Register(t.Context(), &api.RegisterRequest{Node: info}); fault.ClassOf(err) != fault.Invalid {
			t.Errorf("%s: %v, want class invalid", name, err)
		}
	}
	before, err := c.GetNode(t.Context(), &api.GetNodeRequest{Name: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	l.agents["n1"].Restarted()
	l.await("the new incarnation is seen", func() bool {
		reply, err := c.ListNodes(t.Context(), &api.ListNodesRequest{})
		return err == nil && reply.GetNodes()[0].GetIncarnation() != before.GetIncarnation()
	})
	// A node that says nothing is not alive when its lease has run out.
	if _, err := c.registry.Register(t.Context(), &api.RegisterRequest{Node: &api.NodeInfo{Name: "gone", Address: "127.0.0.1:1", FabricAddress: "127.0.0.1:1"}}); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	l.await("the lease has run out", func() bool {
		info, err := c.GetNode(t.Context(), &api.GetNodeRequest{Name: "gone"})
		return err == nil && !info.GetAlive()
	})
	if took := time.Since(begun); took < 500*time.Millisecond {
		t.Errorf("the lease lasted %s, want a second", took)
	}
}

func TestListClusters(t *testing.T) {
	l := newLab(t, "n1")
	c := l.ready(0)
	c.create("db", "a")
	c.running("web", "a", "b")
	reply, err := c.ListClusters(t.Context(), &api.ListClustersRequest{})
	if err != nil || len(reply.GetClusters()) != 2 {
		t.Fatalf("%v, %v", reply, err)
	}
	db, web := reply.GetClusters()[0], reply.GetClusters()[1]
	if db.GetState() != stopped || db.GetGuests()[0].GetState() != api.GuestState_GUEST_STATE_ABSENT {
		t.Errorf("db: %v", db)
	}
	if web.GetState() != up || len(web.GetGuests()) != 2 || web.GetGuests()[1].GetState() != api.GuestState_GUEST_STATE_RUNNING {
		t.Errorf("web: %v", web)
	}
}

// A cluster that is started while nodes still register, as after a loss of power, waits
// for them.
func TestStart_WaitsForNodesThatRegister(t *testing.T) {
	l := newLab(t)
	c := l.ready(0)
	c.create("web", "a")
	started := make(chan error, 1)
	go func() {
		_, err := c.startCluster("web")
		started <- err
	}()
	select {
	case err := <-started:
		t.Fatalf("start without a node: %v", err)
	case <-time.After(300 * time.Millisecond): // it waits
	}
	l.addAgent("n1")
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	if l.runningGuests("web") != 1 {
		t.Errorf("%v run", l.guests("web"))
	}
}
