package fabric_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"fermata/nodeagent/fabric"

	"golang.org/x/sys/unix"
)

// The frames of test guests, after the Ethernet header: who sent it, to whom,
// and its number among all that the sender sent.
const (
	etherTypeTest = 0x88B6
	testHeader    = 14 + 12
	everybody     = 0xffff
)

// guestMAC is the address of the guest with number id.
func guestMAC(id int) net.HardwareAddr {
	return net.HardwareAddr{0x52, 0x54, 0, 0, byte(id >> 8), byte(id)}
}

// testFrame builds frame number seq from guest src to guest dst (or everybody).
func testFrame(src, dst int, seq uint64, size int) []byte {
	b := make([]byte, max(size, testHeader))
	copy(b, guestMAC(dst))
	if dst == everybody {
		copy(b, bytes.Repeat([]byte{0xff}, 6))
	}
	copy(b[6:], guestMAC(src))
	binary.BigEndian.PutUint16(b[12:], etherTypeTest)
	binary.BigEndian.PutUint16(b[14:], uint16(src))
	binary.BigEndian.PutUint16(b[16:], uint16(dst))
	binary.BigEndian.PutUint64(b[18:], seq)
	for fill := b[testHeader:]; len(fill) > 0; {
		fill = fill[copy(fill, filling[seq%256:]):]
	}
	return b
}

// filling is what test frames are filled with, from a place that depends on
// their number.
var filling = func() []byte {
	b := make([]byte, 4096)
	for i := range b {
		b[i] = byte(i) ^ byte(i>>8)
	}
	return b
}()

// stamp is a test frame as logs keep it.
type stamp struct {
	src, dst int
	seq      uint64
	size     int
}

func (s stamp) String() string { return fmt.Sprintf("%d→%d #%d (%d B)", s.src, s.dst, s.seq, s.size) }

// stampOf reads a test frame back and checks every byte of it.
func stampOf(t testing.TB, b []byte) stamp {
	t.Helper()
	if len(b) < testHeader || binary.BigEndian.Uint16(b[12:]) != etherTypeTest {
		t.Errorf("not a test frame: % x", b[:min(len(b), 32)])
		return stamp{}
	}
	s := stamp{
		src:  int(binary.BigEndian.Uint16(b[14:])),
		dst:  int(binary.BigEndian.Uint16(b[16:])),
		seq:  binary.BigEndian.Uint64(b[18:]),
		size: len(b),
	}
	if !bytes.Equal(b, testFrame(s.src, s.dst, s.seq, s.size)) {
		t.Errorf("frame %v was changed on its way", s)
	}
	return s
}

// guest stands for QEMU's dgram netdev, a NIC model and the driver behind it.
// It does what QEMU 7.2 does (TestQEMU_OneFrameInsideAndStealing holds it to it):
//
//   - reads one datagram at a time, and none while it keeps one inside;
//   - keeps a frame inside when the guest is stopped or its ring has no room;
//   - a stop places the kept frame if there is room and purges it if not;
//     it then reads one more, since nothing is kept any more;
//   - the device filters by address, but only after it has asked for room;
//   - a frame that does not fit into the socket is kept, and purged by a stop.
type guest struct {
	t    testing.TB
	id   int
	mac  net.HardwareAddr
	file *os.File // a descriptor of the guest end of its own, as QEMU has
	raw  syscall.RawConn

	readers sync.WaitGroup

	mu       sync.Mutex
	changed  sync.Cond // on mu
	closed   bool
	running  bool
	deaf     bool   // no driver: never any room
	room     int    // free receive buffers
	ring     int    // what a refill gives; 0: endless room
	kept     []byte // the frame inside, or nil
	purged   int    // frames lost inside QEMU
	received []stamp
	sent     []stamp
	txFull   []byte // frame that is being sent, or nil
	held     bool   // it did not fit into the socket
	seq      uint64
}

// newGuest makes a running guest on the guest end. ring is the number of its
// receive buffers, refilled a random time after they ran out; 0 means endless.
func newGuest(t testing.TB, id int, guestEnd *os.File, ring int) *guest {
	t.Helper()
	var fd int
	raw, err := guestEnd.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var derr error
	err = raw.Control(func(orig uintptr) {
		fd, derr = unix.FcntlInt(orig, unix.F_DUPFD_CLOEXEC, 0)
		if derr == nil {
			derr = unix.SetNonblock(fd, true) // as QEMU does, for all descriptors of the socket
		}
	})
	if err != nil || derr != nil {
		t.Fatal(err, derr)
	}
	g := &guest{t: t, id: id, mac: guestMAC(id), file: os.NewFile(uintptr(fd), "qemu"), running: true, room: ring, ring: ring}
	g.changed.L = &g.mu
	if g.raw, err = g.file.SyscallConn(); err != nil {
		t.Fatal(err)
	}
	g.readers.Go(g.read)
	t.Cleanup(g.kill)
	return g
}

