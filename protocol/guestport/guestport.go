// Package guestport is what a program in a guest and the agent of its node say to
// each other: which of the guest's memory is confidential, and whether the guest
// was restarted. They speak by a virtio-serial port, a line of JSON each way: the
// program asks, the agent answers, in the order asked.
//
// An answer to Hide means that the memory is in no checkpoint whose cut comes
// after it, and is read by nobody. So a program asks first, waits for the answer,
// and then writes what is secret.
package guestport

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

const (
	// PortName is the name of the port; a guest finds it at Device.
	PortName = "org.fermata.guest.0"
	// Device is where Linux has the port, with udev's links or by hand.
	Device = "/dev/virtio-ports/" + PortName

	// MaxLine bounds a line, in bytes: a guest may say anything.
	MaxLine = 128 << 10
	// MaxRanges bounds the ranges of one request and of one guest.
	MaxRanges = 1024
	// PageBytes is the unit of ranges.
	PageBytes = 4096
)

// Verb is what is asked for.
type Verb string

const (
	Status Verb = "status" // only the answer
	Hide   Verb = "hide"   // make ranges confidential; those that are so already stay so
	Show   Verb = "show"   // make ranges ordinary memory again
)

// Range is guest-physical memory, whole pages.
type Range struct {
	Start uint64 `json:"start"` // address
	Bytes uint64 `json:"bytes"`
}

// Request is one line to the agent.
type Request struct {
	ID     string  `json:"id"` // of the caller's choice; comes back
	Do     Verb    `json:"do"`
	Ranges []Range `json:"ranges,omitempty"`
}

// Reply is one line from the agent.
type Reply struct {
	ID    string `json:"id"`
	Error string `json:"error,omitempty"` // then nothing was changed
	// Life is the epoch in which the guest began to run, from nothing or from a
	// checkpoint: it is another one after each restart. Zeroed was confidential in the
	// checkpoint and reads as zeros since then, unless written to.
	Life   uint64  `json:"life"`
	Zeroed []Range `json:"zeroed,omitempty"`
	// Ranges is what is confidential now, whether the guest has asked for it or the
	// cluster's specification.
	Ranges []Range `json:"ranges,omitempty"`
}

// Validate checks what a guest asks for.
func (r *Request) Validate() error {
	switch {
	case r.Do != Status && r.Do != Hide && r.Do != Show:
		return fmt.Errorf("verb %.40q: want %s, %s or %s", r.Do, Status, Hide, Show)
	case len(r.ID) > 64:
		return errors.New("id: more than 64 bytes")
	case r.Do == Status && len(r.Ranges) > 0, r.Do != Status && len(r.Ranges) == 0, len(r.Ranges) > MaxRanges:
		return fmt.Errorf("%s of %d ranges", r.Do, len(r.Ranges))
	}
	for _, m := range r.Ranges {
		if m.Bytes == 0 || m.Start%PageBytes != 0 || m.Bytes%PageBytes != 0 || m.Start > 1<<52 || m.Bytes > 1<<52 {
			return fmt.Errorf("range %#x, %d bytes: not whole pages of %d bytes", m.Start, m.Bytes, PageBytes)
		}
	}
	return nil
}

// Write writes one line.
func Write(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(b) >= MaxLine {
		return fmt.Errorf("line of %d bytes, limit %d", len(b), MaxLine)
	}
	_, err = w.Write(append(b, '\n'))
	return err
}

// NewReader reads lines of what w writes.
func NewReader(r io.Reader) *bufio.Reader { return bufio.NewReaderSize(r, MaxLine) }

// ErrNoJSON says that a line was none of ours; the next one may be.
var ErrNoJSON = errors.New("not a line of JSON")

// Read reads one line into v. A line that is too long ends the conversation.
func Read(r *bufio.Reader, v any) error {
	line, err := r.ReadSlice('\n')
	if err != nil {
		return err
	}
	if err := json.Unmarshal(line, v); err != nil {
		return fmt.Errorf("%w: %w", ErrNoJSON, err)
	}
	return nil
}
