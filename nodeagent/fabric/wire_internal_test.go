package fabric

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func testFrames(sizes ...int) [][]byte {
	frames := [][]byte{}
	for i, n := range sizes {
		frames = append(frames, bytes.Repeat([]byte{byte(i + 1)}, n))
	}
	return frames
}

func TestFrames_RoundTrip(t *testing.T) {
	for _, frames := range [][][]byte{testFrames(), testFrames(MinFrame), testFrames(60, MaxFrame, 1514, 60)} {
		got, err := DecodeFrames(EncodeFrames(frames))
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, frames) {
			t.Errorf("%d frames came back as %d, or changed", len(frames), len(got))
		}
	}
}

func TestFrames_DamageIsSeen(t *testing.T) {
	good := EncodeFrames(testFrames(60, 61))
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 0x40
		if _, err := DecodeFrames(bad); !errors.Is(err, ErrMalformed) {
			t.Fatalf("byte %d flipped: %v, want %v", i, err, ErrMalformed)
		}
		if _, err := DecodeFrames(good[:i]); !errors.Is(err, ErrMalformed) {
			t.Fatalf("cut off at %d: %v, want %v", i, err, ErrMalformed)
		}
	}
}

// reseal gives a frame list its right digest, so that fuzzing gets behind it.
func reseal(b []byte) []byte {
	if len(b) < sha256.Size {
		return b
	}
	b = bytes.Clone(b)
	sum := sha256.Sum256(b[:len(b)-sha256.Size])
	copy(b[len(b)-sha256.Size:], sum[:])
	return b
}

func FuzzDecodeFrames(f *testing.F) {
	f.Add(EncodeFrames(nil))
	f.Add(EncodeFrames(testFrames(14, 60, 1514)))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, b := range [][]byte{b, reseal(b)} {
			frames, err := DecodeFrames(b)
			if err != nil {
				if !errors.Is(err, ErrMalformed) {
					t.Fatalf("error of another class: %v", err)
				}
				continue
			}
			if again := EncodeFrames(frames); !bytes.Equal(again, b) {
				t.Fatal("encoding what was decoded gives other bytes")
			}
		}
	})
}

func encodeRecord(r record) []byte {
	var b bytes.Buffer
	_ = writeRecord(&b, r) // a buffer takes everything
	return b.Bytes()
}

func FuzzReadRecord(f *testing.F) {
	f.Add(encodeRecord(record{kind: recordFrame, sequence: 7, epoch: 3, network: 9, payload: make([]byte, 60)}))
	f.Add(encodeRecord(record{kind: recordMarker, sequence: 8, epoch: 4}))
	f.Add(encodeRecord(record{kind: recordAck, sequence: 8}))
	f.Add(encodeRecord(holdRecord(map[flow]bool{{network: 9, to: macAddress{2}}: true})))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		rec, err := readRecord(r)
		if err != nil {
			if !errors.Is(err, ErrMalformed) && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatalf("error of another class: %v", err)
			}
			return
		}
		if used := b[:len(b)-r.Len()]; !bytes.Equal(encodeRecord(rec), used) {
			t.Fatal("encoding what was decoded gives other bytes")
		}
	})
}

func FuzzReadHello(f *testing.F) {
	f.Add(hello{life: 1, first: 2, fresh: 4, floor: 3, from: "n1", to: "n2", incarnation: "i", cluster: "c"}.encode())
	f.Add(reply{status: replyWelcome, last: 4, from: "n2"}.encode())
	f.Add(reply{status: replyLater, from: "n2", reason: "not yet"}.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		if h, err := readHello(r); err == nil && !bytes.Equal(h.encode(), b[:len(b)-r.Len()]) {
			t.Fatal("encoding the hello gives other bytes")
		}
		r = bytes.NewReader(b)
		if re, err := readReply(r); err == nil && !bytes.Equal(re.encode(), b[:len(b)-r.Len()]) {
			t.Fatal("encoding the reply gives other bytes")
		}
	})
}

