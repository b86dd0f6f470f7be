package fabric_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"fermata/nodeagent/fabric"
)

// record is what a cut says of one guest: its point and its channel state.
type record struct {
	point
	channel [][]byte
}

// channelFor reads the channel state of guest id back, without the flooded
// frames that its device will filter out.
func (r record) channelFor(t testing.TB, id int) []stamp {
	t.Helper()
	var stamps []stamp
	for _, b := range r.channel {
		if s := stampOf(t, b); s.dst == id || s.dst == everybody {
			stamps = append(stamps, s)
		}
	}
	return stamps
}

var errGivenUp = errors.New("given up on purpose")

// cut takes the node through the cut of an epoch, as a node agent does, and
// lets the guests run again whatever happens. giveUp says before which step to
// fail: 0 never.
func (n *node) cut(ctx context.Context, epoch uint64, members []string, giveUp int) (_ map[int]record, err error) {
	defer func() {
		for i, g := range n.guests {
			g.cont()
			jitter(50 * time.Microsecond)
			n.ports[i].Ungate()
		}
		n.fabric.EndCut(clusterName, epoch)
	}()
	records := make(map[int]record)
	steps := []func() error{
		func() error { return n.fabric.BeginCut(clusterName, epoch, members) },
		func() error {
			for _, p := range n.ports {
				if err := errors.Join(p.Gate(), p.Drain(ctx)); err != nil {
					return err
				}
			}
			return nil
		},
		func() error {
			for _, g := range n.guests {
				jitter(300 * time.Microsecond)
				g.stop()
				records[g.id] = record{point: g.now()}
			}
			return nil
		},
		func() error { return n.fabric.DrainEgress(ctx, clusterName) },
		func() error { return n.fabric.SendMarkers(clusterName, epoch) },
		func() error { return n.fabric.WaitMarkers(ctx, clusterName, epoch) },
		func() error {
			state, err := n.fabric.ChannelState(clusterName, epoch)
			for i, g := range n.guests {
				r := records[g.id]
				r.channel = state[n.ports[i].Key()]
				records[g.id] = r
			}
			return err
		},
	}
	for i, step := range steps {
		if i+1 == giveUp {
			return nil, errGivenUp
		}
		jitter(200 * time.Microsecond)
		if err := step(); err != nil {
			return nil, err
		}
	}
	return records, nil
}

// jitter makes schedules differ. Nothing relies on how long it takes.
func jitter(most time.Duration) {
	timer := time.NewTimer(rand.N(most))
	<-timer.C
}

// cut cuts all nodes at once. With quitter ≥ 0 that node gives up before a
// random step and the others after a while.
func (w *world) cut(epoch uint64, quitter int) (map[int]record, error) {
	w.t.Helper()
	limit := testBudget
	if quitter >= 0 {
		limit = 5 * time.Millisecond
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	var (
		nodes sync.WaitGroup
		mu    sync.Mutex
		all   = make(map[int]record)
		errs  []error
	)
	for i, n := range w.nodes {
		nodes.Go(func() {
			giveUp := 0
			if i == quitter {
				giveUp = 1 + rand.IntN(7)
			}
			jitter(2 * time.Millisecond)
			records, err := n.cut(ctx, epoch, w.members(), giveUp)
			mu.Lock()
			defer mu.Unlock()
			for id, r := range records {
				all[id] = r
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("node %s: %w", n.name, err))
			}
		})
	}
	nodes.Wait()
	return all, errors.Join(errs...)
}

// checkCut holds a cut against the one rule: what a guest had received at its
// point and what is in its channel state make up exactly what was sent to it
// before the senders' points, in order. So nothing is lost, doubled or
// reordered, and nothing sent after a sender's point is in either. It returns
// how many frames the channel states hold.
func checkCut(t testing.TB, epoch uint64, records map[int]record) (recorded int) {
	t.Helper()
	due := dueByPair(points(records))
	for dst, d := range records {
		channel := d.channelFor(t, dst)
		recorded += len(channel)
		got := bySource(append(slices.Clone(d.received), channel...))
		for src := range records {
			compareFrames(t, fmt.Sprintf("cut %d, guest %d from guest %d", epoch, dst, src), got[src], due[pair{src, dst}])
		}
	}
	return recorded
}

