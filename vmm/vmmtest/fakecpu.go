package vmmtest

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"fermata/vmm"
)

// fakeStep is how often the fake counts: as often as Program.
const fakeStep = time.Millisecond

// registers is what the fake has outside RAM: its device state.
type registers struct {
	Begun  bool
	Count  uint32
	Echoed uint32
	Halted bool // a self-check failed

	// Unsent are answers that found the socket full, by card; they go first.
	Unsent map[string][][]byte `json:",omitempty"`
}

// A fake's device state is a magic, the registers as JSON and a digest of both.
const registersMagic = "FAKEDEVS"

func (r registers) encode() ([]byte, error) {
	body, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	b := append([]byte(registersMagic), body...)
	sum := sha256.Sum256(b)
	return append(b, sum[:]...), nil
}

func decodeRegisters(b []byte) (registers, error) {
	body, ok := bytes.CutPrefix(b, []byte(registersMagic))
	if !ok || len(body) < sha256.Size {
		return registers{}, fmt.Errorf("not a fake's state: %w", vmm.ErrCorrupt)
	}
	end := len(b) - sha256.Size
	if sum := sha256.Sum256(b[:end]); !bytes.Equal(sum[:], b[end:]) {
		return registers{}, fmt.Errorf("digest differs: %w", vmm.ErrCorrupt)
	}
	var r registers
	if err := json.Unmarshal(body[:len(body)-sha256.Size], &r); err != nil {
		return registers{}, fmt.Errorf("%w: %w", vmm.ErrCorrupt, err)
	}
	return r, nil
}

// run is the vCPU: the only goroutine that touches RAM, console and frames. A
// broken file of its own ends the machine's work as a broken host would.
func (g *fakeGuest) run() {
	tick := time.NewTicker(fakeStep)
	defer tick.Stop()
	for {
		select {
		case <-g.quit:
			return
		case <-tick.C:
		}
		g.mu.Lock()
		if g.status == vmm.StatusRunning {
			if err := g.step(); err != nil {
				g.status = vmm.StatusFailed
			}
		}
		g.mu.Unlock()
	}
}

// step does what one step of Program does. The caller holds mu.
func (g *fakeGuest) step() error {
	r := &g.registers
	if r.Halted {
		return nil
	}
	if !r.Begun {
		if err := g.begin(); err != nil {
			return err
		}
		r.Begun = true
	}
	for i := range g.nics {
		if err := g.answer(&g.nics[i]); err != nil {
			return err
		}
	}
	consistent, err := g.consistent()
	if err != nil {
		return err
	}
	letter := "C"
	if consistent {
		r.Count++
		if err := g.store(); err != nil {
			return err
		}
	} else {
		letter, r.Halted = "B", true
	}
	_, err = fmt.Fprintf(g.out, "%s %08x\n", letter, r.Count)
	return err
}

func (g *fakeGuest) begin() error {
	if _, err := g.ram.WriteAt([]byte(counterID), counterAt); err != nil {
		return err
	}
	return g.store()
}

// consistent is Program's self-check: registers against RAM.
func (g *fakeGuest) consistent() (bool, error) {
	var state [20]byte
	var page [4]byte
	next := g.registers.Count + 1
	if _, err := g.ram.ReadAt(state[:], counterAt); err != nil {
		return false, err
	}
	if _, err := g.ram.ReadAt(page[:], ringOffset(next)); err != nil {
		return false, err
	}
	var lastRound uint32
	if next > ringPages {
		lastRound = next - ringPages
	}
	return string(state[:8]) == counterID &&
		binary.LittleEndian.Uint32(state[8:]) == g.registers.Count &&
		binary.LittleEndian.Uint32(state[12:]) == ^g.registers.Count &&
		binary.LittleEndian.Uint32(page[:]) == lastRound, nil
}

// store puts the registers into RAM.
func (g *fakeGuest) store() error {
	r := g.registers
	var state [12]byte
	binary.LittleEndian.PutUint32(state[0:], r.Count)
	binary.LittleEndian.PutUint32(state[4:], ^r.Count)
	binary.LittleEndian.PutUint32(state[8:], r.Echoed)
	if _, err := g.ram.WriteAt(state[:], counterAt+8); err != nil {
		return err
	}
	if r.Count == 0 {
		return nil
	}
	_, err := g.ram.WriteAt(binary.LittleEndian.AppendUint32(nil, r.Count), ringOffset(r.Count))
	return err
}

func ringOffset(count uint32) int64 { return ringAt + int64(count%ringPages)*pageSize }

// answer sends what could not be sent before, then takes and answers frames
// until there are none or the socket is full.
func (g *fakeGuest) answer(n *FakeNIC) error {
	r := &g.registers
	for {
		for len(r.Unsent[n.Name]) > 0 {
			sent, err := attempt(n.File, func(fd int) error {
				_, err := unix.Write(fd, r.Unsent[n.Name][0])
				return err
			})
			if !sent {
				return err
			}
			r.Unsent[n.Name] = r.Unsent[n.Name][1:]
			r.Echoed++
		}
		frame := make([]byte, 64<<10)
		var size int
		received, err := attempt(n.File, func(fd int) error {
			var err error
			size, err = unix.Read(fd, frame)
			return err
		})
		if !received {
			return err
		}
		if frame = frame[:size]; size < 14 || binary.BigEndian.Uint16(frame[12:]) != FrameType {
			continue
		}
		swapAddresses(frame)
		if r.Unsent == nil {
			r.Unsent = make(map[string][][]byte)
		}
		r.Unsent[n.Name] = append(r.Unsent[n.Name], frame)
	}
}

// attempt does one operation on a non-blocking socket; false without an error
// means that it would have had to wait.
func attempt(f *os.File, op func(fd int) error) (bool, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return false, err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = op(int(fd)) }); err != nil {
		return false, err
	}
	switch {
	case inner == nil:
		return true, nil
	case errors.Is(inner, unix.EAGAIN), errors.Is(inner, unix.ENOBUFS), errors.Is(inner, unix.EINTR):
		return false, nil
	default:
		return false, inner
	}
}