func TestReply_LongReasonIsCut(t *testing.T) {
	re, err := readReply(bytes.NewReader(reply{status: replyLater, from: "n", reason: string(make([]byte, 9000))}.encode()))
	if err != nil || len(re.reason) != maxReasonBytes {
		t.Errorf("reason of %d bytes (%v), want %d", len(re.reason), err, maxReasonBytes)
	}
}

// rawLink speaks the wire by hand to a fabric with one cluster and one gated
// port on network "net".
type rawLink struct {
	t    *testing.T
	conn net.Conn
	port *Port
	f    *Fabric
}

const rawFloor = 5

func newRawLink(t *testing.T) *rawLink {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f, err := New(Config{Node: "here", Incarnation: "1", Listener: lis, Plaintext: true})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- f.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	if err := f.CreateCluster("c", rawFloor); err != nil {
		t.Fatal(err)
	}
	// The peer's own listener is not needed: the link to it stays down.
	if err := f.SetPeers("c", []Peer{{Node: "there", Address: "127.0.0.1:1"}}); err != nil {
		t.Fatal(err)
	}
	fabricEnd, guestEnd, err := NewPair()
	if err != nil {
		t.Fatal(err)
	}
	p, err := f.Attach(PortConfig{
		Cluster: "c", Network: "net", Guest: "g", NIC: "n", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 1},
		FabricEnd: fabricEnd, GuestEnd: guestEnd, Gated: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	return &rawLink{t: t, port: p, f: f}
}

// dial says h and returns the answer.
func (l *rawLink) dial(h hello) reply {
	l.t.Helper()
	conn, err := net.Dial("tcp", l.f.cfg.Listener.Addr().String())
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		l.t.Fatal(err)
	}
	if _, err := conn.Write(h.encode()); err != nil {
		l.t.Fatal(err)
	}
	re, err := readReply(conn)
	if err != nil {
		l.t.Fatal(err)
	}
	l.conn = conn
	return re
}

// send sends r and returns the sequence that is acknowledged, or the error
// that the link ends with.
func (l *rawLink) send(r record) (uint64, error) {
	l.t.Helper()
	if err := writeRecord(l.conn, r); err != nil {
		return 0, err
	}
	for {
		ack, err := readRecord(l.conn)
		if err == nil && ack.kind == recordHold {
			continue // nothing is held back here
		}
		return ack.sequence, err
	}
}

func goodHello() hello {
	return hello{life: 1, first: 1, fresh: 1, floor: rawFloor, from: "there", to: "here", incarnation: "1", cluster: "c"}
}

func frameRecord(sequence, epoch uint64) record {
	payload := append([]byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0}, byte(sequence))
	return record{kind: recordFrame, sequence: sequence, epoch: epoch, network: networkID("c", "net"), payload: payload}
}

func TestReceive_Hellos(t *testing.T) {
	for what, c := range map[string]struct {
		change func(*hello)
		want   replyStatus
	}{
		"good":            {func(*hello) {}, replyWelcome},
		"unknown cluster": {func(h *hello) { h.cluster = "other" }, replyLater},
		"another node":    {func(h *hello) { h.to = "elsewhere" }, replyRefused},
		"no peer":         {func(h *hello) { h.from = "stranger" }, replyLater},
		"earlier life":    {func(h *hello) { h.floor-- }, replyStale},
		"later life":      {func(h *hello) { h.floor++ }, replyLater},
	} {
		t.Run(what, func(t *testing.T) {
			h := goodHello()
			c.change(&h)
			if re := newRawLink(t).dial(h); re.status != c.want || re.from != "here" {
				t.Errorf("answer %+v, want %s", re, c.want)
			}
		})
	}
}

