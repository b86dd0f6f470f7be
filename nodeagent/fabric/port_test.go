package fabric_test

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fermata/nodeagent/fabric"
)

type endFile = *os.File

func mustPair(t *testing.T) (fabricEnd, guestEnd endFile) {
	t.Helper()
	fabricEnd, guestEnd, err := fabric.NewPair()
	if err != nil {
		t.Fatal(err)
	}
	return fabricEnd, guestEnd
}

// sendMany has src send count frames of 1,000 bytes to dst.
func sendMany(src, dst *guest, count int) {
	for range count {
		src.send(dst.id, 1000)
	}
}

func TestPort_GateHoldsInOrderAndUngateDelivers(t *testing.T) {
	w := newWorld(t, 1, 2, 0, nil)
	n := w.nodes[0]
	a, b, port := n.guests[0], n.guests[1], n.ports[1]
	sendMany(a, b, 10)
	b.await("10 frames", func(r []stamp) bool { return len(r) == 10 })

	for range 2 { // idempotent
		if err := port.Gate(); err != nil {
			t.Fatal(err)
		}
	}
	sendMany(a, b, 500)
	awaitTrue(t, "all held", func() bool { return port.Stats().Held == 500 })
	if got := len(b.now().received); got != 10 {
		t.Errorf("gated guest has %d frames, want the 10 from before", got)
	}
	port.Ungate()
	port.Ungate()
	sendMany(a, b, 10)
	w.awaitAll()
	awaitTrue(t, "open port has nothing to do", func() bool {
		s := port.Stats()
		return s.Waiting == 0 && s.WaitingBytes == 0 && !s.Gated
	})
}

// socketCapacity is how many frames of size bytes a guest's socket takes.
func socketCapacity(t *testing.T, size int) uint64 {
	t.Helper()
	fabricEnd, guestEnd := mustPair(t)
	defer guestEnd.Close()
	defer fabricEnd.Close()
	raw, err := fabricEnd.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for n := uint64(0); ; n++ {
		cerr := raw.Control(func(fd uintptr) { err = unix.Sendto(int(fd), make([]byte, size), unix.MSG_DONTWAIT, nil) })
		switch {
		case err == unix.EAGAIN:
			return n
		case err != nil || cerr != nil:
			t.Fatal(err, cerr)
		}
	}
}

// A gate that closes while the writer waits for a full guest must get the frame
// back, not leave it to slip in later.
func TestPort_GateInterruptsAWaitingWriter(t *testing.T) {
	w := newWorld(t, 1, 2, 0, func(cfg *fabric.Config) { cfg.StallTime = time.Hour })
	n := w.nodes[0]
	a, b, port := n.guests[0], n.guests[1], n.ports[1]
	b.mu.Lock()
	b.deaf = true
	b.mu.Unlock()
	sendMany(a, b, 1000)
	full := socketCapacity(t, 1000)
	awaitTrue(t, "guest's socket is full", func() bool { return port.Stats().Sent >= full })
	if err := port.Gate(); err != nil {
		t.Fatal(err)
	}
	sent := port.Stats().Sent

	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := port.Drain(ctx); !errors.Is(err, fabric.ErrUndrained) {
		t.Fatalf("drain of a deaf guest: %v, want %v", err, fabric.ErrUndrained)
	}
	// All but the one inside QEMU come back, to the front.
	got, err := port.Reclaim()
	if err != nil || uint64(got) != sent-1 {
		t.Fatalf("reclaimed %d frames (%v), want %d", got, err, sent-1)
	}
	b.mu.Lock()
	b.deaf = false
	b.flush()
	b.mu.Unlock()
	port.Ungate()
	w.awaitAll()
}