func points(records map[int]record) map[int]point {
	m := make(map[int]point, len(records))
	for id, r := range records {
		m[id] = r.point
	}
	return m
}

// traffic has every guest send at random until stop is called. Senders pause
// between bursts so that the race detector keeps up.
func (w *world) traffic() (stop func()) {
	done := make(chan struct{})
	var senders sync.WaitGroup
	all := w.guests()
	for _, g := range all {
		senders.Go(func() {
			for {
				for range 1 + rand.IntN(8) {
					if !g.send(pickReceiver(all, g), pickSize()) {
						return
					}
				}
				timer := time.NewTimer(rand.N(2 * time.Millisecond))
				select {
				case <-done:
					timer.Stop()
					return
				case <-timer.C:
				}
			}
		})
	}
	return sync.OnceFunc(func() { close(done); senders.Wait() })
}

// checkNoPurge: a stop found nothing inside any QEMU.
func (w *world) checkNoPurge() {
	w.t.Helper()
	for _, g := range w.guests() {
		g.mu.Lock()
		if g.purged != 0 {
			w.t.Errorf("guest %d: QEMU threw %d frames away at a stop", g.id, g.purged)
		}
		g.mu.Unlock()
	}
}

func TestCut_ExactUnderLoad(t *testing.T) {
	const cuts = 10
	for name, c := range map[string]struct {
		ring, life int
		tls        bool
	}{
		"roomy":           {ring: 0},
		"small rings":     {ring: 8},
		"resets":          {ring: 64, life: 80_000},
		"resets with tls": {ring: 64, life: 100_000, tls: true},
	} {
		t.Run(name, func(t *testing.T) {
			var change func(*fabric.Config)
			if c.tls {
				ca := newAuthority(t)
				change = func(cfg *fabric.Config) { ca.withTLS(cfg, cfg.Node) }
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
			for epoch := uint64(2); epoch < 2+cuts; epoch++ {
				records, err := w.cut(epoch, -1)
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
			if lossy == 0 {
				t.Error("no cut had a frame on the wire: the test proves nothing")
			}
			resets := 0
			for _, p := range proxies {
				resets += p.resetCount()
			}
			t.Logf("%d frames recorded in %d of %d cuts, %d connections ended", recorded, lossy, cuts, resets)
			if c.life > 0 && resets == 0 {
				t.Error("no connection was reset: the test proves nothing")
			}
		})
	}
}

// interpose puts a proxy before every node.
func (w *world) interpose() map[string]*proxy {
	w.t.Helper()
	proxies := make(map[string]*proxy)
	var peers []fabric.Peer
	for _, n := range w.nodes {
		p := newProxy(w.t, n.addr)
		proxies[n.name] = p
		peers = append(peers, fabric.Peer{Node: n.name, Address: p.addr()})
	}
	for _, n := range w.nodes {
		if err := n.fabric.SetPeers(clusterName, peers); err != nil {
			w.t.Fatal(err)
		}
	}
	return proxies
}

// Rounds that some node gives up, at any step, harm neither the running guests
// nor the next cut.
func TestCut_AbortedRoundsDoNoHarm(t *testing.T) {
	w := newWorld(t, 3, 1, 16, nil)
	stop := w.traffic()
	defer stop()
	given := 0
	for epoch := uint64(2); epoch < 32; epoch++ {
		quitter := -1
		if epoch%2 == 0 {
			quitter = rand.IntN(len(w.nodes))
		}
		records, err := w.cut(epoch, quitter)
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
	records, err := w.cut(2, -1)
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
		must(t, n.fabric.BeginCut(clusterName, 2, w.members()))
		must(t, n.ports[0].Gate())
		must(t, n.ports[0].Drain(ctx))
		n.guests[0].stop()
		must(t, n.fabric.DrainEgress(ctx, clusterName))
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
	must(t, a.fabric.BeginCut(clusterName, 2, w.members()))
	must(t, a.ports[0].Gate())
	a.guests[0].stop()
	must(t, a.fabric.SendMarkers(clusterName, 2))
	a.guests[0].cont() // gave up
	a.ports[0].Ungate()
	a.fabric.EndCut(clusterName, 2)
	a.guests[0].send(b.guests[0].id, 60)
	b.guests[0].await("frame of epoch 2", func(r []stamp) bool { return len(r) == 1 })

	must(t, b.fabric.BeginCut(clusterName, 2, w.members()))
	must(t, b.ports[0].Gate())
	must(t, b.ports[0].Drain(budget(t)))
	b.guests[0].stop()
	if err := b.fabric.SendMarkers(clusterName, 2); !errors.Is(err, fabric.ErrOrphan) {
		t.Fatalf("markers after an orphan: %v, want %v", err, fabric.ErrOrphan)
	}
	b.guests[0].cont()
	b.ports[0].Ungate()
	b.fabric.EndCut(clusterName, 2)

	records, err := w.cut(3, -1)
	must(t, err)
	checkCut(t, 3, records)
}

// A frame that has left the socket and waits in the reader's hands is in no
// queue yet: the node must not pass its point.
func TestCut_FrameInTheReadersHandsIsNotDrained(t *testing.T) {
	w := newWorld(t, 1, 2, 0, func(cfg *fabric.Config) { cfg.HoldBytes = 100 })
	n := w.nodes[0]
	a, b := n.guests[0], n.guests[1]
	must(t, n.fabric.BeginCut(clusterName, 2, w.members()))
	for _, p := range n.ports {
		must(t, p.Gate())
		must(t, p.Drain(budget(t)))
	}
	a.send(b.id, 60)
	a.send(b.id, 60) // the hold queue takes one
	awaitTrue(t, "both frames received", func() bool { return n.ports[0].Stats().Received == 2 })
	a.stop()
	b.stop()
	if err := n.fabric.SendMarkers(clusterName, 2); !errors.Is(err, fabric.ErrNotDrained) {
		t.Fatalf("markers with a frame in the reader's hands: %v, want %v", err, fabric.ErrNotDrained)
	}
	must(t, n.fabric.DrainEgress(budget(t), clusterName))
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
	if err := n.fabric.BeginCut(clusterName, 2, w.members()); !errors.Is(err, fabric.ErrStale) {
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
	want("cut of an unknown cluster", f.BeginCut("nope", 2, nil), fabric.ErrUnknownCluster)
	want("cut of the present epoch", f.BeginCut(clusterName, 1, w.members()), fabric.ErrStale)
	if err := f.BeginCut(clusterName, 2, []string{"n1", "n2", "n9"}); err == nil {
		t.Error("cut with an unknown member began")
	}
	if err := f.BeginCut(clusterName, 2, []string{"n1"}); err == nil {
		t.Error("cut without a peer began")
	}
	if err := f.SendMarkers(clusterName, 2); err == nil {
		t.Error("markers without a cut were sent")
	}
	must(t, f.BeginCut(clusterName, 5, w.members()))
	must(t, f.BeginCut(clusterName, 5, w.members()))
	want("cut of an older epoch", f.BeginCut(clusterName, 4, w.members()), fabric.ErrStale)
	want("markers of another epoch", f.SendMarkers(clusterName, 4), fabric.ErrStale)
	want("markers with an open gate", f.SendMarkers(clusterName, 5), fabric.ErrNotGated)

	// A newer cut ends the wait for an older one.
	waited := make(chan error, 1)
	go func() { waited <- f.WaitMarkers(ctx, clusterName, 5) }()
	must(t, f.BeginCut(clusterName, 6, w.members()))
	want("wait for a replaced cut", <-waited, fabric.ErrStale)

	// So does the end of the cluster.
	go func() { waited <- f.WaitMarkers(ctx, clusterName, 6) }()
	must(t, f.RemoveCluster(clusterName))
	if err := <-waited; !errors.Is(err, fabric.ErrClosed) && !errors.Is(err, fabric.ErrUnknownCluster) {
		t.Errorf("wait for the cut of a removed cluster: %v", err)
	}
	must(t, f.RemoveCluster(clusterName))
}