func TestReceive_FrameBelowTheFloorIsRefused(t *testing.T) {
	l := newRawLink(t)
	l.dial(goodHello())
	for _, r := range []record{
		frameRecord(1, rawFloor-1),
		{kind: recordMarker, sequence: 2, epoch: rawFloor - 1},
		frameRecord(3, rawFloor),
	} {
		if ack, err := l.send(r); ack != r.sequence || err != nil {
			t.Fatalf("%s %d: ack %d, %v", r.kind, r.sequence, ack, err)
		}
	}
	s, err := l.f.ClusterStats("c")
	if err != nil || s.Stale != 2 {
		t.Errorf("%d stale records (%v), want 2", s.Stale, err)
	}
	if got := l.port.Stats().Waiting; got != 1 {
		t.Errorf("%d frames delivered, want the one of the present epoch", got)
	}
}

func TestReceive_ResumesWhereItStopped(t *testing.T) {
	l := newRawLink(t)
	l.dial(goodHello())
	for seq := range uint64(3) {
		if _, err := l.send(frameRecord(seq+1, rawFloor)); err != nil {
			t.Fatal(err)
		}
	}
	// A new connection of the same life, even while the old one is open.
	h := goodHello()
	h.first, h.fresh = 2, 4 // the ack of record 1 came, those of 2 and 3 were lost
	if re := l.dial(h); re.last != 3 {
		t.Fatalf("resumes after record %d, want 3", re.last)
	}
	if ack, err := l.send(frameRecord(4, rawFloor)); ack != 4 || err != nil {
		t.Fatalf("ack %d, %v", ack, err)
	}
	// A new life starts where it says.
	h.incarnation, h.first, h.fresh = "2", 1, 1
	if re := l.dial(h); re.last != 0 {
		t.Fatalf("new life resumes after record %d, want 0", re.last)
	}
	if ack, err := l.send(frameRecord(1, rawFloor)); ack != 1 || err != nil {
		t.Fatalf("ack %d, %v", ack, err)
	}
	// A straggler of the life before is known, and does it no harm.
	if re := l.dial(goodHello()); re.last != 4 {
		t.Fatalf("old life resumes after record %d, want 4", re.last)
	}
	if got := l.port.Stats().Waiting; got != 5 {
		t.Errorf("%d frames delivered, want 5", got)
	}
}

// A process that took another's place knows nothing of a link that was in use. What its
// predecessor may have delivered is not taken again, but counted.
func TestReceive_TakesNothingTwiceOfALinkItDoesNotKnow(t *testing.T) {
	l := newRawLink(t)
	h := goodHello()
	h.first, h.fresh = 5, 9 // 5 to 8 were sent, and nobody has acknowledged them
	if re := l.dial(h); re.last != 8 {
		t.Fatalf("resumes after record %d, want 8", re.last)
	}
	if ack, err := l.send(frameRecord(9, rawFloor)); ack != 9 || err != nil {
		t.Fatalf("ack %d, %v", ack, err)
	}
	if s, err := l.f.ClusterStats("c"); err != nil || s.Doubtful != 4 {
		t.Errorf("%d frames in doubt (%v), want 4", s.Doubtful, err)
	}
}

func TestReceive_EndsOnNonsense(t *testing.T) {
	for what, r := range map[string]record{
		"gap":         frameRecord(2, rawFloor),
		"repetition":  frameRecord(0, rawFloor),
		"ack":         {kind: recordAck, sequence: 1},
		"hold":        {kind: recordHold, payload: make([]byte, flowLen)},
		"unknown":     {kind: 9, sequence: 1},
		"giant frame": {kind: recordFrame, sequence: 1, epoch: rawFloor, payload: make([]byte, MaxFrame+1)},
	} {
		t.Run(what, func(t *testing.T) {
			l := newRawLink(t)
			l.dial(goodHello())
			if ack, err := l.send(r); err == nil {
				t.Errorf("acknowledged %d", ack)
			}
			if got := l.port.Stats().Waiting; got != 0 {
				t.Errorf("%d frames delivered, want none", got)
			}
		})
	}
}

