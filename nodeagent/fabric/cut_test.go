package fabric_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"fermata/nodeagent/fabric"
)

func TestCut_ExactUnderLoad(t *testing.T) {
	const cuts = 10
	for name, c := range map[string]struct {
		ring, life int
		tls, tight bool
	}{
		"roomy":           {ring: 0},
		"small rings":     {ring: 8},
		"tight queues":    {ring: 8, tight: true},
		"tight resets":    {ring: 8, tight: true, life: 80_000},
		"resets":          {ring: 64, life: 80_000},
		"resets with tls": {ring: 64, life: 100_000, tls: true},
	} {
		for _, kind := range cutKinds {
			t.Run(kind.name+", "+name, func(t *testing.T) {
				var change func(*fabric.Config)
				if c.tls {
					ca := newAuthority(t)
					change = func(cfg *fabric.Config) { ca.withTLS(cfg, cfg.Node) }
				}
				if c.tight {
					change = func(cfg *fabric.Config) { cfg.QueueBytes, cfg.LinkBytes = 8192, 8192 }
				}
				w := newWorld(t, 3, 2, c.ring, change)
				proxies := w.interpose()
				stop := w.traffic()
				defer stop()
				for _, p := range proxies {
					p.setLife(c.life)
					if c.life > 0 {
						p.reset()
					}
				}
				recorded, lossy := 0, 0
				resets := func() (n int) {
					for _, p := range proxies {
						n += p.resetCount()
					}
					return n
				}
				// What must happen for the test to prove anything, it waits for.
				unproven := func() bool {
					return lossy == 0 || c.life > 0 && resets() == 0 || kind.coloured && w.early() == 0
				}
				for epoch := uint64(2); epoch < 2+cuts || unproven() && epoch < 2+20*cuts; epoch++ {
					records, err := w.cut(epoch, kind.coloured, -1)
					if err != nil {
						t.Fatal(err)
					}
					inState := checkCut(t, epoch, records)
					recorded += inState
					if inState > 0 {
						lossy++ // the same cut without its channel state loses frames
					}
					if t.Failed() {
						return
					}
				}
				stop()
				w.awaitAll()
				w.checkNoPurge()
				t.Logf("%d frames recorded in %d cuts, %d connections ended, %d frames early", recorded, lossy, resets(), w.early())
				if unproven() {
					t.Error("no frame on the wire, no connection reset or no frame early: the test proves nothing")
				}
				if early := w.early(); !kind.coloured && early > 0 {
					t.Errorf("%d frames were ahead of their receivers at a barrier", early)
				}
			})
		}
	}
}

// Links that are slow, that pass nothing one way for a while, or that break in the
// middle of a cut make it longer, not wrong.
func TestCut_LinkFaults(t *testing.T) {
	for name, fault := range map[string]func(map[string]*proxy) (heal func()){
		"300 ms away": func(p map[string]*proxy) func() {
			p["n2"].setLag(300 * time.Millisecond)
			return func() { p["n2"].setLag(0) }
		},
		"nothing comes in for 3 s": func(p map[string]*proxy) func() {
			p["n2"].setShut(true)
			timer := time.AfterFunc(3*time.Second, func() { p["n2"].setShut(false) })
			return func() { timer.Stop(); p["n2"].setShut(false) }
		},
		"broken all the time": func(p map[string]*proxy) func() {
			done := make(chan struct{})
			var breaker sync.WaitGroup
			breaker.Go(func() {
				tick := time.NewTicker(3 * time.Millisecond)
				defer tick.Stop()
				for {
					select {
					case <-tick.C:
						p["n1"].reset()
						p["n2"].reset()
					case <-done:
						return
					}
				}
			})
			timer := time.AfterFunc(100*time.Millisecond, func() { close(done) })
			return func() {
				if timer.Stop() {
					close(done)
				}
				breaker.Wait()
			}
		},
	} {
		for _, kind := range cutKinds {
			t.Run(kind.name+", "+name, func(t *testing.T) {
				t.Parallel()
				w := newWorld(t, 3, 1, 64, nil)
				proxies := w.interpose()
				stop := w.traffic()
				defer stop()
				for epoch := uint64(2); epoch < 4; epoch++ {
					heal := fault(proxies)
					records, err := w.cut(epoch, kind.coloured, -1)
					heal()
					if err != nil {
						t.Fatal(err)
					}
					checkCut(t, epoch, records)
				}
				stop()
				w.awaitAll()
			})
		}
	}
}