// kill ends the guest as a killed QEMU ends.
func (g *guest) kill() {
	g.mu.Lock()
	g.closed = true
	g.changed.Broadcast()
	g.mu.Unlock()
	_ = g.file.Close()
	g.readers.Wait()
}

// read is the netdev's handler: each datagram is read and dealt with at once,
// as the main loop of QEMU does, so that stop comes before or after.
func (g *guest) read() {
	buf := make([]byte, fabric.MaxFrame)
	for {
		g.mu.Lock()
		for g.kept != nil && !g.closed {
			g.changed.Wait()
		}
		g.mu.Unlock()
		err := g.raw.Read(func(fd uintptr) bool {
			g.mu.Lock()
			defer g.mu.Unlock()
			if g.closed || g.kept != nil {
				return true
			}
			n, err := unix.Read(int(fd), buf)
			switch {
			case err == unix.EAGAIN:
				return false
			case err != nil:
				g.t.Errorf("guest %d: read: %v", g.id, err)
				g.closed = true
			case n == 0:
				g.t.Errorf("guest %d: datagram of no bytes, which ends QEMU's netdev", g.id)
			case g.hasRoom():
				g.place(buf[:n])
			default:
				g.kept = bytes.Clone(buf[:n])
			}
			return true
		})
		if err != nil {
			return
		}
		g.mu.Lock()
		closed := g.closed
		g.mu.Unlock()
		if closed {
			return
		}
	}
}

func (g *guest) hasRoom() bool { return g.running && !g.deaf && (g.ring == 0 || g.room > 0) }

// isForMe is the device's address filter.
func (g *guest) isForMe(b []byte) bool { return b[0]&1 == 1 || bytes.Equal(b[:6], g.mac) }

// place puts a frame into the receive ring, unless the filter takes it out.
func (g *guest) place(b []byte) {
	if !g.isForMe(b) {
		return
	}
	g.received = append(g.received, stampOf(g.t, b))
	g.changed.Broadcast()
	if g.ring == 0 {
		return
	}
	if g.room--; g.room == 0 {
		time.AfterFunc(time.Duration(rand.IntN(300))*time.Microsecond, g.refill)
	}
}

// refill is the driver giving new buffers; a stopped guest does it when it runs.
func (g *guest) refill() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for !g.running && !g.closed {
		g.changed.Wait()
	}
	g.room = g.ring
	g.flush()
}

// flush places the kept frame if it can.
func (g *guest) flush() {
	if g.kept != nil && g.hasRoom() {
		b := g.kept
		g.kept = nil
		g.place(b)
	}
	g.changed.Broadcast()
}

// stop is QMP stop.
func (g *guest) stop() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.flush()
	g.running = false
	if g.kept != nil {
		if g.isForMe(g.kept) { // a sentinel is no loss
			g.purged++
		}
		g.kept = nil
	}
	if g.txFull != nil {
		g.txFull = nil
		g.purged++
	}
	g.changed.Broadcast()
}

// cont is QMP cont.
func (g *guest) cont() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.running = true
	g.flush()
}

// send sends one frame when the guest runs. It returns false when the guest is killed.
func (g *guest) send(dst, size int) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	for !g.running && !g.closed {
		g.changed.Wait()
	}
	if g.closed {
		return false
	}
	g.seq++
	g.txFull = testFrame(g.id, dst, g.seq, size)
	g.sent = append(g.sent, stamp{src: g.id, dst: dst, seq: g.seq, size: max(size, testHeader)})
	for g.txFull != nil {
		err := g.writeOne(g.txFull)
		g.held = err == unix.EAGAIN
		if err == nil {
			g.txFull = nil
			break
		}
		if err != unix.EAGAIN {
			g.t.Errorf("guest %d: send: %v", g.id, err)
			return false
		}
		// QEMU waits for the socket; a stop may purge the frame meanwhile.
		g.mu.Unlock()
		timer := time.NewTimer(50 * time.Microsecond)
		<-timer.C
		g.mu.Lock()
		if g.closed {
			return false
		}
	}
	return true
}

func (g *guest) writeOne(b []byte) (err error) {
	if cerr := g.raw.Control(func(fd uintptr) { _, err = unix.Write(int(fd), b) }); cerr != nil {
		return cerr
	}
	return err
}

// point is what a guest has sent and received at one instant.
type point struct{ sent, received []stamp }

func (g *guest) now() point {
	g.mu.Lock()
	defer g.mu.Unlock()
	return point{sent: slices.Clone(g.sent), received: slices.Clone(g.received)}
}

// await waits until cond holds of the guest, looking after each change.
func (g *guest) await(what string, cond func(received []stamp) bool) {
	g.t.Helper()
	deadline := time.AfterFunc(testBudget, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.changed.Broadcast()
	})
	defer deadline.Stop()
	begun := time.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	for !cond(g.received) {
		if time.Since(begun) >= testBudget {
			g.t.Fatalf("guest %d: not within %s: %s (has %d frames)", g.id, testBudget, what, len(g.received))
		}
		g.changed.Wait()
	}
}
