package fabric_test

import (
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"fermata/nodeagent/fabric"
)

// outsider is somebody on the other side of an uplink, with the address of a guest of
// that number; and the device between.
type outsider struct {
	t    testing.TB
	id   int
	in   chan []byte // to the guests
	gone chan struct{}
	once sync.Once

	mu   sync.Mutex
	seen []stamp // guarded by mu; what came out
	sent []stamp // guarded by mu
}

// outside gives a node an uplink.
func (n *node) outside(id int, policy fabric.Outside) *outsider {
	n.t.Helper()
	o := &outsider{t: n.t, id: id, in: make(chan []byte), gone: make(chan struct{})}
	err := n.fabric.AttachUplink(fabric.UplinkConfig{Cluster: clusterName, Network: "net", Outside: policy, Device: o})
	if err != nil {
		n.t.Fatal(err)
	}
	return o
}

// Read implements io.Reader as a TAP device does.
func (o *outsider) Read(b []byte) (int, error) {
	select {
	case f := <-o.in:
		return copy(b, f), nil
	case <-o.gone:
		return 0, io.EOF
	}
}

// Write implements io.Writer as a TAP device does.
func (o *outsider) Write(b []byte) (int, error) {
	s := stampOf(o.t, b)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.seen = append(o.seen, s)
	return len(b), nil
}

// Close implements io.Closer.
func (o *outsider) Close() error {
	o.once.Do(func() { close(o.gone) })
	return nil
}

// send sends a frame to a guest.
func (o *outsider) send(dst int) {
	o.mu.Lock()
	s := stamp{src: o.id, dst: dst, seq: uint64(len(o.sent) + 1), size: 80}
	o.sent = append(o.sent, s)
	o.mu.Unlock()
	select {
	case o.in <- testFrame(s.src, s.dst, s.seq, s.size):
	case <-o.gone:
	}
}

func (o *outsider) saw() []stamp {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.seen)
}

func (o *outsider) sentTo(dst int) []stamp {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(o.sent), func(s stamp) bool { return s.dst != dst })
}

// outbound are the frames that concern who is outside: frames for guests that the
// switch does not know yet go everywhere.
func outbound(sent []stamp, id int) []stamp {
	return slices.DeleteFunc(slices.Clone(sent), func(s stamp) bool { return s.dst != id && s.dst != everybody })
}

const outsiderID = 99

func TestUplink_CarriesBothWays(t *testing.T) {
	w := newWorld(t, 2, 2, 0, nil)
	o := w.nodes[0].outside(outsiderID, fabric.OutsideAllow)
	for i := range 100 {
		for _, g := range w.guests() {
			to := outsiderID
			if i%10 == 0 {
				to = everybody
			}
			g.send(to, 60+i)
			o.send(g.id)
		}
	}
	for _, g := range w.guests() {
		want := outbound(g.now().sent, outsiderID)
		awaitTrue(t, "all frames to be outside", func() bool { return len(bySource(o.saw())[g.id]) >= len(want) })
		compareFrames(t, "outside", bySource(outbound(o.saw(), outsiderID))[g.id], want)
		g.await("frames from outside", func(received []stamp) bool { return len(bySource(received)[outsiderID]) == 100 })
		compareFrames(t, "from outside", bySource(g.now().received)[outsiderID], o.sentTo(g.id))
	}
	stats, err := w.nodes[0].fabric.ClusterStats(clusterName)
	if err != nil || len(stats.Uplinks) != 1 || stats.Uplinks[0].Sent != 400 || stats.Uplinks[0].Received != 400 {
		t.Errorf("uplinks %+v, %v", stats.Uplinks, err)
	}
}

func TestUplink_Drop(t *testing.T) {
	w := newWorld(t, 1, 1, 0, nil)
	o := w.nodes[0].outside(outsiderID, fabric.OutsideDrop)
	g := w.guests()[0]
	g.send(outsiderID, 60)
	o.send(g.id)
	g.await("the frame from outside", func(received []stamp) bool { return len(received) == 1 })
	awaitTrue(t, "the frame to be dropped", func() bool {
		stats, err := w.nodes[0].fabric.ClusterStats(clusterName)
		return err == nil && stats.Uplinks[0].Dropped.Policy == 1
	})
	if seen := o.saw(); len(seen) != 0 {
		t.Errorf("outside: %v", seen)
	}
}