// Rounds that some node gives up, at any step, harm neither the running guests
// nor the next cut.
func TestCut_AbortedRoundsDoNoHarm(t *testing.T) {
	for _, kind := range cutKinds {
		t.Run(kind.name, func(t *testing.T) { testAbortedRounds(t, kind.coloured) })
	}
}

func testAbortedRounds(t *testing.T, coloured bool) {
	w := newWorld(t, 3, 1, 16, nil)
	stop := w.traffic()
	defer stop()
	given := 0
	for epoch := uint64(2); epoch < 32; epoch++ {
		quitter := -1
		if epoch%2 == 0 {
			quitter = rand.IntN(len(w.nodes))
		}
		records, err := w.cut(epoch, coloured, quitter)
		switch {
		case quitter < 0 && err != nil:
			t.Fatalf("cut after an aborted one: %v", err)
		case quitter < 0:
			checkCut(t, epoch, records)
		case err == nil:
			t.Fatal("cut with a quitter succeeded")
		case errors.Is(err, errGivenUp):
			given++ // not run out of time before
		}
	}
	stop()
	w.awaitAll()
	if given == 0 {
		t.Error("no round was given up: the test proves nothing")
	}
}

// A cluster is put back from a cut: new nodes, new life, recorded frames first.
// The control puts the same cut back without its channel state, and loses frames.
func TestRestart_ChannelStateClosesTheGap(t *testing.T) {
	w := newWorld(t, 2, 2, 16, nil)
	// A link that is slow at the right moment has frames on it.
	proxies := w.interpose()
	w.chatter(50)
	w.awaitAll()
	proxies["n2"].setShut(true)
	for range 20 {
		w.guests()[0].send(everybody, 100)
		w.guests()[1].send(w.guests()[3].id, 100)
	}
	release := time.AfterFunc(20*time.Millisecond, func() { proxies["n2"].setShut(false) })
	defer release.Stop()
	records, err := w.cut(2, false, -1)
	if err != nil {
		t.Fatal(err)
	}
	if checkCut(t, 2, records) == 0 {
		t.Fatal("the cut has no frame on the wire")
	}
	w.chatter(50) // the life that a restart forgets
	w.awaitAll()
	for _, n := range w.nodes {
		n.stop()
	}

	again := newWorldFrom(t, records)
	for _, n := range again.nodes {
		for i, g := range n.guests {
			frames, err := fabric.DecodeFrames(fabric.EncodeFrames(records[g.id].channel))
			if err != nil {
				t.Fatal(err)
			}
			if err := n.ports[i].Inject(frames); err != nil {
				t.Fatal(err)
			}
		}
	}
	again.release()
	again.chatter(50)
	again.awaitAll()

	control := newWorldFrom(t, records)
	control.release()
	lost := 0
	due := dueByPair(points(records))
	for dst, d := range records {
		got := bySource(d.received)
		for src := range records {
			lost += len(due[pair{src, dst}]) - len(got[src])
		}
	}
	if lost == 0 {
		t.Error("nothing is lost without the channel state: the test proves nothing")
	}
}

// newWorldFrom makes guests as they were at their points, gated, two a node.
func newWorldFrom(t *testing.T, records map[int]record) *world {
	t.Helper()
	w := &world{t: t}
	for i := range 2 {
		w.nodes = append(w.nodes, newNode(t, fmt.Sprintf("m%d", i+1), nil))
	}
	for i, n := range w.nodes {
		n.create(100, w.peers())
		for id := 2*i + 1; id <= 2*i+2; id++ {
			g, _ := n.attach(id, 16, true)
			g.mu.Lock()
			g.received = append(g.received, records[id].received...)
			g.sent = append(g.sent, records[id].sent...)
			g.seq = uint64(len(g.sent))
			g.mu.Unlock()
		}
	}
	return w
}

func (w *world) release() {
	for _, n := range w.nodes {
		for _, p := range n.ports {
			p.Ungate()
		}
	}
}

