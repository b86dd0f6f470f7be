package fabric

import (
	"context"
	"net"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
)

// Frames that were parked go before those that come later, also when their cut, or their
// patience, has ended and only the later frame is there to notice it.
func TestPark_KeepsOrderWhenTheWaitEnds(t *testing.T) {
	for name, end := range map[string]func(*Port){
		"the cut has ended": func(p *Port) { p.cluster.cutEpoch.Store(0) },
		"the patience has ended": func(p *Port) {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.early = time.Now().Add(-2 * time.Hour)
		},
	} {
		t.Run(name, func(t *testing.T) {
			p, guest := portBeforeItsCut(t, 2, time.Hour)
			send := func(n byte) {
				data := make([]byte, MinFrame)
				data[MinFrame-1] = n
				p.enqueue(frame{data: data, epoch: 2}, nil)
			}
			send(1)
			if s := p.Stats(); s.Early != 1 || s.Waiting != 1 {
				t.Fatalf("an early frame is not parked: %+v", s)
			}
			end(p)
			send(2)
			buf := make([]byte, MaxFrame)
			for want := byte(1); want <= 2; want++ {
				n, err := guest.Read(buf)
				if err != nil || n != MinFrame || buf[n-1] != want {
					t.Fatalf("read frame %d of %d bytes, %v; want frame %d", buf[max(n, 1)-1], n, err, want)
				}
			}
		})
	}
}

// portBeforeItsCut is a port in epoch 1 of a cluster whose cut is open, and the guest's
// end of its wire.
func portBeforeItsCut(t *testing.T, cut uint64, patience time.Duration) (*Port, net.Conn) {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f, err := New(Config{Node: "n1", Incarnation: "n1-1", Listener: lis, Plaintext: true, Logger: hclog.NewNullLogger()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- f.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	if err := f.CreateCluster("c", 1); err != nil {
		t.Fatal(err)
	}
	near, far, err := NewPair()
	if err != nil {
		t.Fatal(err)
	}
	guest, err := net.FileConn(far) // a copy
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { guest.Close() })
	if err := guest.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	p, err := f.Attach(PortConfig{
		Cluster: "c", Network: "net", Guest: "g", NIC: "nic0", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1}, FabricEnd: near, GuestEnd: far,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.BeginCut("c", cut, []string{"n1"}, patience); err != nil {
		t.Fatal(err)
	}
	return p, guest
}
