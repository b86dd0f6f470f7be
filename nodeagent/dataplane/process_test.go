package dataplane

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"golang.org/x/sys/unix"

	"fermata/nodeagent/fabric"
)

// traffic has a guest send to another until stop, which waits until all has come.
func traffic(t *testing.T, from, to *card) (stop func()) {
	t.Helper()
	quit, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-quit:
				return
			default:
				from.send(to.id)
			}
		}
	}()
	return func() {
		t.Helper()
		close(quit)
		<-ended
		await(t, "the last frame", func() bool {
			got := to.got()
			return len(got) > 0 && got[len(got)-1] == from.sent
		})
	}
}

// checkOnce checks that no frame came twice or out of order, and returns how many did
// not come.
func checkOnce(t *testing.T, to *card) (missing int) {
	t.Helper()
	var newest uint64
	for _, n := range to.got() {
		if n <= newest {
			t.Fatalf("frame %d came after frame %d: doubled or reordered", n, newest)
		}
		missing += int(n - newest - 1)
		newest = n
	}
	return missing
}

// TestProcess_AgentsComeAndGo replaces the agents of both nodes ten times under traffic,
// and no frame notices.
func TestProcess_AgentsComeAndGo(t *testing.T) {
	n1, n2 := newProcessNode(t, "n1"), newProcessNode(t, "n2")
	cards := cluster(t, &n1.planeNode, &n2.planeNode)
	first := n2.client.Incarnation()
	stop := traffic(t, cards[0], cards[1])
	for range 10 {
		for _, n := range []*processNode{n1, n2} {
			before := len(cards[1].got())
			await(t, "traffic", func() bool { return len(cards[1].got()) > before+200 })
			n.restart()
			// What an agent says of a cluster that it finds in its journal changes nothing.
			must(t, n.plane.ContinueCluster(testCluster, 1, 1))
			must(t, n.plane.SetPeers(testCluster, peersOf([]*planeNode{&n1.planeNode, &n2.planeNode})))
		}
	}
	stop()
	if missing := checkOnce(t, cards[1]); missing != 0 {
		t.Errorf("%d of %d frames lost", missing, cards[0].sent)
	}
	if now := n2.client.Incarnation(); now != first {
		t.Errorf("the process is another: %s, was %s", now, first)
	}
}