// A frame of the new epoch that overtakes an older one on another link waits in
// the same queue, but is no channel state.
func TestCut_NewerFramesWaitAndAreNotRecorded(t *testing.T) {
	w := newWorld(t, 3, 1, 0, nil)
	a, b, c := w.nodes[0], w.nodes[1], w.nodes[2]
	slow := newProxy(t, b.addr) // between c and b
	for _, n := range w.nodes {
		peers := w.peers()
		if n == c {
			peers[1].Address = slow.addr()
		}
		if err := n.fabric.SetPeers(clusterName, peers); err != nil {
			t.Fatal(err)
		}
	}
	c.guests[0].send(b.guests[0].id, 60)
	b.guests[0].await("first frame", func(r []stamp) bool { return len(r) == 1 })
	slow.setShut(true)
	c.guests[0].send(b.guests[0].id, 61) // on the wire at the cut

	ctx := budget(t)
	for _, n := range w.nodes {
		must(t, n.fabric.BeginCut(clusterName, 2, w.members(), patience))
		must(t, n.ports[0].Gate())
		must(t, n.ports[0].Drain(ctx))
		n.guests[0].stop()
		must(t, n.recolour(ctx, 2, 0))
	}
	for _, n := range w.nodes {
		must(t, n.fabric.SendMarkers(clusterName, 2))
		must(t, n.fabric.SendMarkers(clusterName, 2)) // idempotent
	}
	must(t, a.fabric.WaitMarkers(ctx, clusterName, 2))
	a.guests[0].cont()
	a.ports[0].Ungate()
	a.guests[0].send(b.guests[0].id, 62) // sent after a's point
	awaitTrue(t, "newer frame held at b", func() bool { return b.ports[0].Stats().Waiting == 1 })

	if _, err := b.fabric.ChannelState(clusterName, 2); !errors.Is(err, fabric.ErrChannelsOpen) {
		t.Fatalf("channel state with an open channel: %v, want %v", err, fabric.ErrChannelsOpen)
	}
	short, cancel := context.WithTimeout(ctx, time.Millisecond)
	defer cancel()
	if err := b.fabric.WaitMarkers(short, clusterName, 2); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("wait for a marker that is held up: %v, want %v", err, context.DeadlineExceeded)
	}
	slow.setShut(false)
	must(t, b.fabric.WaitMarkers(ctx, clusterName, 2))
	for range 2 { // repeatable
		state, err := b.fabric.ChannelState(clusterName, 2)
		must(t, err)
		frames := state[b.ports[0].Key()]
		if len(frames) != 1 || len(frames[0]) != 61 {
			t.Fatalf("channel state of %d frames, want the one of 61 bytes", len(frames))
		}
	}
	if got := b.ports[0].Stats().Recorded; got != 1 {
		t.Errorf("recorded %d frames, want 1", got)
	}
	for _, n := range w.nodes[1:] {
		must(t, n.fabric.WaitMarkers(ctx, clusterName, 2))
		n.guests[0].cont()
		n.ports[0].Ungate()
	}
	for _, n := range w.nodes {
		n.fabric.EndCut(clusterName, 2)
		n.fabric.EndCut(clusterName, 2)
	}
	w.awaitAll()
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// A member that resumes without waiting makes the cut impossible elsewhere, and
// the fabric says so rather than record it.
func TestCut_OrphanIsRefused(t *testing.T) {
	w := newWorld(t, 2, 1, 0, nil)
	a, b := w.nodes[0], w.nodes[1]
	must(t, a.fabric.BeginCut(clusterName, 2, w.members(), patience))
	must(t, a.ports[0].Gate())
	a.guests[0].stop()
	must(t, a.recolour(budget(t), 2, 0))
	must(t, a.fabric.SendMarkers(clusterName, 2))
	a.resume(0) // gave up
	a.fabric.EndCut(clusterName, 2)
	a.guests[0].send(b.guests[0].id, 60)
	b.guests[0].await("frame of epoch 2", func(r []stamp) bool { return len(r) == 1 })

	must(t, b.fabric.BeginCut(clusterName, 2, w.members(), patience))
	must(t, b.ports[0].Gate())
	must(t, b.ports[0].Drain(budget(t)))
	b.guests[0].stop()
	if err := b.recolour(budget(t), 2, 0); !errors.Is(err, fabric.ErrOrphan) {
		t.Fatalf("cut of a guest with an orphan: %v, want %v", err, fabric.ErrOrphan)
	}
	if err := b.fabric.SendMarkers(clusterName, 2); !errors.Is(err, fabric.ErrNotCut) {
		t.Fatalf("markers with a guest not cut: %v, want %v", err, fabric.ErrNotCut)
	}
	b.resume(0)
	b.fabric.EndCut(clusterName, 2)

	records, err := w.cut(3, true, -1)
	must(t, err)
	checkCut(t, 3, records)
}

