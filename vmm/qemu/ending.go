package qemu

import (
	"encoding/json"
	"time"

	"fermata/vmm/qmp"
)

// endings are the causes that QEMU gives for its end (ShutdownCause in
// qapi/run-state.json), in words that follow a guest's name.
var endings = map[string]string{
	"guest-shutdown":        "it powered itself off",
	"guest-reset":           "it reset itself, and its QEMU is told to end then",
	"guest-panic":           "its kernel panicked",
	"host-error":            "its QEMU met an error of the host",
	"host-qmp-quit":         "its QEMU was told to quit through the monitor",
	"host-qmp-shutdown":     "it was told to power off through the monitor",
	"host-signal":           "its QEMU was ended by a signal",
	"host-ui":               "its QEMU was ended by its user interface",
	"snapshot-load":         "its QEMU loaded a snapshot",
	"subsystem-reset":       "its QEMU reset a subsystem",
	"host-qmp-system-reset": "it was reset through the monitor",
}

// heeder reads the events of one connection to the monitor.
type heeder struct {
	done chan struct{} // closed when the connection has ended
}

// heed begins to read what the monitor reports unasked.
//
// Preconditions: the caller holds m.mu, or nobody else knows m yet.
func (m *Machine) heed(mon *qmp.Client) {
	h := &heeder{done: make(chan struct{})}
	m.heeder = h
	go func() {
		defer close(h.done)
		for event := range mon.Events() {
			m.hear(event)
		}
	}()
}

// hear notes what an event says of the guest's end.
func (m *Machine) hear(event qmp.Event) {
	var why string
	switch event.Name {
	case "SHUTDOWN":
		var data struct {
			Reason string `json:"reason"`
		}
		if err := json.Unmarshal(event.Data, &data); err != nil {
			return // QEMU ends, and its exit status is all that is known
		}
		if why = endings[data.Reason]; why == "" {
			why = "its QEMU ended: " + data.Reason
		}
	case "GUEST_PANICKED":
		why = endings["guest-panic"]
	default:
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ending == "" { // a panic goes before the shutdown that it causes
		m.ending = why
	}
}

// heard returns what the monitor has said of the guest's end; empty: nothing. It waits until
// the last connection has been read to its end, which follows that of the process.
func (m *Machine) heard() string {
	m.mu.Lock()
	h := m.heeder
	m.mu.Unlock()
	if h != nil {
		select {
		case <-h.done:
		case <-time.After(exitGrace): // somebody else holds the socket
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ending
}
