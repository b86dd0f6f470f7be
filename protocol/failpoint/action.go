package failpoint

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

type kind uint8

const (
	kindError kind = iota + 1
	kindDelay
	kindKill
	kindStop
	kindHang
)

// Action is what happens when an armed point is reached. Make one with
// ParseAction.
type Action struct {
	kind  kind
	text  string        // of an error
	delay time.Duration // of a delay
	on    int           // the one time to act; zero: each time
}

// ParseAction reads an action as the package comment shows it.
func ParseAction(s string) (Action, error) {
	var a Action
	word := s
	if at := strings.LastIndexByte(word, '@'); at >= 0 {
		n, err := strconv.Atoi(word[at+1:])
		if err != nil || n < 1 {
			return Action{}, fmt.Errorf("failpoint action %q: what follows @ is no count from 1", s)
		}
		a.on, word = n, word[:at]
	}
	name, arg, hasArg := strings.Cut(word, "(")
	if hasArg {
		var closed bool
		if arg, closed = strings.CutSuffix(arg, ")"); !closed {
			return Action{}, fmt.Errorf("failpoint action %q: parenthesis not closed", s)
		}
	}
	switch {
	case name == "error":
		a.kind, a.text = kindError, arg
	case name == "delay" && hasArg:
		d, err := time.ParseDuration(arg)
		if err != nil || d < 0 {
			return Action{}, fmt.Errorf("failpoint action %q: %q is no time", s, arg)
		}
		a.kind, a.delay = kindDelay, d
	case name == "kill" && !hasArg:
		a.kind = kindKill
	case name == "stop" && !hasArg:
		a.kind = kindStop
	case name == "hang" && !hasArg:
		a.kind = kindHang
	default:
		return Action{}, fmt.Errorf("failpoint action %q: want error, error(TEXT), delay(TIME), kill, stop or hang", s)
	}
	return a, nil
}

// Plan is what to arm.
type Plan map[Point]Action

// ParsePlan reads POINT=ACTION, separated by semicolons, as in
// FERMATA_FAILPOINTS. Unknown points are an error: a misspelt one would
// silently inject nothing.
func ParsePlan(s string) (Plan, error) {
	plan := make(Plan)
	for item := range strings.SplitSeq(s, ";") {
		item = strings.TrimSpace(item)
		if item == "" {
			continue
		}
		name, action, ok := strings.Cut(item, "=")
		p := Point(strings.TrimSpace(name))
		if !ok {
			return nil, fmt.Errorf("failpoint %q: want POINT=ACTION", item)
		}
		if !slices.Contains(Points(), p) {
			return nil, fmt.Errorf("failpoint %q: no such point", p)
		}
		if _, twice := plan[p]; twice {
			return nil, fmt.Errorf("failpoint %q: given twice", p)
		}
		a, err := ParseAction(strings.TrimSpace(action))
		if err != nil {
			return nil, err
		}
		plan[p] = a
	}
	return plan, nil
}
