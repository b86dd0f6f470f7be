package qmp

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"
)

// ErrProtocol: the other side said something that is not QMP, or too much of
// it. The connection is of no use afterwards.
var ErrProtocol = errors.New("not the QMP protocol")

// Greeting is what the monitor says first.
type Greeting struct {
	Version      Version
	Capabilities []string
}

// Version is the monitor's own version.
type Version struct {
	Major   int    `json:"major"`
	Minor   int    `json:"minor"`
	Micro   int    `json:"micro"`
	Package string `json:"-"` // the distribution's name of its build, may be empty
}

// String returns major.minor.micro.
func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Micro) }

// Less orders versions.
func (v Version) Less(o Version) bool {
	return cmp.Or(cmp.Compare(v.Major, o.Major), cmp.Compare(v.Minor, o.Minor), cmp.Compare(v.Micro, o.Micro)) < 0
}

// Event is something the monitor reports unasked.
type Event struct {
	Name string
	Data json.RawMessage // nil when the event carries none
	At   time.Time       // the monitor's wall clock; zero when it had none
}

// Error is the monitor's refusal of a command: it was not, or not fully, done.
type Error struct {
	Command string
	Class   string // GenericError, CommandNotFound, DeviceNotFound, ...
	Desc    string
}

// Error implements error.
func (e *Error) Error() string {
	return fmt.Sprintf("monitor refused %s: %s: %s", e.Command, e.Class, e.Desc)
}

// ClassCommandNotFound is the class of the refusal of a command that this
// build of the monitor does not know.
const ClassCommandNotFound = "CommandNotFound"

// kind says which of QMP's four shapes a message has.
type kind int

const (
	kindGreeting kind = iota + 1
	kindEvent
	kindReturn
	kindError
)

// message is one decoded line.
type message struct {
	kind     kind
	greeting Greeting        // kindGreeting
	event    Event           // kindEvent
	result   json.RawMessage // kindReturn
	failure  Error           // kindError, without Command
	id       uint64          // kindReturn and kindError
	hasID    bool            // the monitor leaves the id out when it could not read the command
}

// wireMessage is the union of all shapes as JSON has them.
type wireMessage struct {
	QMP *struct {
		Version struct {
			QEMU    Version `json:"qemu"`
			Package string  `json:"package"`
		} `json:"version"`
		Capabilities []json.RawMessage `json:"capabilities"`
	} `json:"QMP"`
	Event     *string         `json:"event"`
	Data      json.RawMessage `json:"data"`
	Timestamp *struct {
		Seconds      int64 `json:"seconds"`
		Microseconds int64 `json:"microseconds"`
	} `json:"timestamp"`
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
	ID json.RawMessage `json:"id"`
}

// decode turns one line into a message. It is total: any input gives a message
// or an error that wraps ErrProtocol. The message does not refer to line.
func decode(line []byte) (message, error) {
	var w wireMessage
	if err := json.Unmarshal(line, &w); err != nil {
		return message{}, fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	m := message{}
	if err := m.decodeID(w.ID); err != nil {
		return message{}, err
	}
	shapes := 0
	if w.QMP != nil {
		shapes++
		m.kind = kindGreeting
		m.greeting.Version = w.QMP.Version.QEMU
		m.greeting.Version.Package = w.QMP.Version.Package
		for _, c := range w.QMP.Capabilities {
			var name string
			// Capabilities that are not words are of a later protocol; they are
			// offers, and one that is not understood is not taken up.
			if json.Unmarshal(c, &name) == nil {
				m.greeting.Capabilities = append(m.greeting.Capabilities, name)
			}
		}
	}
	if w.Event != nil {
		shapes++
		m.kind = kindEvent
		m.event = Event{Name: *w.Event, Data: present(w.Data)}
		// The monitor writes -1 when it could not read its clock.
		if ts := w.Timestamp; ts != nil && ts.Seconds >= 0 && ts.Microseconds >= 0 {
			m.event.At = time.Unix(ts.Seconds, ts.Microseconds*int64(time.Microsecond))
		}
	}
	if w.Return != nil {
		shapes++
		m.kind = kindReturn
		m.result = bytes.Clone(w.Return)
	}
	if w.Error != nil {
		shapes++
		m.kind = kindError
		m.failure = Error{Class: w.Error.Class, Desc: w.Error.Desc}
	}
	if shapes != 1 {
		return message{}, fmt.Errorf("%w: a message of %d shapes", ErrProtocol, shapes)
	}
	return m, nil
}

// decodeID reads the id that the client gave the command: always a number.
func (m *message) decodeID(raw json.RawMessage) error {
	if raw = present(raw); raw == nil {
		return nil
	}
	id, err := strconv.ParseUint(string(raw), 10, 64)
	if err != nil {
		return fmt.Errorf("%w: id %.40q is none of ours", ErrProtocol, raw)
	}
	m.id, m.hasID = id, true
	return nil
}

// present returns a copy of raw, or nil when it is absent or null.
func present(raw json.RawMessage) json.RawMessage {
	if len(raw) == 0 || bytes.Equal(raw, []byte("null")) {
		return nil
	}
	return bytes.Clone(raw)
}

// command is what the client writes.
type command struct {
	Execute   string `json:"execute"`
	Arguments any    `json:"arguments,omitempty"`
	ID        uint64 `json:"id"`
}
