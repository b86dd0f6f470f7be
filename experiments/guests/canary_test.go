package guests

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"fermata/protocol/mustrun"
)

// seat is a network namespace with one TAP device eth0, whose other end we hold,
// and a canary inside. It stands for a guest without the cost of one.
type seat struct {
	tap    *os.File
	report bytes.Buffer // what the canary wrote, valid after wait
	wait   func() error
}

// seatCanary starts the canary of guest index of count in a namespace of its own.
// The namespace ends with the canary and the TAP device.
func seatCanary(t *testing.T, binary string, index, count int) *seat {
	t.Helper()
	s := &seat{}
	cmd := exec.Command(binary, "-i", fmt.Sprint(index), "-c", fmt.Sprint(count), "-n", "10.77.0",
		"-d", "eth0", "-r", "400", "-s", "256", "-w", AllWires, "-t", "1", "-g", "0.5", "-1")
	cmd.Stdout, cmd.Stderr = &s.report, os.Stderr
	s.wait = cmd.Wait
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread dies in its namespace
		started <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("unshare: %w", err)
			}
			var err error
			if s.tap, err = openTAP("eth0"); err != nil {
				return err
			}
			if err := setUpNIC("eth0", Cluster{}.Address(index).String(), MAC(index, 0)); err != nil {
				return err
			}
			return cmd.Start() // a child gets the namespace of the thread
		}()
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.tap.Close()
		if cmd.ProcessState == nil {
			cmd.Process.Kill()
			cmd.Wait()
		}
	})
	return s
}

