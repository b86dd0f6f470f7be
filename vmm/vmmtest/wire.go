package vmmtest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// frameBytes is the shortest Ethernet frame without its checksum; drivers pad
// shorter ones, and the answer would not be equal.
const frameBytes = 60

var (
	switchMAC = [6]byte{0x02, 0, 0, 0, 0, 0xfe}
	guestMAC  = [6]byte{0x02, 0, 0, 0, 0, 0x01}
)

const guestMACText = "02:00:00:00:00:01"

// wire is the switch's end of the guest's network card.
type wire struct{ f *os.File }

// send writes numbered frames. It waits while the card's socket is full, up to
// the budget.
func (w wire) send(numbers ...uint32) error {
	if err := w.f.SetWriteDeadline(time.Now().Add(budget)); err != nil {
		return err
	}
	for _, n := range numbers {
		if _, err := w.f.Write(numberedFrame(n)); err != nil {
			return fmt.Errorf("send frame %d: %w", n, err)
		}
	}
	return nil
}

// expect reads the answers to numbered frames, in order, and nothing else.
func (w wire) expect(numbers ...uint32) error {
	for _, want := range numbers {
		got, err := w.receive(budget)
		if err != nil {
			return fmt.Errorf("answer to frame %d: %w", want, err)
		}
		if got != want {
			return fmt.Errorf("answer to frame %d, want %d", got, want)
		}
	}
	return nil
}

// silent reports an error when an answer comes within d.
func (w wire) silent(d time.Duration) error {
	n, err := w.receive(d)
	if err == nil {
		return fmt.Errorf("answer to frame %d from a guest that stands still", n)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	return err
}

// receive reads one answer and checks it whole.
func (w wire) receive(d time.Duration) (uint32, error) {
	if err := w.f.SetReadDeadline(time.Now().Add(d)); err != nil {
		return 0, err
	}
	b := make([]byte, 2*frameBytes)
	n, err := w.f.Read(b)
	if err != nil {
		return 0, err
	}
	b = b[:n]
	if n != frameBytes {
		return 0, fmt.Errorf("a frame of %d bytes", n)
	}
	number := binary.BigEndian.Uint32(b[14:])
	want := numberedFrame(number)
	swapAddresses(want)
	if string(b) != string(want) {
		return 0, fmt.Errorf("frame % x, want % x", b, want)
	}
	return number, nil
}

// queued is how many bytes the machine has not yet taken.
func (w wire) queued() (int, error) {
	raw, err := w.f.SyscallConn()
	if err != nil {
		return 0, err
	}
	var n int
	var inner error
	if err := raw.Control(func(fd uintptr) { n, inner = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) }); err != nil {
		return 0, err
	}
	return n, inner
}

func numberedFrame(n uint32) []byte {
	b := make([]byte, frameBytes)
	copy(b, guestMAC[:])
	copy(b[6:], switchMAC[:])
	binary.BigEndian.PutUint16(b[12:], FrameType)
	binary.BigEndian.PutUint32(b[14:], n)
	for i := 18; i < len(b); i++ {
		b[i] = byte(n) + byte(i)
	}
	return b
}

func swapAddresses(frame []byte) {
	var dst [6]byte
	copy(dst[:], frame)
	copy(frame, frame[6:12])
	copy(frame[6:12], dst[:])
}

// sequence returns the numbers from first to last.
func sequence(first, last uint32) []uint32 {
	var out []uint32
	for n := first; n <= last; n++ {
		out = append(out, n)
	}
	return out
}
