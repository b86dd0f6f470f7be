package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"fermata/vmm/vmmtest"
)

// end is where the generator sends and receives whole frames. Receive returns
// unix.EAGAIN when nothing has come for idle.
type end interface {
	send(frame []byte) error
	receive(buf []byte) (int, error)
	close() error
}

// idle is how long an end waits for a frame before it says that there is none.
const idle = 50 * time.Millisecond

// line is an arm that is up: frames sent at near arrive at far, or come back to near
// when far is nil.
type line struct {
	near, far end
	ends      []func() error // what else ends with it, in order
}

func (l *line) close() error {
	errs := []error{l.near.close()}
	if l.far != nil {
		errs = append(errs, l.far.close())
	}
	for _, end := range l.ends {
		errs = append(errs, end())
	}
	return errors.Join(errs...)
}

// Addresses of the generator's ends.
var (
	nearMAC = []byte{0x02, 0, 0, 0, 0, 0xfe}
	farMAC  = []byte{0x02, 0, 0, 0, 0, 0x01}
)

func newFrame(size int, from, to []byte) []byte {
	b := make([]byte, size)
	copy(b, to)
	copy(b[6:], from)
	binary.BigEndian.PutUint16(b[12:], vmmtest.FrameType)
	return b
}

// ours tells the generator's frames from others on the line.
func ours(b []byte) bool { return len(b) >= 18 && binary.BigEndian.Uint16(b[12:]) == vmmtest.FrameType }

// receiveOurs returns the number of the next frame of the generator.
func receiveOurs(e end, buf []byte) (uint32, error) {
	for {
		n, err := e.receive(buf)
		if err != nil {
			return 0, err
		}
		if ours(buf[:n]) {
			return binary.BigEndian.Uint32(buf[14:]), nil
		}
	}
}

// awaitOurs is receiveOurs for a frame that is on its way: it waits for up to settle.
func awaitOurs(e end, buf []byte) (number uint32, err error) {
	for begun := time.Now(); ; {
		number, err = receiveOurs(e, buf)
		if !errors.Is(err, unix.EAGAIN) || time.Since(begun) > settle {
			return number, err
		}
	}
}

// patience bounds the wait for the first frame to come through: a guest boots.
const patience = 20 * time.Second

// roundTrip sends one frame at a time for some time, and returns the median of how
// long they took there and back.
func (l *line) roundTrip(ctx context.Context, size int, length time.Duration) (time.Duration, error) {
	frame, back, buf := newFrame(size, nearMAC, farMAC), newFrame(size, farMAC, nearMAC), make([]byte, 1<<16)
	var number uint32
	trip := func(receive func(end, []byte) (uint32, error)) error {
		number++
		binary.BigEndian.PutUint32(frame[14:], number)
		if err := l.near.send(frame); err != nil {
			return err
		}
		if l.far != nil {
			if _, err := receive(l.far, buf); err != nil {
				return err
			}
			binary.BigEndian.PutUint32(back[14:], number)
			if err := l.far.send(back); err != nil {
				return err
			}
		}
		for {
			got, err := receive(l.near, buf)
			if err != nil || got == number {
				return err
			}
		}
	}
	for begun := time.Now(); ; {
		err := trip(receiveOurs) // and send again: a line that comes up may drop some
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EAGAIN) || time.Since(begun) > patience {
			return 0, fmt.Errorf("first frame: %w", err)
		}
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
	}
	var trips []time.Duration
	for begun := time.Now(); time.Since(begun) < length; {
		sent := time.Now()
		if err := trip(awaitOurs); err != nil {
			return 0, err
		}
		trips = append(trips, time.Since(sent))
	}
	slices.Sort(trips)
	return trips[len(trips)/2], ctx.Err()
}

// settle is how long nothing must come for what is missing to be lost: a guest may get
// no processor for a while.
const settle = time.Second

// load is what a line did under load.
type load struct {
	sent, arrived uint64
	took, cpu     time.Duration
}

// arrivals is what came at the end of a line under load.
type arrivals struct {
	n    uint64
	last time.Time
	busy time.Duration // of the machine, when nothing came any more
	err  error
}

// countArrivals counts until all have come that were sent, as stop tells, or what is
// missing is lost.
func countArrivals(from end, stop <-chan uint64) (c arrivals) {
	opened := time.Now()
	var sent uint64
	stopped, quiet := false, time.Time{} // since when nothing comes; zero: it does
	buf := make([]byte, 1<<16)
	for {
		_, err := receiveOurs(from, buf)
		switch {
		case err == nil:
			c.n++
			if c.n%256 == 0 {
				c.last = time.Now()
			}
			quiet = time.Time{}
			continue
		case !errors.Is(err, unix.EAGAIN):
			c.err = err
			return c
		}
		if !stopped {
			select {
			case sent = <-stop:
				stopped = true
			default:
			}
			continue
		}
		if quiet.IsZero() {
			quiet = time.Now()
			if c.busy, c.err = machineTime(); c.err != nil {
				return c
			}
		}
		noTurnYet := c.n == 0 && time.Since(opened) < patience
		if c.n >= sent || time.Since(quiet) > settle && !noTurnYet {
			return c
		}
	}
}

// load sends as many frames as the line takes for some time.
func (l *line) load(ctx context.Context, size int, length time.Duration) (load, error) {
	arriving := l.far
	if arriving == nil {
		arriving = l.near
	}
	// A first trip that was tried again has left frames on the line.
	for buf, err := make([]byte, 1<<16), error(nil); !errors.Is(err, unix.EAGAIN); {
		if _, err = receiveOurs(arriving, buf); err != nil && !errors.Is(err, unix.EAGAIN) {
			return load{}, err
		}
	}
	counted, stop := make(chan arrivals, 1), make(chan uint64, 1) // stop is told how many were sent
	go func() { counted <- countArrivals(arriving, stop) }()
	frame := newFrame(size, nearMAC, farMAC)
	busy, err := machineTime()
	if err != nil {
		return load{}, err
	}
	var sent uint64
	begun := time.Now()
	for time.Since(begun) < length && err == nil {
		for range 64 {
			binary.BigEndian.PutUint32(frame[14:], uint32(sent))
			if err = l.near.send(frame); err != nil {
				break
			}
			sent++
		}
	}
	stop <- sent
	c := <-counted
	if err := errors.Join(err, c.err, ctx.Err()); err != nil {
		return load{}, err
	}
	took := max(length, c.last.Sub(begun))
	return load{sent: sent, arrived: c.n, took: took, cpu: c.busy - busy}, nil
}

// machineTime is how long the processors of the machine have worked, in all: what
// the kernel does for a frame outside of any process counts, too.
func machineTime() (time.Duration, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(string(b), "\n")
	fields := strings.Fields(line) // cpu user nice system idle iowait irq softirq …: proc_stat(5)
	if len(fields) < 8 {
		return 0, fmt.Errorf("read /proc/stat: %q", line)
	}
	var ticks uint64
	for _, i := range []int{1, 2, 3, 6, 7} {
		n, err := strconv.ParseUint(fields[i], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read /proc/stat: %w", err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond, nil // USER_HZ is 100
}