// TestProcess_KeepsColoursAndInjectedFrames: what a guest sends after its agent has
// started again is still held back from the outside, and a restart's recorded frames
// are still there.
func TestProcess_KeepsColoursAndInjectedFrames(t *testing.T) {
	n := newProcessNode(t, "n1")
	cards := cluster(t, &n.planeNode)
	restored := newCard(t, 2, false)
	must(t, restored.join(&n.planeNode, true))
	must(t, n.plane.Inject(testCluster, nicOf(2), [][]byte{frameTo(9, 2, 1), frameTo(9, 2, 2)}))
	must(t, n.plane.BeginCut(testCluster, 2, []string{"n1"}, time.Second))
	for id := 1; id <= 2; id++ {
		gate(t, n.plane, testCluster, guestName(id), time.Minute)
		must(t, n.plane.PassCut(t.Context(), testCluster, 2, guestName(id)))
	}
	must(t, n.plane.SendMarkers(testCluster, 2))
	n.plane.EndCut(testCluster, 2)
	must(t, n.plane.Ungate(testCluster, guestName(1)))
	n.restart()
	if !portOf(t, &n.planeNode, 2).Gated {
		t.Error("the gate of a guest that was not released is open")
	}
	if s, err := n.plane.ClusterStats(testCluster); err != nil || s.Epoch != 2 {
		t.Errorf("epoch %d, %v, want 2", s.Epoch, err)
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	must(t, err)
	outside := os.NewFile(uintptr(fds[1]), "outside")
	defer outside.Close()
	must(t, n.plane.AttachUplink(fabric.UplinkConfig{
		Cluster: testCluster, Network: "net", Outside: fabric.OutsideHold, Device: os.NewFile(uintptr(fds[0]), "uplink"),
	}))
	n.plane.Durable(testCluster, 2)
	cards[0].send(99)
	await(t, "the frame at the uplink", func() bool {
		s, err := n.plane.ClusterStats(testCluster)
		return err == nil && s.Uplinks[0].Waiting == 1 && s.Uplinks[0].Sent == 0
	})
	must(t, n.plane.Ungate(testCluster, guestName(2)))
	await(t, "the injected frames", func() bool { return len(restored.got()) >= 2 })
	if got := restored.got(); !slices.Equal(got[:2], []uint64{1, 2}) {
		t.Errorf("received %v, want the injected frames first", got)
	}
}

// TestProcess_EndsWhatADeadAgentHadBegun: gates that it had closed for a cut open, so
// that its guests have their network while no agent runs.
func TestProcess_EndsWhatADeadAgentHadBegun(t *testing.T) {
	n := newProcessNode(t, "n1")
	cards := cluster(t, &n.planeNode)
	other := newCard(t, 2, false)
	must(t, other.join(&n.planeNode, false))
	unreleased := newCard(t, 3, false)
	must(t, unreleased.join(&n.planeNode, true))
	must(t, n.plane.BeginCut(testCluster, 2, []string{"n1"}, time.Minute))
	gate(t, n.plane, testCluster, guestName(1), time.Minute)
	must(t, n.plane.PassCut(t.Context(), testCluster, 2, guestName(1)))
	gate(t, n.plane, testCluster, guestName(2), time.Minute)
	cards[0].send(2) // early, and at a closed gate
	await(t, "the frame at the gate", func() bool { return portOf(t, &n.planeNode, 2).Waiting == 1 })

	n.client.Close()
	await(t, "the frame", func() bool { return len(other.got()) == 1 })
	n.connect()
	if portOf(t, &n.planeNode, 2).Gated || !portOf(t, &n.planeNode, 3).Gated {
		t.Error("the wrong gates are open")
	}
	if err := n.plane.SendMarkers(testCluster, 2); err == nil {
		t.Error("the dead agent's cut is still open")
	}
	must(t, n.plane.BeginCut(testCluster, 3, []string{"n1"}, time.Minute))
}

// TestProcess_IsReplacedWhenItDies kills the process under traffic. No frame comes
// twice, and calls say that it has gone until there is another.
func TestProcess_IsReplacedWhenItDies(t *testing.T) {
	n1, n2 := newProcessNode(t, "n1"), newProcessNode(t, "n2")
	cards := cluster(t, &n1.planeNode, &n2.planeNode)
	stop := traffic(t, cards[0], cards[1])
	for range 5 {
		before := len(cards[1].got())
		await(t, "traffic", func() bool { return len(cards[1].got()) > before+200 })
		old, lost := n2.client.Incarnation(), n2.client.Lost()
		must(t, syscall.Kill(n2.client.PID(), syscall.SIGKILL))
		select {
		case <-lost:
		case <-time.After(testBudget):
			t.Fatal("nobody says that the process has gone")
		}
		mustBe(t, n2.plane.ContinueCluster(testCluster, 1, 1), fabric.ErrClosed)
		must(t, n2.client.Connect(t.Context()))
		if now := n2.client.Incarnation(); now == old {
			t.Errorf("incarnation %s again", now)
		}
		must(t, n2.plane.ContinueCluster(testCluster, 1, 1))
		must(t, n2.plane.SetPeers(testCluster, peersOf([]*planeNode{&n1.planeNode, &n2.planeNode})))
		must(t, cards[1].join(&n2.planeNode, false))
	}
	before := len(cards[1].got())
	await(t, "traffic", func() bool { return len(cards[1].got()) > before+200 })
	stop()
	missing := checkOnce(t, cards[1])
	t.Logf("%d of %d frames lost by 5 deaths of the process", missing, cards[0].sent)
}

// TestProcess_SignalsOfAnAgentSpareIt sends what a terminal or a service manager sends
// to the agent's group.
func TestProcess_SignalsOfAnAgentSpareIt(t *testing.T) {
	n := newProcessNode(t, "n1")
	pid := n.client.PID()
	if sid, err := unix.Getsid(pid); err != nil || sid != pid {
		t.Errorf("session %d of process %d, %v: want one of its own", sid, pid, err)
	}
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE} {
		must(t, syscall.Kill(pid, sig))
	}
	n.restart()
	if now := n.client.PID(); now != pid {
		t.Errorf("process %d answers, was %d", now, pid)
	}
}

