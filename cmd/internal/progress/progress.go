// Package progress shows how a long operation gets on, beside its result.
package progress

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"fermata/cmd/internal/render"
	"fermata/protocol/api"
)

// Mode is how progress is shown. The zero value is Auto.
type Mode int

// The modes.
const (
	Auto  Mode = iota // bars on a terminal, elsewhere numbers every few seconds
	Plain             // a line for each step, and numbers every few seconds
	None
)

var modeNames = []string{Auto: "auto", Plain: "plain", None: "none"}

// ModeNames lists what Set takes.
func ModeNames() []string { return slices.Clone(modeNames) }

// String returns the word that Set takes.
func (m Mode) String() string {
	if int(m) < 0 || int(m) >= len(modeNames) {
		return fmt.Sprintf("mode(%d)", int(m))
	}
	return modeNames[m]
}

// Set reads a mode for a flag.
func (m *Mode) Set(word string) error {
	i := slices.Index(modeNames, word)
	if i < 0 {
		return fmt.Errorf("progress %q: want %s", word, strings.Join(modeNames, ", "))
	}
	*m = Mode(i)
	return nil
}

// Type is the placeholder in help texts.
func (m *Mode) Type() string { return strings.Join(modeNames, "|") }

// Display shows the events of one operation.
//
// Concurrency: one goroutine at a time, except for Write.
type Display interface {
	// Event shows one event.
	Event(e *api.Event)
	// Write shows a line that is not an event, apart from what is drawn.
	io.Writer
	// Done says that the operation has succeeded: whatever it moved has been moved in
	// full, although the last event about it may have come before.
	Done()
	// Close leaves what was drawn as it is and ends the display.
	Close()
}

// New makes a display on w, which is a terminal or not.
func New(ctx context.Context, m Mode, w io.Writer, terminal bool) (Display, error) {
	switch m {
	case Plain:
		return newLines(w, true, quietFor, repeatEvery), nil
	case None:
		return silence{w}, nil
	case Auto:
		if terminal {
			return newBars(ctx, w), nil
		}
		return newLines(w, false, quietFor, repeatEvery), nil
	default:
		return nil, fmt.Errorf("show progress: unknown %s", m)
	}
}

// silence shows no events.
type silence struct{ io.Writer }

func (silence) Event(*api.Event) {}
func (silence) Done()            {}
func (silence) Close()           {}

// lineOf is an event in words: "persist n1/a: text".
func lineOf(e *api.Event) string {
	var words []string
	for _, w := range []string{render.Clean(e.GetStep()), place(e)} {
		if w != "" {
			words = append(words, w)
		}
	}
	line := strings.Join(words, " ")
	switch text := render.Clean(e.GetText()); {
	case text == "":
		return line
	case line == "":
		return text
	default:
		return line + ": " + text
	}
}

// place is where an event happens: node, guest, both or neither.
func place(e *api.Event) string {
	var parts []string
	for _, p := range []string{render.Clean(e.GetNode()), render.Clean(e.GetGuest())} {
		if p != "" {
			parts = append(parts, p)
		}
	}
	return strings.Join(parts, "/")
}
