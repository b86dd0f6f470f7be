package fabric_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"fermata/nodeagent/fabric"
	"fermata/protocol/mustrun"
)

// emulator is a QEMU without disk, kernel or option ROM: its NIC has no driver
// and never a receive buffer.
type emulator struct {
	t   testing.TB
	qmp net.Conn
	in  *bufio.Reader
}

func startQEMU(t *testing.T, mac net.HardwareAddr, guestEnd *os.File) *emulator {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "qmp")
	cmd := exec.Command("qemu-system-x86_64", "-nodefaults", "-display", "none", "-machine", "q35,accel=tcg", "-m", "32",
		"-netdev", "dgram,id=n0,local.type=fd,local.str=3",
		"-device", "virtio-net-pci,netdev=n0,romfile=,mac="+mac.String(),
		"-qmp", "unix:"+socket+",server=on,wait=off")
	cmd.ExtraFiles = []*os.File{guestEnd}
	cmd.Stderr = logWriter{t}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
	})
	e := &emulator{t: t}
	awaitTrue(t, "QMP socket", func() bool {
		conn, err := net.Dial("unix", socket)
		e.qmp = conn
		return err == nil
	})
	t.Cleanup(func() { _ = e.qmp.Close() })
	e.in = bufio.NewReader(e.qmp)
	e.execute("qmp_capabilities")
	return e
}

// execute runs a QMP command and waits for its return.
func (e *emulator) execute(command string) {
	e.t.Helper()
	if err := e.qmp.SetDeadline(time.Now().Add(testBudget)); err != nil {
		e.t.Fatal(err)
	}
	if _, err := fmt.Fprintf(e.qmp, `{"execute":%q}`+"\n", command); err != nil {
		e.t.Fatal(err)
	}
	for {
		line, err := e.in.ReadBytes('\n')
		if err != nil {
			e.t.Fatal(err)
		}
		var answer struct {
			Return json.RawMessage
			Error  json.RawMessage
		}
		if err := json.Unmarshal(line, &answer); err != nil {
			e.t.Fatal(err)
		}
		switch {
		case answer.Error != nil:
			e.t.Fatalf("%s: %s", command, answer.Error)
		case answer.Return != nil:
			return
		}
	}
}

// The facts that Drain, Reclaim and the model in guest_test.go stand on, shown
// on the real thing: QEMU reads one frame and keeps it while the guest has no
// buffer, a stop purges that one, a stopped QEMU reads one more, the rest can be
// taken back, and a sentinel that is read shows that nothing is inside.
func TestQEMU_OneFrameInsideAndStealing(t *testing.T) {
	mustrun.Need(t, mustrun.QEMU)
	n := newNode(t, "n1", nil)
	n.create(1, nil)
	a, _ := n.attach(1, 0, false)
	fabricEnd, guestEnd := mustPair(t)
	port, err := n.fabric.Attach(fabric.PortConfig{
		Cluster: clusterName, Network: "net", Guest: "real", NIC: "nic0",
		MAC: guestMAC(2), FabricEnd: fabricEnd, GuestEnd: guestEnd,
	})
	if err != nil {
		t.Fatal(err)
	}
	e := startQEMU(t, guestMAC(2), guestEnd)

	drain := func(most time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), most)
		defer cancel()
		return port.Drain(ctx)
	}
	gate := func() {
		t.Helper()
		if err := port.Gate(); err != nil {
			t.Fatal(err)
		}
	}

	// Nothing was sent: the sentinel is read, and purged by the stop.
	gate()
	if err := drain(testBudget); err != nil {
		t.Fatalf("drain of a QEMU with nothing inside: %v", err)
	}
	e.execute("stop")
	if k, err := port.Reclaim(); k != 0 || err != nil {
		t.Fatalf("reclaimed %d frames (%v), want none", k, err)
	}
	e.execute("cont")
	port.Ungate()

	// Frame 1 goes inside, 2 to 20 stay in the socket.
	const frames = 20
	for range frames {
		a.send(2, 100)
	}
	awaitTrue(t, "all frames sent", func() bool { return port.Stats().Sent == frames })
	gate()
	if err := drain(50 * time.Millisecond); !errors.Is(err, fabric.ErrUndrained) {
		t.Fatalf("drain of a NIC without a driver: %v, want %v", err, fabric.ErrUndrained)
	}
	e.execute("stop")
	got, err := port.Reclaim()
	if err != nil {
		t.Fatal(err)
	}
	if got != frames-2 {
		t.Errorf("reclaimed %d of %d frames, want all but the purged one and the one read by the stopped QEMU", got, frames)
	}
	// The reclaimed frames are the last ones, in order.
	must(t, n.fabric.BeginCut(clusterName, 2, []string{"n1"}, patience))
	gateAll(t, n)
	for _, p := range append(n.ports, port) {
		must(t, n.fabric.Recolour(budget(t), clusterName, 2, p.Key().Guest))
	}
	must(t, n.fabric.SendMarkers(clusterName, 2))
	state, err := n.fabric.ChannelState(clusterName, 2)
	if err != nil {
		t.Fatal(err)
	}
	for i, b := range state[port.Key()] {
		if s := stampOf(t, b); s.seq != uint64(frames-got+i+1) {
			t.Errorf("reclaimed frame %d is number %d, want %d", i, s.seq, frames-got+i+1)
		}
	}
	n.fabric.EndCut(clusterName, 2)
	e.execute("cont")
	port.Ungate()
	awaitTrue(t, "frames sent again", func() bool { return port.Stats().Waiting == 0 })
}

func gateAll(t *testing.T, n *node) {
	t.Helper()
	for _, p := range n.ports {
		if err := p.Gate(); err != nil {
			t.Fatal(err)
		}
	}
}
