package fabric_test

import (
	"errors"
	"testing"

	"fermata/nodeagent/fabric"
)

// TestTotalBytes_HoldsSendersBack gates two guests of a node, to which more is sent than the
// node may hold for both: senders wait, nothing is lost, and all memory is given back.
func TestTotalBytes_HoldsSendersBack(t *testing.T) {
	const (
		frames = 400
		total  = 150_000
		queue  = 20_000
	)
	w := newWorld(t, 1, 4, 0, func(cfg *fabric.Config) { cfg.TotalBytes, cfg.QueueBytes, cfg.HoldBytes = total, queue, 10*total })
	n := w.nodes[0]
	for _, to := range []int{2, 3} {
		must(t, n.ports[to].Gate())
		sendMany(n.guests[to-2], n.guests[to], frames)
	}
	awaitTrue(t, "the fabric is tight", func() bool { return n.fabric.Used() >= total })
	for _, from := range []int{0, 1} {
		awaitTrue(t, "a sender's reader waits", func() bool { return n.ports[from].Stats().Received < frames })
	}
	// A batch may be in the readers' hands.
	if used := n.fabric.Used(); used > total+2*queue {
		t.Errorf("%d bytes are held, want about %d", used, total)
	}
	for _, to := range []int{2, 3} {
		n.ports[to].Ungate()
	}
	w.awaitAll()
	for i, p := range n.ports {
		if s := p.Stats(); s.Dropped.Total() != 0 {
			t.Errorf("nic %d dropped %+v", i, s.Dropped)
		}
	}
	awaitTrue(t, "all memory is given back", func() bool { return n.fabric.Used() == 0 })
}

// TestTotalBytes_BoundsWhatACutRecords: a channel that does not fit fails its cut, and its
// memory is given back with it.
func TestTotalBytes_BoundsWhatACutRecords(t *testing.T) {
	w := newWorld(t, 1, 2, 0, func(cfg *fabric.Config) { cfg.TotalBytes = 2000 })
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
		t.Errorf("channel state of more than may be recorded: %v, want %v", err, fabric.ErrChannelFull)
	}
	n.fabric.EndCut(clusterName, 2)
	w.awaitAll()
	awaitTrue(t, "all memory is given back", func() bool { return n.fabric.Used() == 0 })
}