// A frame that has left the socket and waits in the reader's hands is in no
// queue yet: its sender must not pass its point.
func TestCut_FrameInTheReadersHandsIsWaitedFor(t *testing.T) {
	w := newWorld(t, 1, 2, 0, func(cfg *fabric.Config) { cfg.HoldBytes = 150 })
	n := w.nodes[0]
	a, b := n.guests[0], n.guests[1]
	must(t, n.fabric.BeginCut(clusterName, 2, w.members(), patience))
	for _, p := range n.ports {
		must(t, p.Gate())
		must(t, p.Drain(budget(t)))
	}
	a.send(b.id, 60)
	a.send(b.id, 60) // the hold queue takes one
	awaitTrue(t, "both frames received", func() bool { return n.ports[0].Stats().Received == 2 })
	a.stop()
	b.stop()
	must(t, n.recolour(budget(t), 2, 0))
	if got := n.ports[1].Stats().Waiting; got != 2 {
		t.Errorf("%d frames wait at the sender's point, want both", got)
	}
	must(t, n.recolour(budget(t), 2, 1))
	must(t, n.fabric.SendMarkers(clusterName, 2))
	state, err := n.fabric.ChannelState(clusterName, 2)
	must(t, err)
	if got := len(state[n.ports[1].Key()]); got != 2 {
		t.Errorf("channel state of %d frames, want 2", got)
	}
	n.fabric.EndCut(clusterName, 2)
	if got := clusterStats(t, n).Epoch; got != 2 {
		t.Errorf("cluster is in epoch %d after the cut, want 2", got)
	}
	if err := n.fabric.BeginCut(clusterName, 2, w.members(), patience); !errors.Is(err, fabric.ErrStale) {
		t.Errorf("second cut of an epoch: %v, want %v", err, fabric.ErrStale)
	}
}

func TestCut_ChecksItsPreconditions(t *testing.T) {
	w := newWorld(t, 2, 1, 0, nil)
	n := w.nodes[0]
	f, ctx := n.fabric, budget(t)
	want := func(what string, err, class error) {
		t.Helper()
		if !errors.Is(err, class) {
			t.Errorf("%s: %v, want %v", what, err, class)
		}
	}
	want("cut of an unknown cluster", f.BeginCut("nope", 2, nil, patience), fabric.ErrUnknownCluster)
	want("cut of the present epoch", f.BeginCut(clusterName, 1, w.members(), patience), fabric.ErrStale)
	if err := f.BeginCut(clusterName, 2, []string{"n1", "n2", "n9"}, patience); err == nil {
		t.Error("cut with an unknown member began")
	}
	if err := f.BeginCut(clusterName, 2, []string{"n1"}, patience); err == nil {
		t.Error("cut without a peer began")
	}
	if err := f.SendMarkers(clusterName, 2); err == nil {
		t.Error("markers without a cut were sent")
	}
	must(t, f.BeginCut(clusterName, 5, w.members(), patience))
	must(t, f.BeginCut(clusterName, 5, w.members(), patience))
	want("cut of an older epoch", f.BeginCut(clusterName, 4, w.members(), patience), fabric.ErrStale)
	want("markers of another epoch", f.SendMarkers(clusterName, 4), fabric.ErrStale)
	want("markers with a guest not cut", f.SendMarkers(clusterName, 5), fabric.ErrNotCut)
	want("guest cut in another epoch", n.recolour(ctx, 4, 0), fabric.ErrStale)
	want("guest cut with an open gate", n.recolour(ctx, 5, 0), fabric.ErrNotGated)

	// A newer cut ends the wait for an older one.
	waited := make(chan error, 1)
	go func() { waited <- f.WaitMarkers(ctx, clusterName, 5) }()
	must(t, f.BeginCut(clusterName, 6, w.members(), patience))
	want("wait for a replaced cut", <-waited, fabric.ErrStale)

	// So does the end of the cluster.
	go func() { waited <- f.WaitMarkers(ctx, clusterName, 6) }()
	must(t, f.RemoveCluster(clusterName))
	if err := <-waited; !errors.Is(err, fabric.ErrClosed) && !errors.Is(err, fabric.ErrUnknownCluster) {
		t.Errorf("wait for the cut of a removed cluster: %v", err)
	}
	must(t, f.RemoveCluster(clusterName))
}

