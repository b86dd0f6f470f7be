package guests

import (
	"fmt"
	"hash/fnv"
	"strconv"
	"strings"
)

// Line is one whole line that a guest wrote to its console.
type Line struct {
	Kind string // "READY", "CANARY-FINAL", …

	// Body has the values by type: Ready, Tick, MPIStart, MPIIter, MPIDone,
	// MPIExit, CanaryStart, CanaryStatus, CanaryKernel, CanaryFinal, CanaryEnd,
	// DirtyStart, Dirty, DirtyBad or DirtyExit; nil for a kind unknown here.
	Body any

	// Pairs has the values as they stand in the line.
	Pairs map[string]string
}

const linePrefix = "FERMATA "

// Parse reads one console line. It reports false for everything that is not a
// line of ours from its first to its last byte: kernel messages, and what
// remains when a console begins or ends in mid-line or two writers met. Such
// text before a whole line is ignored.
func Parse(text string) (Line, bool) {
	text = strings.TrimRight(text, "\r\n")
	at := strings.LastIndex(text, linePrefix)
	if at < 0 {
		return Line{}, false
	}
	content, ok := checked(text[at:])
	if !ok {
		return Line{}, false
	}
	words := strings.Fields(content)
	if len(words) < 2 {
		return Line{}, false
	}
	line := Line{Kind: words[1], Pairs: make(map[string]string, len(words)-2)}
	for _, word := range words[2:] {
		key, value, ok := strings.Cut(word, "=")
		if !ok {
			return Line{}, false
		}
		line.Pairs[key] = value
	}
	if decode, known := decoders[line.Kind]; known {
		v := values{pairs: line.Pairs}
		line.Body = decode(&v)
		if v.err != nil {
			return Line{}, false
		}
	}
	return line, true
}

// checked cuts " #xxxxxxxx" off and tells whether it is the hash of the rest
// (programs/src/line.h).
func checked(text string) (string, bool) {
	const mark = len(" #xxxxxxxx")
	if len(text) < mark {
		return "", false
	}
	content, tail := text[:len(text)-mark], text[len(text)-mark:]
	return content, tail == hashMark(content)
}

func hashMark(content string) string {
	h := fnv.New32a()
	h.Write([]byte(content)) // never fails
	return fmt.Sprintf(" #%08x", h.Sum32())
}

// values decodes pairs; the first error sticks.
type values struct {
	pairs map[string]string
	err   error
}

func (v *values) text(key string) string {
	s, ok := v.pairs[key]
	if !ok && v.err == nil {
		v.err = fmt.Errorf("no %s", key)
	}
	return s
}

func (v *values) count(key string) uint64 {
	n, err := strconv.ParseUint(v.text(key), 10, 64)
	v.keep(err)
	return n
}

func (v *values) integer(key string) int {
	n, err := strconv.Atoi(v.text(key))
	v.keep(err)
	return n
}

func (v *values) hexadecimal(key string) uint64 {
	n, err := strconv.ParseUint(strings.TrimPrefix(v.text(key), "0x"), 16, 64)
	v.keep(err)
	return n
}

func (v *values) number(key string) float64 {
	f, err := strconv.ParseFloat(v.text(key), 64)
	v.keep(err)
	return f
}

func (v *values) seconds(key string) Seconds { return Seconds(v.number(key)) }

func (v *values) keep(err error) {
	if v.err == nil {
		v.err = err
	}
}
