package dataplane

import (
	"testing"
	"time"
)

// BenchmarkGate closes and opens the gate of a guest: two calls of a cut.
func BenchmarkGate(b *testing.B) {
	for kind, newNode := range kinds {
		b.Run(kind, func(b *testing.B) {
			n := newNode(b, "n1")
			cluster(b, n)
			for b.Loop() {
				gate(b, n.plane, testCluster, guestName(1), time.Minute)
				must(b, n.plane.Ungate(testCluster, guestName(1)))
			}
		})
	}
}