// TestUplink_HoldShowsNothingThatIsUndone takes cuts under load, of which every second
// one becomes durable. Who is outside sees of each guest exactly what it had sent before
// the newest durable cut; and what comes from outside is in the images and the channel
// state of a cut without a gap.
func TestUplink_HoldShowsNothingThatIsUndone(t *testing.T) {
	for _, kind := range cutKinds {
		t.Run(kind.name, func(t *testing.T) {
			w := newWorld(t, 3, 2, 64, nil)
			o := w.nodes[1].outside(outsiderID, fabric.OutsideHold)
			done := make(chan struct{})
			var senders sync.WaitGroup
			all := w.guests()
			for _, g := range all {
				senders.Go(func() {
					for {
						select {
						case <-done:
							return
						case <-time.After(rand.N(time.Millisecond)):
							g.send(pickReceiver(all, g), pickSize())
							g.send(outsiderID, 60)
							o.send(g.id)
						}
					}
				})
			}
			finish := sync.OnceFunc(func() { close(done); senders.Wait() })
			defer finish()
			inFlight := 0
			for epoch := uint64(2); epoch < 14; epoch++ {
				records, err := w.cut(epoch, kind.coloured, -1)
				if err != nil {
					t.Fatal(err)
				}
				checkCut(t, epoch, records)
				for id, r := range records {
					channel := bySource(r.channelFor(t, id))[outsiderID]
					inFlight += len(channel)
					got := append(bySource(r.received)[outsiderID], channel...)
					compareFrames(t, "from outside, up to the cut", got, o.sentTo(id)[:len(got)])
				}
				if epoch%2 == 0 {
					for _, n := range w.nodes {
						n.fabric.Durable(clusterName, epoch)
					}
					n := 0
					for id, r := range records {
						want := outbound(r.sent, outsiderID)
						n += len(want)
						compareFrames(t, "outside", bySource(outbound(o.saw(), outsiderID))[id], want)
					}
					if n == 0 {
						t.Error("nothing was sent to the outside")
					}
				}
			}
			finish()
			t.Logf("%d frames from outside were in flight at a cut", inFlight)
			before := len(o.saw())
			if _, err := w.cut(14, kind.coloured, -1); err != nil { // behind it all are switched
				t.Fatal(err)
			}
			if after := len(o.saw()); after != before {
				t.Errorf("%d frames went out without a checkpoint", after-before)
			}
		})
	}
}

func TestUplink_HoldIsBounded(t *testing.T) {
	w := newWorld(t, 1, 1, 0, func(c *fabric.Config) { c.HoldBytes = 10_000 })
	o := w.nodes[0].outside(outsiderID, fabric.OutsideHold)
	g := w.guests()[0]
	for range 50 {
		g.send(outsiderID, 1000)
	}
	awaitTrue(t, "the frames to be switched", func() bool {
		stats, err := w.nodes[0].fabric.ClusterStats(clusterName)
		if err != nil {
			t.Fatal(err)
		}
		u := stats.Uplinks[0]
		return u.Held+u.Dropped.Full == 50 && u.Dropped.Full > 0 && u.Waiting == u.Held
	})
	w.nodes[0].fabric.Durable(clusterName, 2)
	compareFrames(t, "outside", o.saw(), outbound(g.now().sent, outsiderID)[:len(o.saw())])
	if len(o.saw()) == 0 {
		t.Error("nothing was let out")
	}
}

func TestUplink_RefusesASecondOne(t *testing.T) {
	w := newWorld(t, 1, 1, 0, nil)
	w.nodes[0].outside(outsiderID, fabric.OutsideAllow)
	second := &outsider{t: t, in: make(chan []byte), gone: make(chan struct{})}
	err := w.nodes[0].fabric.AttachUplink(fabric.UplinkConfig{Cluster: clusterName, Network: "net", Device: second})
	if !errors.Is(err, fabric.ErrExists) {
		t.Errorf("second uplink: %v", err)
	}
	select {
	case <-second.gone:
	default:
		t.Error("its device is open")
	}
}
