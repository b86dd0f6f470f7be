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

// patience is longer than any test takes.
const patience = 10 * testBudget

// cut takes the node through the cut of an epoch that it has begun, as a node agent
// does, and lets the guests run again whatever happens. giveUp says before which step
// to fail: 0 never.
func (n *node) cut(ctx context.Context, epoch uint64, coloured bool, giveUp int) (_ map[int]record, err error) {
	defer func() {
		for i := range n.guests {
			n.resume(i)
		}
		n.fabric.EndCut(clusterName, epoch)
	}()
	records := make(map[int]record)
	steps := n.barrier(ctx, epoch, records)
	if coloured {
		steps = n.coloured(ctx, epoch, records)
	}
	steps = append(steps,
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
		})
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

// fewestSteps is how many steps a cut has at least.
const fewestSteps = 4

// barrier has all guests of the node stand still before any runs again.
func (n *node) barrier(ctx context.Context, epoch uint64, records map[int]record) []func() error {
	all := func(f func(i int) error) func() error {
		return func() error {
			for i := range n.guests {
				if err := f(i); err != nil {
					return err
				}
			}
			return nil
		}
	}
	return []func() error{
		all(func(i int) error { return errors.Join(n.ports[i].Gate(), n.ports[i].Drain(ctx)) }),
		all(func(i int) error { n.halt(i, records); return nil }),
		all(func(i int) error { return n.recolour(ctx, epoch, i) }),
	}
}

// coloured cuts one guest after the other, in any order.
func (n *node) coloured(ctx context.Context, epoch uint64, records map[int]record) []func() error {
	steps := make([]func() error, len(n.guests))
	for k, i := range rand.Perm(len(n.guests)) {
		steps[k] = func() error {
			if err := errors.Join(n.ports[i].Gate(), n.ports[i].Drain(ctx)); err != nil {
				return err
			}
			n.halt(i, records)
			if err := n.recolour(ctx, epoch, i); err != nil {
				return err
			}
			n.resume(i)
			return nil
		}
	}
	return steps
}

func (n *node) halt(i int, records map[int]record) {
	jitter(300 * time.Microsecond)
	g := n.guests[i]
	g.stop()
	records[g.id] = record{point: g.now()}
}

func (n *node) recolour(ctx context.Context, epoch uint64, i int) error {
	return n.fabric.Recolour(ctx, clusterName, epoch, n.ports[i].Key().Guest)
}

func (n *node) resume(i int) {
	n.guests[i].cont()
	jitter(50 * time.Microsecond)
	n.ports[i].Ungate()
}

// jitter makes schedules differ. Nothing relies on how long it takes.
func jitter(most time.Duration) {
	timer := time.NewTimer(rand.N(most))
	<-timer.C
}

// cut cuts all nodes at once, after all have begun. With quitter ≥ 0 that node gives up before a
// random step and the others after a while.
func (w *world) cut(epoch uint64, coloured bool, quitter int) (map[int]record, error) {
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
	for _, n := range w.nodes {
		must(w.t, n.fabric.BeginCut(clusterName, epoch, w.members(), patience))
	}
	for i, n := range w.nodes {
		nodes.Go(func() {
			giveUp := 0
			if i == quitter {
				giveUp = 1 + rand.IntN(fewestSteps)
			}
			jitter(2 * time.Millisecond)
			records, err := n.cut(ctx, epoch, coloured, giveUp)
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

var cutKinds = []struct {
	name     string
	coloured bool
}{{"barrier", false}, {"coloured", true}}

// early counts the frames that had to wait for their receivers' points.
func (w *world) early() (n uint64) {
	for _, node := range w.nodes {
		for _, p := range node.ports {
			n += p.Stats().Early
		}
	}
	return n
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

// cutGuest cuts the only guest of a node.
func (n *node) cutGuest(t *testing.T, epoch uint64) {
	t.Helper()
	records := make(map[int]record)
	for _, step := range n.coloured(budget(t), epoch, records) {
		must(t, step())
	}
}