// newWorldInCut makes three nodes with a guest each, which have begun the cut of epoch 2.
// All know where the second guest is.
func newWorldInCut(t *testing.T) *world {
	t.Helper()
	w := newWorld(t, 3, 1, 0, nil)
	w.nodes[1].guests[0].send(everybody, 60)
	w.awaitAll()
	for _, n := range w.nodes {
		must(t, n.fabric.BeginCut(clusterName, 2, w.members(), patience))
	}
	return w
}

// What a guest sends behind its point waits for a receiver that is before its own, and is
// in no record. What others have sent before their points passes it.
func TestCut_EarlyFramesWaitForTheirReceiver(t *testing.T) {
	w := newWorldInCut(t)
	a, b, c := w.nodes[0], w.nodes[1], w.nodes[2]
	a.cutGuest(t, 2)
	a.guests[0].send(b.guests[0].id, 60) // behind the cut
	awaitTrue(t, "newer frame waits at b", func() bool { return b.ports[0].Stats().Early == 1 })
	c.guests[0].send(b.guests[0].id, 61) // before it
	b.guests[0].await("the older frame", func(r []stamp) bool { return len(r) == 1 && r[0].size == 61 })
	must(t, b.ports[0].Gate())
	c.guests[0].send(b.guests[0].id, 62)
	awaitTrue(t, "another older frame waits at the gate", func() bool { return b.ports[0].Stats().Waiting == 2 })
	b.cutGuest(t, 2)
	b.guests[0].await("all frames, after the cut", func(r []stamp) bool { return len(r) == 3 })
	c.cutGuest(t, 2)
	for _, n := range w.nodes {
		must(t, n.fabric.SendMarkers(clusterName, 2))
	}
	for _, n := range w.nodes {
		must(t, n.fabric.WaitMarkers(budget(t), clusterName, 2))
		state, err := n.fabric.ChannelState(clusterName, 2)
		must(t, err)
		frames := state[n.ports[0].Key()]
		if n == b && (len(frames) != 1 || len(frames[0]) != 62) || n != b && len(frames) > 0 {
			t.Errorf("node %s has recorded %d frames, want the older one at the gate of n2 alone", n.name, len(frames))
		}
		n.fabric.EndCut(clusterName, 2)
	}
	w.awaitAll()
}

// What the writer takes off a queue at once ends where frames of behind the cut begin.
func TestCut_EarlyFramesWaitBehindOlderOnes(t *testing.T) {
	w := newWorldInCut(t)
	a, b, c := w.nodes[0], w.nodes[1], w.nodes[2]
	must(t, b.ports[0].Gate())
	waiting := func(want uint64) func() bool {
		return func() bool { return b.ports[0].Stats().Waiting == want }
	}
	c.guests[0].send(b.guests[0].id, 61)
	awaitTrue(t, "older frame waits", waiting(1))
	a.cutGuest(t, 2)
	a.guests[0].send(b.guests[0].id, 62)
	awaitTrue(t, "newer frame waits behind it", waiting(2))
	b.ports[0].Ungate()
	awaitTrue(t, "newer frame waits at the open gate", func() bool { return b.ports[0].Stats().Early == 1 })
	b.guests[0].await("the older frame", func(r []stamp) bool { return len(r) == 1 })
	if s := b.ports[0].Stats(); s.Waiting != 1 || s.Sent != 1 {
		t.Errorf("port sent %d frames and holds %d, want 1 and 1", s.Sent, s.Waiting)
	}
	b.cutGuest(t, 2)
	c.cutGuest(t, 2)
	for _, n := range w.nodes {
		n.fabric.EndCut(clusterName, 2)
	}
	w.awaitAll()
}