func TestPort_DrainMeansDelivered(t *testing.T) {
	w := newWorld(t, 1, 2, 4, nil)
	n := w.nodes[0]
	a, b, port := n.guests[0], n.guests[1], n.ports[1]
	for round := range 20 {
		sendMany(a, b, 50)
		if err := port.Gate(); err != nil {
			t.Fatal(err)
		}
		if err := port.Drain(budget(t)); err != nil {
			t.Fatal(err)
		}
		b.stop()
		if got, sent := uint64(len(b.now().received)), port.Stats().Sent; got != sent {
			t.Fatalf("round %d: guest has %d frames, its port sent %d", round, got, sent)
		}
		if k, err := port.Reclaim(); k != 0 || err != nil {
			t.Fatalf("round %d: reclaimed %d frames (%v) after a drain", round, k, err)
		}
		b.cont()
		port.Ungate()
	}
	w.awaitAll()
}

// Without the sentinel an empty socket would look drained while QEMU still
// holds a frame, which the stop then purges.
func TestPort_DrainSeesTheFrameInsideQEMU(t *testing.T) {
	w := newWorld(t, 1, 2, 0, nil)
	n := w.nodes[0]
	a, b, port := n.guests[0], n.guests[1], n.ports[1]
	b.mu.Lock()
	b.deaf = true
	b.mu.Unlock()
	sendMany(a, b, 1)
	awaitTrue(t, "frame inside QEMU", func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.kept != nil
	})
	if err := port.Gate(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := port.Drain(ctx); !errors.Is(err, fabric.ErrUndrained) {
		t.Fatalf("drain: %v, want %v: QEMU holds a frame", err, fabric.ErrUndrained)
	}
}

func TestPort_StalledGuestDoesNotStopOthers(t *testing.T) {
	w := newWorld(t, 1, 3, 0, func(cfg *fabric.Config) {
		cfg.StallTime, cfg.QueueBytes = 500*time.Millisecond, 8192
	})
	n := w.nodes[0]
	a, dead, alive := n.guests[0], n.guests[1], n.guests[2]
	dead.mu.Lock()
	dead.deaf = true
	dead.mu.Unlock()

	// Far more broadcasts than the dead guest's socket and queue take.
	const frames = 2000
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		for range frames {
			a.send(everybody, 1000)
		}
	}()
	alive.await("all broadcasts", func(r []stamp) bool { return len(r) == frames })
	<-sent
	port := n.ports[1]
	awaitTrue(t, "nothing waits for the dead guest", func() bool { return port.Stats().Waiting == 0 })
	if s := port.Stats(); !s.Stalled || s.Dropped.Stalled == 0 || s.Sent+s.Dropped.Stalled != frames {
		t.Errorf("port of the dead guest says %+v, want stalled and every frame sent or dropped", s)
	}
	if s := n.ports[2].Stats(); s.Dropped.Total() != 0 {
		t.Errorf("port of the living guest dropped %+v", s.Dropped)
	}

	// The guest gets its driver: it is served again.
	dead.mu.Lock()
	dead.deaf = false
	dead.flush()
	dead.mu.Unlock()
	before := uint64(0)
	dead.await("its socket's frames", func(r []stamp) bool { before = port.Stats().Sent; return uint64(len(r)) == before })
	a.send(dead.id, 1000)
	dead.await("a new frame", func(r []stamp) bool { return r[len(r)-1].dst == dead.id })
	awaitTrue(t, "port of the revived guest is not stalled", func() bool { return !port.Stats().Stalled })
}

// TestPort_SlowGuestLosesNothing leaves a guest without a processor for many times
// the stall time, while what is sent to it fits into its queue.
func TestPort_SlowGuestLosesNothing(t *testing.T) {
	const stall = 50 * time.Millisecond
	w := newWorld(t, 1, 2, 0, func(cfg *fabric.Config) { cfg.StallTime = stall })
	n := w.nodes[0]
	a, slow, port := n.guests[0], n.guests[1], n.ports[1]
	slow.mu.Lock()
	slow.deaf = true
	slow.mu.Unlock()
	const frames = 700 // more than its socket takes
	sendMany(a, slow, frames)
	awaitTrue(t, "frames wait in the queue", func() bool { return port.Stats().Waiting > 0 })
	time.Sleep(10 * stall)
	slow.mu.Lock()
	slow.deaf = false
	slow.flush()
	slow.mu.Unlock()
	slow.await("all frames", func(r []stamp) bool { return len(r) == frames })
	if s := port.Stats(); s.Dropped.Total() != 0 || s.Stalled {
		t.Errorf("port of the slow guest says %+v, want no drop", s)
	}
}

