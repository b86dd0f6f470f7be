package nodeagent

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"fermata/nodeagent/fabric"
	"fermata/protocol/api"
)

// echoType is the EtherType of frames that guests answer.
const echoType = 0x88B6

func echoMAC(i int) net.HardwareAddr { return net.HardwareAddr{0x52, 0x54, 0, 1, 0, byte(i)} }

// answering gives guest i of a bench a NIC, and a program that answers every frame while
// the guest runs. A deaf guest has no driver: it takes no frame at all.
func (b *bench) answering(i int, deaf bool) {
	b.t.Helper()
	near, far, err := fabric.NewPair()
	if err != nil {
		b.t.Fatal(err)
	}
	inside, err := insideOf(far)
	if err != nil {
		b.t.Fatal(err)
	}
	m := b.machines[i]
	g := b.cluster.guests[m.Name()]
	spec := &api.NICSpec{Name: "nic0", Network: "net", Mac: echoMAC(i).String()}
	if err := b.agent.joinCard(g, spec, near, far); err != nil {
		b.t.Fatal(err)
	}
	g.nics = append(g.nics, spec)
	if err := b.agent.ungate(g); err != nil {
		b.t.Fatal(err)
	}
	state := sync.NewCond(new(sync.Mutex))
	running := true // guarded by state.L
	set := func(to bool) func(context.Context) error {
		return func(context.Context) error {
			state.L.Lock()
			defer state.L.Unlock()
			running = to
			state.Broadcast()
			return nil
		}
	}
	m.onStop, m.onContinue = set(false), set(true)
	var work sync.WaitGroup
	if !deaf {
		work.Go(func() {
			buf := make([]byte, 2048)
			for {
				n, err := inside.Read(buf)
				if err != nil {
					return
				}
				state.L.Lock()
				for !running {
					state.Wait()
				}
				answer := bytes.Clone(buf[:n])
				copy(answer[:6], buf[6:12])
				copy(answer[6:12], echoMAC(i))
				if binary.BigEndian.Uint16(answer[12:]) == echoType {
					_, _ = inside.Write(answer)
					if b.chatty { // tells all others of it
						copy(answer, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
						binary.BigEndian.PutUint16(answer[12:], echoType+1)
						_, _ = inside.Write(answer)
					}
				}
				state.L.Unlock()
			}
		})
	}
	b.t.Cleanup(func() {
		_ = inside.Close()
		_ = set(true)(nil)
		_ = b.agent.plane.Leave("c", m.Name())
		work.Wait()
	})
}

// insideOf is QEMU's descriptor of a card.
func insideOf(far *os.File) (*os.File, error) {
	raw, err := far.SyscallConn()
	if err != nil {
		return nil, err
	}
	var failed error
	if err := raw.Control(func(fd uintptr) { failed = unix.SetNonblock(int(fd), true) }); err != nil || failed != nil {
		return nil, errors.Join(err, failed)
	}
	return dupFile(far)
}

// observer is outside, behind an uplink. It asks every guest all the time and notes when
// they answer. It knows no clock but its own.
type observer struct {
	out  chan []byte
	gone chan struct{}
	once sync.Once
	work sync.WaitGroup

	mu      sync.Mutex
	last    []time.Time     // guarded by mu; newest answer, by guest
	longest []time.Duration // guarded by mu; between two answers, by guest
}

func (b *bench) observe(guests int) *observer {
	b.t.Helper()
	o := &observer{out: make(chan []byte), gone: make(chan struct{}), last: make([]time.Time, guests), longest: make([]time.Duration, guests)}
	err := b.agent.plane.AttachUplink(fabric.UplinkConfig{Cluster: "c", Network: "net", Outside: fabric.OutsideAllow, Device: o})
	if err != nil {
		b.t.Fatal(err)
	}
	o.work.Go(func() {
		tick := time.NewTicker(500 * time.Microsecond)
		defer tick.Stop()
		for {
			select {
			case <-o.gone:
				return
			case <-tick.C:
			}
			for i := range guests {
				frame := make([]byte, 60)
				copy(frame, echoMAC(i))
				copy(frame[6:], []byte{2, 0, 0, 0, 0, 1})
				binary.BigEndian.PutUint16(frame[12:], echoType)
				select {
				case o.out <- frame:
				case <-o.gone:
					return
				}
			}
		}
	})
	b.t.Cleanup(func() {
		_ = o.Close()
		o.work.Wait()
	})
	return o
}

// Read implements io.Reader as a TAP device does.
func (o *observer) Read(p []byte) (int, error) {
	select {
	case f := <-o.out:
		return copy(p, f), nil
	case <-o.gone:
		return 0, io.EOF
	}
}

// Write implements io.Writer as a TAP device does.
func (o *observer) Write(p []byte) (int, error) {
	if binary.BigEndian.Uint16(p[12:]) != echoType {
		return len(p), nil
	}
	now, i := time.Now(), int(p[11])
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.last[i].IsZero() {
		o.longest[i] = max(o.longest[i], now.Sub(o.last[i]))
	}
	o.last[i] = now
	return len(p), nil
}

// Close implements io.Closer.
func (o *observer) Close() error {
	o.once.Do(func() { close(o.gone) })
	return nil
}

// heard reports whether every guest has answered since an instant, except those left out.
func (o *observer) heard(since time.Time, deaf int) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	for i, t := range o.last {
		if i != deaf && !t.After(since) {
			return false
		}
	}
	return true
}

