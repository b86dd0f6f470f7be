package fabric

import (
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// newTestWire returns a wire and a function that has the guest take one datagram.
func newTestWire(t *testing.T) (w *wire, take func()) {
	t.Helper()
	fabricEnd, guestEnd, err := NewPair()
	if err != nil {
		t.Fatal(err)
	}
	if w, err = newWire(fabricEnd, guestEnd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.close() })
	buf := make([]byte, MaxFrame)
	return w, func() {
		t.Helper()
		if _, err := w.takeBack(buf); err != nil {
			t.Fatal(err)
		}
	}
}

// readable tells whether the runtime's poller would be woken by a watch.
func readable(t *testing.T, w *watch) bool {
	t.Helper()
	var n int
	var err error
	cerr := w.raw.Control(func(fd uintptr) { n, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0) })
	if err := errors.Join(cerr, err); err != nil {
		t.Fatal(err)
	}
	return n == 1
}

// Guests that take frames wake nobody; one that sends a frame does.
func TestWatch_TellsWhatIsWantedAlone(t *testing.T) {
	w, take := newTestWire(t)
	if err := w.trySend(make([]byte, 60)); err != nil {
		t.Fatal(err)
	}
	take()
	if readable(t, w.arrivals) || readable(t, w.room) {
		t.Error("told of a frame that the guest took")
	}
	if err := w.room.want(unix.EPOLLOUT); err != nil {
		t.Fatal(err)
	}
	if !readable(t, w.room) {
		t.Error("not told of room that is there")
	}
	if err := w.room.want(0); err != nil {
		t.Fatal(err)
	}
	if readable(t, w.room) {
		t.Error("told of room that nobody wants any more")
	}
	cerr := w.guest.Control(func(fd uintptr) {
		if err := sendDatagram(fd, make([]byte, 60)); err != nil {
			t.Error(err)
		}
	})
	if cerr != nil {
		t.Fatal(cerr)
	}
	if !readable(t, w.arrivals) {
		t.Error("not told of a frame of the guest")
	}
}

// A send to a guest whose socket is full waits until there is room, and no longer than
// its deadline.
func TestWire_SendWaitsForRoom(t *testing.T) {
	w, take := newTestWire(t)
	for round := range 3 {
		full := 0
		for ; w.trySend(make([]byte, 1514)) == nil; full++ {
		}
		if err := w.setSendDeadline(time.Unix(1, 0)); err != nil {
			t.Fatal(err)
		}
		if err := w.send(make([]byte, 1514)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("round %d: send into a full socket: %v, want %v", round, err, os.ErrDeadlineExceeded)
		}
		if err := w.setSendDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		sent := make(chan error, 1)
		go func() { sent <- w.send(make([]byte, 1514)) }()
		for range full {
			take()
		}
		if err := <-sent; err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		for n, err := w.unreadByGuest(); n > 0 || err != nil; n, err = w.unreadByGuest() {
			if err != nil {
				t.Fatal(err)
			}
			take()
		}
	}
}

// Who waits for frames of a guest, or for room, is told when the wire ends.
func TestWire_CloseEndsWaits(t *testing.T) {
	w, _ := newTestWire(t)
	for w.trySend(make([]byte, 1514)) == nil {
	}
	ended := make(chan error, 2)
	in, _ := newInBatch()
	go func() {
		_, err := w.receive(&in, func(bool) {})
		ended <- err
	}()
	go func() { ended <- w.send(make([]byte, 1514)) }()
	if err := w.close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := <-ended; err == nil {
			t.Error("a wait on a closed wire ended well")
		}
	}
}