func openTAP(name string) (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	request, err := unix.NewIfreq(name)
	if err == nil {
		request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("make TAP device: %w", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

func setUpNIC(name, address string, mac []byte) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	addr, err := netlink.ParseAddr(address + "/24")
	if err != nil {
		return err
	}
	return errors.Join(
		netlink.LinkSetHardwareAddr(link, mac),
		netlink.AddrAdd(link, addr),
		netlink.LinkSetUp(link),
	)
}

// injury is what the wire does to one data datagram.
type injury int

const (
	drop injury = iota
	double
	holdBack // behind the next datagram of the same pair
	flip     // a bit
	swap     // two 16-bit words, which leaves the UDP checksum right
	injuries
)

// badWire is a hub between seats that injures every tenth data datagram, and drops
// every fiftieth segment of a stream.
type badWire struct {
	mu       sync.Mutex
	seats    []*seat            // immutable
	data     int                // guarded by mu; data datagrams seen
	segments int                // guarded by mu; of streams
	held     map[[3]byte][]byte // guarded by mu; by payload's place and pair of guests
	done     [injuries]int      // guarded by mu; injuries that took effect
}

// run forwards what seat from sends until its device is closed.
func (w *badWire) run(from int) error {
	frame := make([]byte, 2048)
	for {
		n, err := w.seats[from].tap.Read(frame)
		if errors.Is(err, os.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, f := range w.injure(bytes.Clone(frame[:n])) {
			for to, s := range w.seats {
				if to == from || (f[0]&1 == 0 && int(f[5]) != to+1) {
					continue
				}
				if _, err := s.tap.Write(f); err != nil && !errors.Is(err, os.ErrClosed) {
					return err
				}
			}
		}
	}
}

// payloadOf tells where a frame's datagram begins; 0: it has none that may be injured.
func payloadOf(f []byte) int {
	const udp, bare, udpPort = 42, 14, 36
	switch {
	case len(f) < udp+200:
		return 0
	case binary.BigEndian.Uint16(f[12:]) == 0x88b6:
		return bare
	case binary.BigEndian.Uint16(f[12:]) == 0x0800 && f[23] == unix.IPPROTO_UDP && binary.BigEndian.Uint16(f[udpPort:]) == 7700:
		return udp
	}
	return 0
}

// isSegment tells whether a frame is a TCP segment with data.
func isSegment(f []byte) bool {
	return len(f) > 100 && binary.BigEndian.Uint16(f[12:]) == 0x0800 && f[23] == unix.IPPROTO_TCP
}

// injure returns what becomes of one frame.
func (w *badWire) injure(f []byte) [][]byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	if isSegment(f) {
		if w.segments++; w.segments%50 == 0 {
			return nil
		}
	}
	payload := payloadOf(f)
	if payload == 0 {
		return [][]byte{f}
	}
	pair := [3]byte{byte(payload), f[11], f[5]}
	if before := w.held[pair]; before != nil {
		delete(w.held, pair)
		w.done[holdBack]++
		return [][]byte{f, before}
	}
	w.data++
	if w.data%10 != 0 {
		return [][]byte{f}
	}
	kind := injury(w.data / 10 % int(injuries))
	if kind == holdBack {
		w.held[pair] = f
		return nil
	}
	w.done[kind]++
	switch kind {
	case drop:
		return nil
	case double:
		return [][]byte{f, f}
	case flip:
		f[payload+100] ^= 1
	case swap:
		i := payload + 100
		f[i], f[i+1], f[i+2], f[i+3] = f[i+2], f[i+3], f[i], f[i+1]
	}
	return [][]byte{f}
}

// TestCanary_CountsEveryInjury proves that the canary's account is exact: on a
// wire that injures known numbers of datagrams it reports these numbers.
func TestCanary_CountsEveryInjury(t *testing.T) {
	mustrun.Need(t, mustrun.NetNS, mustrun.GuestImage)
	dir, err := mustrun.GuestDir()
	if err != nil {
		t.Fatal(err)
	}
	const count = 3
	w := &badWire{held: map[[3]byte][]byte{}}
	for i := range count {
		w.seats = append(w.seats, seatCanary(t, filepath.Join(dir, "canary"), i+1, count))
	}
	var hub sync.WaitGroup
	for i := range w.seats {
		hub.Go(func() {
			if err := w.run(i); err != nil {
				t.Errorf("wire of guest %d: %v", i+1, err)
			}
		})
	}
	consoles := map[string]io.Reader{}
	for i, s := range w.seats {
		if err := s.wait(); err != nil {
			t.Errorf("canary of guest %d: %v", i+1, err)
		}
		consoles[Name(i+1)] = &s.report
	}
	for _, s := range w.seats {
		s.tap.Close()
	}
	hub.Wait()

	got, err := Summarise(consoles)
	if err != nil {
		t.Fatal(err)
	}
	if !got.CanaryComplete {
		t.Fatalf("not complete: %+v", got)
	}
	// What was held back to the end never came.
	w.done[drop] += len(w.held)
	want := Totals{
		Sent:      got.Totals.Sent,
		Lost:      int64(w.done[drop] + w.done[flip] + w.done[swap]),
		Doubled:   uint64(w.done[double]),
		Reordered: uint64(w.done[holdBack]),
		Corrupt:   uint64(w.done[flip] + w.done[swap]),
	}
	want.Received = want.Sent - uint64(want.Lost)
	if got.Totals != want {
		t.Errorf("totals\n got %+v\nwant %+v", got.Totals, want)
	}
	for kind, n := range w.done {
		if n == 0 {
			t.Errorf("injury %d never happened: the test proves nothing", kind)
		}
	}
	again := uint64(0)
	for pair, f := range got.Pairs {
		if f.Sent == 0 || pair.Wire == "tcp" && f.Lost != 0 {
			t.Errorf("%+v: %+v", pair, f)
		}
	}
	for guest, k := range got.Kernel {
		again += k.TCPRetransmits
		if k.UDPReceiveBuffer != 0 || k.DeviceRxDropped != 0 || k.DeviceTxDropped != 0 {
			t.Errorf("kernel of %s dropped: %+v", guest, k)
		}
	}
	if again == 0 {
		t.Error("no kernel sent a segment again, though some were dropped")
	}
}