func TestReceive_UnknownNetworkIsCounted(t *testing.T) {
	l := newRawLink(t)
	l.dial(goodHello())
	r := frameRecord(1, rawFloor)
	r.network = networkID("c", "elsewhere")
	if _, err := l.send(r); err != nil {
		t.Fatal(err)
	}
	if s, err := l.f.ClusterStats("c"); err != nil || s.NoDomain != 1 {
		t.Errorf("%d frames without a network (%v), want 1", s.NoDomain, err)
	}
}

// A connection to where the peer was must not be used once the peer has moved.
func TestLink_MoveWhileDialling(t *testing.T) {
	c := &cluster{name: "c", fabric: &Fabric{}}
	l, _ := newLink(c, Peer{Node: "there", Address: "old"})
	l.setAddress("new")
	if err := l.resume(nil, "old", 0); err == nil {
		t.Error("connection to the old address is used")
	}
	if err := l.resume(nil, "new", 0); err != nil {
		t.Errorf("connection to the new address: %v", err)
	}
}

// A peer that dials shows that it is there: the link to it does not wait for
// its backoff.
func TestLink_PeerThatDialsWakesTheLinkToIt(t *testing.T) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lis.Close()
	l := newRawLink(t)
	c, err := l.f.clusterNamed("c")
	if err != nil {
		t.Fatal(err)
	}
	out, run := newLink(c, Peer{Node: "late", Address: lis.Addr().String()})
	out.minWait, out.maxWait = time.Hour, time.Hour
	go run()
	defer out.close()
	c.mu.Lock()
	c.links = map[string]*link{"there": c.links["there"], "late": out}
	c.mu.Unlock()

	refuse := func() {
		t.Helper()
		if err := lis.(*net.TCPListener).SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		conn, err := lis.Accept()
		if err != nil {
			t.Fatalf("no attempt to reach the peer: %v", err)
		}
		_ = conn.Close()
	}
	refuse() // the peer is not ready; next attempt in an hour
	h := goodHello()
	h.from = "late"
	l.dial(h)
	refuse() // the next attempt came all the same
}

func TestFifo(t *testing.T) {
	var q fifo[int]
	var want []int
	next := 0
	for round := range 200 {
		for range round % 7 {
			q.pushBack(next)
			want = append(want, next)
			next++
		}
		if round%5 == 0 {
			front := []int{next, next + 1, next + 2}[:round%4]
			next += 3
			q.pushFront(front)
			want = append(append([]int{}, front...), want...)
		}
		for range min(round%6, q.len()) {
			if got := q.popFront(); got != want[0] {
				t.Fatalf("round %d: got %d, want %d", round, got, want[0])
			}
			want = want[1:]
		}
		got := []int{}
		for i := range q.len() {
			got = append(got, *q.at(i))
		}
		if diff := cmp.Diff(append([]int{}, want...), got); diff != "" {
			t.Fatalf("round %d:\n%s", round, diff)
		}
	}
	for q.len() > 0 {
		q.popFront()
	}
	q.pushFront(make([]int, 4*keepRing))
	for q.len() > 0 {
		q.popFront()
	}
	if len(q.ring) > keepRing {
		t.Errorf("emptied queue keeps %d slots", len(q.ring))
	}
}

// A reader that looks at an empty socket once more does not keep a guest from passing
// its cut.
func TestRecolour_ReaderLooksOnceMore(t *testing.T) {
	l := newRawLink(t)
	ended := make(chan struct{})
	var looks sync.WaitGroup
	looks.Go(func() {
		for busy := true; ; busy = !busy {
			select {
			case <-ended:
				l.port.busy.Store(false)
				return
			default:
				l.port.busy.Store(busy)
			}
		}
	})
	defer looks.Wait()
	defer close(ended)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for epoch := uint64(rawFloor + 1); epoch < rawFloor+2000; epoch++ {
		if err := l.f.BeginCut("c", epoch, []string{"here", "there"}, time.Minute); err != nil {
			t.Fatal(err)
		}
		if err := l.f.Recolour(ctx, "c", epoch, "g"); err != nil {
			t.Fatal(err)
		}
	}
}