// silences returns each guest's longest silence since it was asked last.
func (o *observer) silences() []time.Duration {
	o.mu.Lock()
	defer o.mu.Unlock()
	all := o.longest
	o.longest = make([]time.Duration, len(all))
	return all
}

// cutObserved takes a cut with the observer listening, and returns what it saw and what
// the agent reports, by guest.
func (b *bench) cutObserved(o *observer, epoch uint64, cut api.Cut, deaf int) ([]time.Duration, []*api.GuestReport) {
	b.t.Helper()
	b.await("guests to answer", func() bool { return o.heard(time.Time{}, deaf) })
	o.silences()
	_, err := b.agent.PrepareRound(b.t.Context(), &api.PrepareRoundRequest{
		Round: b.round(epoch), Nodes: []string{"n1"}, PauseBudgetMs: uint64(stepBudget.Milliseconds()), SkewBudgetMs: 1000, Cut: cut,
	})
	if err != nil {
		b.t.Fatalf("prepare: %v", err)
	}
	reply, err := b.agent.CutRound(b.t.Context(), &api.CutRoundRequest{Round: b.round(epoch)})
	if err != nil {
		b.t.Fatalf("cut: %v", err)
	}
	done := time.Now()
	b.await("guests to answer again", func() bool { return o.heard(done, deaf) })
	seen := o.silences()
	b.finish(epoch, false)
	for i, r := range reply.Guests {
		b.t.Logf("%s: silent for %v, reported %v (early %d gate %d drain %d wait %d pause %d µs)", r.Name, seen[i],
			time.Duration(r.SilentUs)*time.Microsecond, r.EarlyUs, r.GateUs, r.DrainUs, r.WaitUs, r.PauseUs)
	}
	return seen, reply.Guests
}

const (
	slowSave = 150 * time.Millisecond
	// tolerance is what a busy machine adds to a silence that the agent has no part in.
	tolerance = 40 * time.Millisecond
)

// saveSlowly has saving a guest take as long as with a disk.
func (b *bench) saveSlowly() {
	for _, m := range b.machines {
		m.onSave = func(context.Context) error {
			time.Sleep(slowSave) // the work of a disk, nothing is waited for
			return nil
		}
	}
}

