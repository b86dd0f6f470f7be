package fabric

import (
	"context"
	"net"
	"testing"
)

// A link may end in the very moment in which its peer hangs up: when a cluster ends, all
// do so at once.
func TestConnect_EndsWhileThePeerHangsUp(t *testing.T) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	f, err := New(Config{Node: "here", Incarnation: "1", Listener: lis, Plaintext: true})
	if err != nil {
		t.Fatal(err)
	}
	peer, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	met := make(chan func())
	go func() {
		for {
			conn, err := peer.Accept()
			if err != nil {
				return
			}
			cancel := <-met
			_, _ = readHello(conn)
			go cancel()
			_ = conn.Close()
		}
	}()
	l := &link{fabric: f, cluster: &cluster{name: "c"}, node: "there", life: 1}
	for range 3000 { // the first few hundred showed the fault this is for
		ctx, cancel := context.WithCancel(t.Context())
		go func() { met <- cancel }()
		if conn, _, err := l.connect(ctx, peer.Addr().String()); err == nil || conn != nil {
			t.Fatalf("connected to a peer that hung up: %v, %v", conn, err)
		}
	}
}
