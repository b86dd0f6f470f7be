package fabric_test

import (
	"fmt"
	"testing"
)

// BenchmarkSwitch moves full-size frames from one guest to another, on one node
// and over a link. The guests are test doubles, so this is the fabric's share.
func BenchmarkSwitch(b *testing.B) {
	for _, nodes := range []int{1, 2} {
		b.Run(fmt.Sprintf("nodes=%d", nodes), func(b *testing.B) {
			w := newWorld(b, nodes, 2/nodes, 0, nil)
			src, dst := w.guests()[0], w.guests()[1]
			b.SetBytes(1514)
			b.ReportAllocs()
			for b.Loop() {
				src.send(dst.id, 1514)
			}
			dst.await("all frames", func(r []stamp) bool { return len(r) == b.N })
		})
	}
}

// BenchmarkCut takes cuts of an idle cluster: what the fabric adds to a pause
// and before it.
func BenchmarkCut(b *testing.B) {
	w := newWorld(b, 3, 2, 0, nil)
	epoch := uint64(1)
	for b.Loop() {
		epoch++
		for _, n := range w.nodes {
			must(b, n.fabric.BeginCut(clusterName, epoch, w.members(), patience))
			for _, p := range n.ports {
				must(b, p.Gate())
				must(b, p.Drain(b.Context()))
			}
			for i := range n.guests {
				must(b, n.recolour(b.Context(), epoch, i))
			}
			must(b, n.fabric.SendMarkers(clusterName, epoch))
		}
		for _, n := range w.nodes {
			must(b, n.fabric.WaitMarkers(b.Context(), clusterName, epoch))
			_, err := n.fabric.ChannelState(clusterName, epoch)
			must(b, err)
			for _, p := range n.ports {
				p.Ungate()
			}
			n.fabric.EndCut(clusterName, epoch)
		}
	}
}
