package trials

import (
	"bytes"
	"encoding/binary"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"fermata/protocol/mustrun"
	"fermata/vmm/vmmtest"
)

// observer stands on the wire of a guest that answers every frame, and knows of
// nothing else: no agent, no monitor, no clock but its own.
type observer struct {
	conn *net.UnixConn
	stop chan struct{}
	work sync.WaitGroup

	mu      sync.Mutex
	last    time.Time     // guarded by mu; of the newest answer
	longest time.Duration // guarded by mu; between two answers, since the last look
}

// observe begins to send a frame each 200 µs.
func observe(t *testing.T, here, there string) *observer {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: here, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	o := &observer{conn: conn, stop: make(chan struct{}), last: time.Now()}
	o.work.Go(func() {
		// Addresses do not matter on a wire of two.
		frame := make([]byte, 60)
		copy(frame, []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2})
		binary.BigEndian.PutUint16(frame[12:], vmmtest.FrameType)
		to := &net.UnixAddr{Name: there, Net: "unixgram"}
		tick := time.NewTicker(200 * time.Microsecond)
		defer tick.Stop()
		for n := uint64(0); ; n++ {
			select {
			case <-o.stop:
				return
			case <-tick.C:
			}
			binary.BigEndian.PutUint64(frame[14:], n)
			_ = conn.SetWriteDeadline(time.Now().Add(time.Millisecond)) // a guest that stands still takes few
			_, _ = conn.WriteTo(frame, to)
		}
	})
	o.work.Go(func() {
		b := make([]byte, 2048)
		for {
			n, err := conn.Read(b)
			if err != nil {
				return
			}
			if n < 14 || binary.BigEndian.Uint16(b[12:]) != vmmtest.FrameType {
				continue
			}
			now := time.Now()
			o.mu.Lock()
			o.longest = max(o.longest, now.Sub(o.last))
			o.last = now
			o.mu.Unlock()
		}
	})
	t.Cleanup(func() {
		close(o.stop)
		_ = conn.Close()
		o.work.Wait()
	})
	return o
}

// silence is the longest time without an answer since it was asked last.
func (o *observer) silence() time.Duration {
	o.mu.Lock()
	defer o.mu.Unlock()
	d := max(o.longest, time.Since(o.last))
	o.longest = 0
	return d
}

// TestPause_IsWhatTheWireSees compares the pauses that checkpoints report with the
// silence of the guest on its own wire.
func TestPause_IsWhatTheWireSees(t *testing.T) {
	mustrun.Need(t, mustrun.QEMU, mustrun.NetNS, mustrun.GuestImage, mustrun.UFFD)
	r := newRig(t, 1)
	r.start()
	dir := t.TempDir()
	program := filepath.Join(dir, "program")
	if err := os.WriteFile(program, vmmtest.Program(), 0o600); err != nil {
		t.Fatal(err)
	}
	socket, console, near, far := filepath.Join(dir, "qmp"), filepath.Join(dir, "console"), filepath.Join(dir, "near"), filepath.Join(dir, "far")
	cmd := exec.Command("qemu-system-x86_64", "-accel", "tcg", "-machine", "pc-q35-7.2", "-cpu", "qemu64", "-m", "16", "-display", "none",
		"-kernel", program, "-serial", "file:"+console, "-qmp", "unix:"+socket+",server=on,wait=off",
		"-netdev", "dgram,id=n,local.type=unix,local.path="+far+",remote.type=unix,remote.path="+near,
		"-device", "virtio-net-pci,netdev=n,mac=02:00:00:00:00:01,bus=pcie.0,addr=0x10,romfile=")
	var said bytes.Buffer
	cmd.Stderr = &said
	o := observe(t, near, far)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("QEMU said: %s", said.Bytes())
		}
	})
	for deadline := time.Now().Add(stepBudget); ; { // polls, with a deadline
		time.Sleep(200 * time.Millisecond)
		if o.silence() < 50*time.Millisecond {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the guest does not answer on its wire")
		}
	}
	r.must(nil, "adopt", r.cluster, "g1=n1:"+socket)
	var more, less []time.Duration
	for range 20 {
		time.Sleep(200 * time.Millisecond)
		quiet := o.silence() // what the wire is like without a checkpoint
		var rep struct {
			Guests []struct {
				PhasesUS map[string]int64 `json:"phases_us"`
				PauseMS  float64          `json:"pause_ms"`
			} `json:"guests"`
		}
		r.must(&rep, "checkpoint", r.cluster, "--mode", "live", "-o", "json")
		seen := o.silence()
		g := rep.Guests[0]
		reported := time.Duration(g.PauseMS * float64(time.Millisecond))
		// Within its first and last phase the guest still runs, or runs already.
		edges := time.Duration(g.PhasesUS["stop"]+g.PhasesUS["continue"]) * time.Microsecond
		t.Logf("reported %v (of it stopping and continuing %v), seen %v, without a checkpoint %v", reported, edges, seen, quiet)
		more = append(more, seen-reported-quiet)
		less = append(less, reported-edges-seen)
	}
	slices.Sort(more)
	slices.Sort(less)
	// Medians: a busy machine makes a wire silent for reasons of its own.
	if m := more[len(more)/2]; m > 5*time.Millisecond {
		t.Errorf("the wire is silent for %v longer than reported", m)
	}
	if m := less[len(less)/2]; m > 5*time.Millisecond {
		t.Errorf("the pause is reported %v longer than the wire is silent", m)
	}
	r.must(nil, "release", r.cluster)
}