// Three guests that are cut one after the other: each is silent for its own cut only,
// and what the agent reports is no less than what an observer outside sees.
func TestSilence_IsReportedAndNobodyWaitsGated(t *testing.T) {
	defer func(n int) { stoppedAtOnce = n }(stoppedAtOnce)
	stoppedAtOnce = 1
	const guests, rounds = 3, 3
	for _, cut := range []api.Cut{api.Cut_CUT_COLOURED, api.Cut_CUT_BARRIER} {
		t.Run(cut.String(), func(t *testing.T) {
			b := newBench(t, guests)
			for i := range guests {
				b.answering(i, false)
			}
			b.saveSlowly()
			o := b.observe(guests)
			understated, overlong := 0, 0
			for epoch := uint64(2); epoch < 2+rounds; epoch++ {
				seen, reports := b.cutObserved(o, epoch, cut, -1)
				for i, r := range reports {
					reported := time.Duration(r.SilentUs) * time.Microsecond
					if seen[i] < slowSave {
						t.Errorf("%s was silent for %v: the observer sees no pause of %v", r.Name, seen[i], slowSave)
					}
					if reported+tolerance < seen[i] {
						understated++
					}
					if cut == api.Cut_CUT_COLOURED && seen[i] > slowSave+slowSave/2+tolerance {
						overlong++
					}
				}
			}
			// A machine that is busy for a moment makes one silence longer, not all.
			if understated > rounds {
				t.Errorf("of %d silences %d were longer than reported", guests*rounds, understated)
			}
			if overlong > rounds {
				t.Errorf("of %d silences %d contain the cut of another guest", guests*rounds, overlong)
			}
		})
	}
}

// Guests that send to each other: what one sends behind its cut waits at another one
// that is still before its own. What comes from outside passes it.
func TestSilence_EarlyFramesHoldUpNobodyOutside(t *testing.T) {
	defer func(n int) { stoppedAtOnce = n }(stoppedAtOnce)
	stoppedAtOnce = 1
	const guests = 3
	b := newBench(t, guests)
	b.chatty = true
	for i := range guests {
		b.answering(i, false)
	}
	b.saveSlowly()
	o := b.observe(guests)
	understated, overlong, early := 0, 0, uint64(0)
	for epoch := uint64(2); epoch < 5; epoch++ {
		seen, reports := b.cutObserved(o, epoch, api.Cut_CUT_COLOURED, -1)
		for i, r := range reports {
			early = max(early, r.EarlyUs)
			if time.Duration(r.SilentUs)*time.Microsecond+tolerance < seen[i] {
				understated++
			}
			if seen[i] > slowSave+slowSave/2+tolerance {
				overlong++
			}
		}
	}
	if understated > 3 || overlong > 3 {
		t.Errorf("of 9 silences %d were longer than reported, and %d contain the cut of another guest", understated, overlong)
	}
	if early == 0 {
		t.Error("no early frame has waited: the test shows nothing")
	}
}

// A guest that takes no frames drains for long. Meanwhile the others have their turns.
func TestSilence_DeafGuestHoldsNobodyUp(t *testing.T) {
	defer func(n int) { stoppedAtOnce = n }(stoppedAtOnce)
	stoppedAtOnce = 1
	const guests, deaf = 3, 0
	b := newBench(t, guests)
	for i := range guests {
		b.answering(i, i == deaf)
	}
	var cutFirst atomic.Int32 // guests that were cut while the deaf one drained
	for i, m := range b.machines {
		m.onSave = func(context.Context) error {
			if i != deaf {
				cutFirst.Add(1)
			} else if n := cutFirst.Load(); n != guests-1 {
				return fmt.Errorf("%d guests were cut before the deaf one, want all others", n)
			}
			return nil
		}
	}
	o := b.observe(guests)
	seen, reports := b.cutObserved(o, 2, api.Cut_CUT_COLOURED, deaf)
	if r := reports[deaf]; r.UndrainedNics != 1 || time.Duration(r.SilentUs)*time.Microsecond < b.agent.cfg.DrainBudget {
		t.Errorf("report of the deaf guest: %v, want one NIC undrained after %v", r, b.agent.cfg.DrainBudget)
	}
	for i := range guests {
		if i != deaf && seen[i] > b.agent.cfg.DrainBudget/2 {
			t.Errorf("guest %d was silent for %v, as long as the deaf one drained", i, seen[i])
		}
	}
}

var _ io.ReadWriteCloser = (*observer)(nil)