// TestProcess_OneAgentAtATime: an agent that hangs, and goes on after another has
// begun, cannot do anything any more.
func TestProcess_OneAgentAtATime(t *testing.T) {
	n := newProcessNode(t, "n1")
	cluster(t, &n.planeNode)
	old := n.client
	gate(t, old, testCluster, guestName(1), time.Minute)
	n.connect()
	<-old.Lost()
	mustBe(t, old.Ungate(testCluster, guestName(1)), fabric.ErrClosed)
	mustBe(t, old.RemoveCluster(testCluster), fabric.ErrClosed)
	if portOf(t, &n.planeNode, 1).Gated {
		t.Error("the gate that the old agent had closed is still closed")
	}
}

func TestProcess_OtherSettingsReplaceIt(t *testing.T) {
	n := newProcessNode(t, "n1")
	cluster(t, &n.planeNode)
	old := n.client.PID()
	n.cfg.Settings.LogLevel, n.cfg.Settings.FrameBytes = "warn", 64<<20
	n.restart()
	if n.client.PID() != old {
		t.Fatal("another level of the log, and another bound on memory, cost a process with frames in it")
	}
	n.cfg.Settings.Listen = freeAddress(t)
	n.restart()
	if n.client.PID() == old {
		t.Fatal("the process goes on with its old settings")
	}
	if lives, err := n.plane.Lives(); err != nil || len(lives) != 0 {
		t.Errorf("lives %v, %v of a new process", lives, err)
	}
	if err := syscall.Kill(old, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("process %d: %v, should have ended", old, err)
	}
}

// TestProcess_SaysWhyItCannotStart: its reason reaches the agent.
func TestProcess_SaysWhyItCannotStart(t *testing.T) {
	n := newProcessNode(t, "n1")
	bad := n.cfg
	bad.Dir = t.TempDir()
	bad.Settings.Listen = "203.0.113.1:7" // of no interface: RFC 5737
	err := NewClient(bad).Connect(t.Context())
	if !errors.Is(err, unix.EADDRNOTAVAIL) && (err == nil || !contains(err, "203.0.113.1:7")) {
		t.Errorf("error %v does not name the address", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), testBudget)
	defer cancel()
	must(t, endProcess(ctx, filepath.Join(bad.Dir, socketName)))
	bad.Command = []string{"/bin/false"}
	if err := NewClient(bad).Connect(t.Context()); err == nil {
		t.Error("a command that ends at once was taken for a data plane")
	}
}

// served is a server in the test's own process.
func served(t *testing.T, change func(*Server)) (socket string, ended <-chan error) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	must(t, err)
	l.SetUnlinkOnClose(false)
	s, err := NewServer(l, hclog.NewNullLogger())
	must(t, err)
	s.lookEvery = 5 * time.Millisecond
	change(s)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		done <- s.Serve(ctx)
	}()
	t.Cleanup(func() { cancel(); <-gone })
	return socket, done
}

func settingsOf(t *testing.T) Settings {
	return Settings{Node: "n1", Listen: freeAddress(t), Plaintext: true, LogLevel: "error"}
}