// What is still on a link when its receiver passes its point is delivered at once,
// and recorded.
func TestCut_OlderFramesAreRecordedWhileTheGuestRuns(t *testing.T) {
	w := newWorld(t, 2, 1, 0, nil)
	a, b := w.nodes[0], w.nodes[1]
	proxies := w.interpose()
	a.guests[0].send(b.guests[0].id, 60)
	b.guests[0].await("first frame", func(r []stamp) bool { return len(r) == 1 })
	proxies[b.name].setShut(true)
	a.guests[0].send(b.guests[0].id, 61)
	for _, n := range w.nodes {
		must(t, n.fabric.BeginCut(clusterName, 2, w.members(), patience))
	}
	b.cutGuest(t, 2)
	proxies[b.name].setShut(false)
	b.guests[0].await("frame of before the cut, after it", func(r []stamp) bool { return len(r) == 2 })
	a.cutGuest(t, 2)
	a.guests[0].send(b.guests[0].id, 62)
	b.guests[0].await("frame from behind the cut", func(r []stamp) bool { return len(r) == 3 })
	for _, n := range w.nodes {
		must(t, n.fabric.SendMarkers(clusterName, 2))
	}
	must(t, b.fabric.WaitMarkers(budget(t), clusterName, 2))
	for range 2 { // repeatable
		state, err := b.fabric.ChannelState(clusterName, 2)
		must(t, err)
		if frames := state[b.ports[0].Key()]; len(frames) != 1 || len(frames[0]) != 61 {
			t.Errorf("recorded %d frames, want the one of 61 bytes", len(frames))
		}
	}
	for _, n := range w.nodes {
		n.fabric.EndCut(clusterName, 2)
	}
	w.awaitAll()
}

// A cut that does not come in time holds up nobody for longer than its patience,
// and cannot be taken any more. The next one can.
func TestCut_PatienceEnds(t *testing.T) {
	w := newWorld(t, 2, 1, 0, nil)
	a, b := w.nodes[0], w.nodes[1]
	for _, n := range w.nodes {
		must(t, n.fabric.BeginCut(clusterName, 2, w.members(), 5*time.Millisecond))
	}
	a.cutGuest(t, 2)
	a.guests[0].send(b.guests[0].id, 60)
	b.guests[0].await("frame whose cut did not come", func(r []stamp) bool { return len(r) == 1 })
	if got := b.ports[0].Stats().Early; got != 1 {
		t.Errorf("%d frames were early, want 1", got)
	}
	must(t, b.ports[0].Gate())
	must(t, b.ports[0].Drain(budget(t)))
	b.guests[0].stop()
	if err := b.recolour(budget(t), 2, 0); !errors.Is(err, fabric.ErrOrphan) {
		t.Fatalf("cut of a guest with a frame from behind it: %v, want %v", err, fabric.ErrOrphan)
	}
	b.resume(0)
	for _, n := range w.nodes {
		n.fabric.EndCut(clusterName, 2)
	}
	records, err := w.cut(3, true, -1)
	must(t, err)
	checkCut(t, 3, records)
	w.awaitAll()
}

// The end of a cut lets go what waits for it.
func TestCut_EndDeliversEarlyFrames(t *testing.T) {
	w := newWorld(t, 2, 1, 0, nil)
	a, b := w.nodes[0], w.nodes[1]
	for _, n := range w.nodes {
		must(t, n.fabric.BeginCut(clusterName, 2, w.members(), patience))
	}
	a.cutGuest(t, 2)
	a.guests[0].send(b.guests[0].id, 60)
	awaitTrue(t, "newer frame waits at b", func() bool { return b.ports[0].Stats().Early == 1 })
	b.fabric.EndCut(clusterName, 2)
	b.guests[0].await("frame of an abandoned cut", func(r []stamp) bool { return len(r) == 1 })
	a.fabric.EndCut(clusterName, 2)
}

// More in flight than may be recorded fails the cut and harms no frame.
func TestCut_TooMuchInFlight(t *testing.T) {
	w := newWorld(t, 1, 2, 0, func(cfg *fabric.Config) { cfg.HoldBytes = 2000 })
	n := w.nodes[0]
	must(t, n.fabric.BeginCut(clusterName, 2, w.members(), patience))
	must(t, errors.Join(n.ports[1].Gate(), n.ports[1].Drain(budget(t))))
	n.guests[1].stop()
	must(t, n.recolour(budget(t), 2, 1))
	n.resume(1)
	sendMany(n.guests[0], n.guests[1], 50)
	n.guests[1].await("all frames", func(r []stamp) bool { return len(r) == 50 })
	must(t, errors.Join(n.ports[0].Gate(), n.ports[0].Drain(budget(t))))
	n.guests[0].stop()
	must(t, n.recolour(budget(t), 2, 0))
	n.resume(0)
	must(t, n.fabric.SendMarkers(clusterName, 2))
	if _, err := n.fabric.ChannelState(clusterName, 2); !errors.Is(err, fabric.ErrChannelFull) {
		t.Errorf("channel state of more than is recorded: %v, want %v", err, fabric.ErrChannelFull)
	}
	n.fabric.EndCut(clusterName, 2)
	w.awaitAll()
}