func TestPort_HoldLimitBacksUp(t *testing.T) {
	const frames = 400
	w := newWorld(t, 1, 2, 0, func(cfg *fabric.Config) { cfg.HoldBytes = 100_000 })
	n := w.nodes[0]
	a, b, port := n.guests[0], n.guests[1], n.ports[1]
	if err := port.Gate(); err != nil {
		t.Fatal(err)
	}
	sendMany(a, b, frames) // what is not held stays in the sender's socket
	awaitTrue(t, "hold queue is full", func() bool { return port.Stats().WaitingBytes > 90_000 })
	awaitTrue(t, "sender's reader waits", func() bool { return n.ports[0].Stats().Received < frames })
	if s := port.Stats(); s.WaitingBytes > 100_000 || s.Dropped.Total() != 0 {
		t.Errorf("gated port says %+v, want at most 100,000 bytes and no drop", s)
	}
	// In a cut the egress must drain all the same: a socket's worth is let in.
	must(t, n.fabric.BeginCut(clusterName, 2, w.members(), patience))
	must(t, n.ports[0].Gate())
	a.stop()
	must(t, n.recolour(budget(t), 2, 0))
	if s := port.Stats(); s.Waiting != frames {
		t.Errorf("%d frames wait after the drain, want all %d", s.Waiting, frames)
	}
	n.fabric.EndCut(clusterName, 2)
	a.cont()
	port.Ungate()
	w.awaitAll()
}

func TestPort_InjectComesFirst(t *testing.T) {
	n := newNode(t, "n1", nil)
	n.create(7, nil)
	a, _ := n.attach(1, 0, false)
	b, port := n.attach(2, 0, true)
	sendMany(a, b, 3)
	awaitTrue(t, "frames held", func() bool { return port.Stats().Held == 3 })
	recorded := [][]byte{testFrame(9, b.id, 1, 60), testFrame(9, b.id, 2, 60)}
	if err := port.Inject(recorded); err != nil {
		t.Fatal(err)
	}
	if err := port.Inject([][]byte{{1, 2, 3}}); !errors.Is(err, fabric.ErrMalformed) {
		t.Errorf("inject of 3 bytes: %v, want %v", err, fabric.ErrMalformed)
	}
	port.Ungate()
	b.await("5 frames", func(r []stamp) bool { return len(r) == 5 })
	if r := b.now().received; r[0].src != 9 || r[1].src != 9 || r[2].src != 1 {
		t.Errorf("order %v, want the injected first", r)
	}
	if err := port.Inject(recorded); !errors.Is(err, fabric.ErrNotGated) {
		t.Errorf("inject into an open port: %v, want %v", err, fabric.ErrNotGated)
	}
	if err := port.Drain(t.Context()); !errors.Is(err, fabric.ErrNotGated) {
		t.Errorf("drain of an open port: %v, want %v", err, fabric.ErrNotGated)
	}
	if _, err := port.Reclaim(); !errors.Is(err, fabric.ErrNotGated) {
		t.Errorf("reclaim from an open port: %v, want %v", err, fabric.ErrNotGated)
	}
}