// TestServer_EndsWhenNobodyNeedsIt: with an agent, or a guest that runs, it lives on.
func TestServer_EndsWhenNobodyNeedsIt(t *testing.T) {
	socket, ended := served(t, func(s *Server) { s.needlessFor = 20 * time.Millisecond })
	settings := settingsOf(t)
	a, err := begin(t.Context(), socket, settings)
	must(t, err)
	c := &Client{cfg: Config{Logger: hclog.NewNullLogger()}, present: a}
	must(t, c.ContinueCluster(testCluster, 1, 1))
	guest := exec.Command("sleep", "1000")
	must(t, guest.Start())
	must(t, c.Belongs(testCluster, guestName(1), guest.Process.Pid))
	c.Close()
	looks := time.After(200 * time.Millisecond) // many times what it takes without the guest
	select {
	case err := <-ended:
		t.Fatalf("ended (%v) while a guest ran", err)
	case <-looks:
	}
	must(t, guest.Process.Kill())
	_ = guest.Wait() // says that it was killed
	select {
	case err := <-ended:
		must(t, err)
	case <-time.After(testBudget):
		t.Fatal("does not end without agent and guest")
	}
}

// TestServer_EndsWithTheLastAgentOfNoCluster: there is nothing to keep for another.
func TestServer_EndsWithTheLastAgentOfNoCluster(t *testing.T) {
	socket, ended := served(t, func(s *Server) { s.needlessFor = time.Hour })
	a, err := begin(t.Context(), socket, settingsOf(t))
	must(t, err)
	a.drop()
	select {
	case err := <-ended:
		must(t, err)
	case <-time.After(testBudget):
		t.Fatal("does not end")
	}
}

// TestServer_EndsWithoutItsSocket: nobody would ever find it again.
func TestServer_EndsWithoutItsSocket(t *testing.T) {
	socket, ended := served(t, func(s *Server) { s.needlessFor = time.Hour })
	must(t, os.Remove(socket))
	select {
	case err := <-ended:
		must(t, err)
	case <-time.After(testBudget):
		t.Fatal("does not end")
	}
}

func TestServer_RefusesNonsense(t *testing.T) {
	socket, _ := served(t, func(s *Server) { s.needlessFor = time.Hour })
	settings := settingsOf(t)
	a, err := begin(t.Context(), socket, settings)
	must(t, err)
	defer a.drop()
	dial := func() *conn {
		t.Helper()
		u, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
		must(t, err)
		must(t, u.SetDeadline(time.Now().Add(testBudget)))
		return newConn(u)
	}
	for what, first := range map[string]request{
		"another version": {Op: opHello, Version: protocolVersion + 1},
		"no hello":        {Op: opRemove, Cluster: "c"},
		"another session": {Op: opHello, Version: protocolVersion, Session: "none"},
	} {
		c := dial()
		answer, _, err := exchange(t.Context(), c, first, nil)
		if err != nil || answer.Error == nil {
			t.Errorf("%s: %+v, %v", what, answer, err)
		}
		c.close()
	}
	// Bytes that are no message end the connection, and nothing else.
	huge := binary.LittleEndian.AppendUint32(nil, maxJSON+1)
	for what, b := range map[string][]byte{"a huge message": append(huge, 0, 0, 0, 0), "no JSON": {1, 0, 0, 0, 0, 0, 0, 0, '?'}} {
		c := dial()
		_, err := c.unix.Write(b)
		must(t, err)
		if _, err := c.read(&reply{}); err == nil {
			t.Errorf("%s was answered", what)
		}
		c.close()
	}
	c := &Client{cfg: Config{Logger: hclog.NewNullLogger()}, present: a}
	if _, _, err := c.call(t.Context(), request{Op: "nonsense"}, nil); !errors.Is(err, fabric.ErrMalformed) {
		t.Errorf("an unknown request: %v", err)
	}
	// Descriptors where none belong, and none where some do.
	null, err := os.Open(os.DevNull)
	must(t, err)
	defer null.Close()
	if _, _, err := c.call(t.Context(), request{Op: opJoin, Cluster: "c"}, nil, null); !errors.Is(err, fabric.ErrMalformed) {
		t.Errorf("half a socket pair: %v", err)
	}
	if _, _, err := c.call(t.Context(), request{Op: opLives}, nil, null); err != nil {
		t.Errorf("a descriptor that is not wanted: %v", err)
	}
	if lives, err := c.Lives(); err != nil || len(lives) != 0 {
		t.Errorf("lives %v, %v after all that", lives, err)
	}
}
