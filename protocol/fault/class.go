// Package fault gives errors a class: what the receiver of an error can do
// about it, independent of the layer that met it.
//
// An error gets its class where the reason is known, with New or Wrap, and
// keeps it through any number of %w wraps. The class decides the exit code of
// the command line (Class.ExitCode) and, in package faultgrpc, the status on
// the wire. It never replaces the message.
//
// Two pairs are easily confused. Unavailable and Aborted mean that nothing
// was changed, or that it was undone; Unknown means that it was asked for and
// no answer came, so that it may have been done. Stale means that the caller
// itself is outdated (an old epoch, an old leader) and must not try again;
// Busy means that the same request may succeed later.
package fault

import "fmt"

// Class is what the receiver of an error can do about it.
type Class uint8

const (
	None        Class = iota // no error
	Invalid                  // the request makes no sense; correct it
	NotFound                 // what the request names does not exist
	Exists                   // what the request would make exists already
	Stale                    // the caller has been replaced: old epoch or fencing token
	Busy                     // something else is in progress; try later
	Unavailable              // a needed party cannot be reached; nothing was done
	NoSpace                  // memory, disk or a quota is full
	Mismatch                 // machine type, CPU model or format does not fit
	Corrupt                  // stored bytes are not what was written; never retried
	Aborted                  // given up by a party or on request; undone
	Deadline                 // a time budget ended before the work; undone
	Unknown                  // asked, and no answer: done or not
	Denied                   // the caller may not do this
	Internal                 // a defect of Fermata, or an error nobody has classified
)

// classes holds the text and the exit code of each class, by number. The
// exit codes are a promise to scripts: never renumber them. 1 is what a shell
// expects of an error that says nothing more, 2 of a wrong usage.
var classes = [...]struct {
	text string
	exit int
}{
	None:        {"none", 0},
	Invalid:     {"invalid", 2},
	NotFound:    {"not-found", 3},
	Exists:      {"exists", 4},
	Stale:       {"stale", 5},
	Busy:        {"busy", 6},
	Unavailable: {"unavailable", 7},
	NoSpace:     {"no-space", 8},
	Mismatch:    {"mismatch", 9},
	Corrupt:     {"corrupt", 10},
	Aborted:     {"aborted", 11},
	Deadline:    {"deadline", 12},
	Unknown:     {"unknown-outcome", 13},
	Denied:      {"denied", 14},
	Internal:    {"internal", 1},
}

// Classes lists every class but None.
func Classes() []Class {
	all := make([]Class, 0, len(classes)-1)
	for c := Invalid; c <= Internal; c++ {
		all = append(all, c)
	}
	return all
}

// String returns the class's text, as ParseClass reads it.
func (c Class) String() string {
	if int(c) >= len(classes) {
		return fmt.Sprintf("class(%d)", uint8(c))
	}
	return classes[c].text
}

// ParseClass is the inverse of String.
func ParseClass(text string) (Class, error) {
	for c, row := range classes {
		if row.text == text {
			return Class(c), nil
		}
	}
	return None, fmt.Errorf("unknown error class %q", text)
}

// ExitCode returns the exit code of a command that ends with this class:
//
//	0  success             8  no-space
//	1  internal            9  mismatch
//	2  invalid            10  corrupt
//	3  not-found          11  aborted
//	4  exists             12  deadline
//	5  stale              13  unknown-outcome
//	6  busy               14  denied
//	7  unavailable
func (c Class) ExitCode() int {
	if int(c) >= len(classes) {
		return classes[Internal].exit
	}
	return classes[c].exit
}