// A port may be detached whatever its workers, and others', wait for.
func TestPort_DetachUnblocksEverybody(t *testing.T) {
	w := newWorld(t, 1, 2, 0, func(cfg *fabric.Config) { cfg.HoldBytes = 4096 })
	n := w.nodes[0]
	a, b := n.guests[0], n.guests[1]
	if err := n.ports[1].Gate(); err != nil {
		t.Fatal(err)
	}
	sendMany(a, b, 20)
	awaitTrue(t, "reader waits", func() bool { return n.ports[1].Stats().Waiting >= 3 })
	for range 2 {
		if err := n.ports[0].Detach(); err != nil { // its reader waits for the other port
			t.Fatal(err)
		}
	}
	if err := n.ports[1].Detach(); err != nil {
		t.Fatal(err)
	}
	if err := n.ports[1].Gate(); !errors.Is(err, fabric.ErrClosed) {
		t.Errorf("gate of a detached port: %v, want %v", err, fabric.ErrClosed)
	}
	n.ports[1].Ungate() // no effect, no panic
	n.attach(2, 0, false)
}

// openFiles is how many files this process has open.
func openFiles(t *testing.T) int {
	t.Helper()
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(files)
}

func TestAttach_Refuses(t *testing.T) {
	n := newNode(t, "n1", nil)
	n.create(1, nil)
	n.attach(1, 0, false)
	good := fabric.PortConfig{Cluster: clusterName, Network: "net", Guest: "g", NIC: "nic0", MAC: guestMAC(2)}
	for what, c := range map[string]struct {
		change func(*fabric.PortConfig)
		want   error
	}{
		"unknown cluster": {func(c *fabric.PortConfig) { c.Cluster = "nope" }, fabric.ErrUnknownCluster},
		"taken nic":       {func(c *fabric.PortConfig) { c.Guest = "g1" }, fabric.ErrExists},
		"taken mac":       {func(c *fabric.PortConfig) { c.MAC = guestMAC(1) }, fabric.ErrExists},
		"group mac":       {func(c *fabric.PortConfig) { c.MAC = []byte{1, 0, 0, 0, 0, 0} }, nil},
		"sentinel mac":    {func(c *fabric.PortConfig) { c.MAC = []byte{0x02, 0xfe, 0x5e, 0, 0, 1} }, nil},
		"no network":      {func(c *fabric.PortConfig) { c.Network = "" }, nil},
	} {
		t.Run(what, func(t *testing.T) {
			before := openFiles(t)
			cfg := good
			cfg.FabricEnd, cfg.GuestEnd = mustPair(t)
			c.change(&cfg)
			if _, err := n.fabric.Attach(cfg); err == nil || c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("attach: %v, want error %v", err, c.want)
			}
			if _, err := cfg.FabricEnd.Write([]byte("x")); !errors.Is(err, os.ErrClosed) {
				t.Errorf("fabric end after a failed attach: %v, want it closed", err)
			}
			if after := openFiles(t); after != before {
				t.Errorf("%d open files after a failed attach, %d before", after, before)
			}
		})
	}
	if _, err := n.fabric.Attach(good); err == nil {
		t.Error("attach without a socket pair succeeded")
	}
}

// A stop would purge the frame that QEMU could not send for want of room, so a
// guest that is held up is not drained.
func TestPort_DrainWaitsForEgressHeldUp(t *testing.T) {
	const frames = 6000 // more than the socket takes
	w := newWorld(t, 1, 2, 0, func(cfg *fabric.Config) { cfg.HoldBytes = 4096 })
	n := w.nodes[0]
	a, b := n.guests[0], n.guests[1]
	if err := n.ports[1].Gate(); err != nil {
		t.Fatal(err)
	}
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		sendMany(a, b, frames)
	}()
	awaitTrue(t, "frame that does not fit", func() bool {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.txFull != nil && a.held
	})
	if err := n.ports[0].Gate(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := n.ports[0].Drain(ctx); !errors.Is(err, fabric.ErrNotDrained) {
		t.Fatalf("drain of a guest that is held up: %v, want %v", err, fabric.ErrNotDrained)
	}
	n.ports[1].Ungate()
	if err := n.ports[0].Drain(budget(t)); err != nil {
		t.Fatal(err)
	}
	n.ports[0].Ungate()
	<-sent
	w.awaitAll()
}
