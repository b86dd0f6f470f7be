// Package cutmodel explores the coloured cut: every interleaving of frames, markers
// and cuts in a small cluster. It is a model of section 8 of PROTOCOL.md, not of the
// code; package fabric's tests hold the code to the same rule under load.
//
// Two nodes are joined by a link in each direction. Every guest sends a list of
// frames, each to one other guest. The steps of the cut that concern one guest, and
// those that concern one node, come in their order; everything else comes in any.
package cutmodel

import (
	"fmt"
	"strings"
)

// Guest is one guest of a Cluster. Guests are numbered from 0.
type Guest struct {
	Node  int   // 0 or 1
	Sends []int // destination of each frame, in order
}

// Rules are what the cut rests on. A control leaves one out.
type Rules struct {
	HoldEarly   bool // a frame from behind the cut waits for its receiver's point
	Record      bool // older frames are recorded at their receiver's point and after it
	MarkLast    bool // a node sends its marker when all of its guests have their points
	AwaitMarker bool // a node ends its record when the other's marker is here
}

// All is the protocol.
var All = Rules{HoldEarly: true, Record: true, MarkLast: true, AwaitMarker: true}

// Report says what Explore has seen.
type Report struct {
	States int // different ones
	Cuts   int // different ends: all points passed, all records ended
	Early  int // states in which a frame waits for its receiver's point
	InCut  int // ends with frames in a record
}

// Explore looks at every state that the cluster can come to. The error is the first
// cut that is not consistent, with the steps that led there.
func Explore(guests []Guest, rules Rules) (Report, error) {
	x := &explorer{guests: guests, rules: rules, seen: map[string]bool{}}
	first := state{guests: make([]guestState, len(guests))}
	err := x.visit(first)
	x.report.States = len(x.seen)
	return x.report, err
}

// frame is one frame; number counts its sender's frames.
type frame struct {
	from, to, number int
	newer            bool // sent behind its sender's point
}

// marker is what a link carries as a marker.
var marker = frame{from: -1}

// stage is how far a guest is with its cut.
type stage uint8

const (
	before  stage = iota // runs, before its point
	gated                // runs, takes no frames any more
	stopped              // stands still
	pointed              // stands still, has its point
	after                // runs, behind its point
)

type guestState struct {
	stage    stage
	sent     int     // how many of Sends
	queue    []frame // at its port
	received []frame // not beyond its point: what the image holds
	sentCut  int     // sent at its point
	recorded []frame
}

type state struct {
	guests []guestState
	links  [2][]frame // by the sending node
	marked [2]bool    // the node has sent its marker
	heard  [2]bool    // the other's marker is here
	ended  [2]bool    // the node has ended its record
}

func (s state) clone() state {
	c := s
	c.guests = make([]guestState, len(s.guests))
	for i, g := range s.guests {
		g.queue = append([]frame(nil), g.queue...)
		g.received = append([]frame(nil), g.received...)
		g.recorded = append([]frame(nil), g.recorded...)
		c.guests[i] = g
	}
	for i := range s.links {
		c.links[i] = append([]frame(nil), s.links[i]...)
	}
	return c
}

// key is different for different states.
func (s state) key() string {
	b := make([]byte, 0, 128)
	frames := func(all []frame) {
		b = append(b, byte(len(all)))
		for _, f := range all {
			b = append(b, byte(f.from), byte(f.to), byte(f.number), bit(f.newer))
		}
	}
	for _, g := range s.guests {
		b = append(b, byte(g.stage), byte(g.sent), byte(g.sentCut))
		frames(g.queue)
		frames(g.received)
		frames(g.recorded)
	}
	for n := range 2 {
		frames(s.links[n])
		b = append(b, bit(s.marked[n]), bit(s.heard[n]), bit(s.ended[n]))
	}
	return string(b)
}

func bit(b bool) byte {
	if b {
		return 1
	}
	return 0
}

type explorer struct {
	guests []Guest
	rules  Rules
	seen   map[string]bool
	path   []string
	report Report
}

// visit explores what can come after s.
func (x *explorer) visit(s state) error {
	key := s.key()
	if x.seen[key] {
		return nil
	}
	x.seen[key] = true
	if s.ended[0] && s.ended[1] {
		x.report.Cuts++
		return x.check(s)
	}
	if x.anyEarly(s) {
		x.report.Early++
	}
	for i := range x.guests {
		for _, step := range []func(*state, int) string{x.send, x.deliver, x.cut} {
			if err := x.try(s, i, step); err != nil {
				return err
			}
		}
	}
	for n := range 2 {
		for _, step := range []func(*state, int) string{x.arrive, x.mark, x.end} {
			if err := x.try(s, n, step); err != nil {
				return err
			}
		}
	}
	return nil
}

// try takes a step of guest or node i, if it can be taken: then step says which.
func (x *explorer) try(s state, i int, step func(*state, int) string) error {
	next := s.clone()
	what := step(&next, i)
	if what == "" {
		return nil
	}
	x.path = append(x.path, what)
	defer func() { x.path = x.path[:len(x.path)-1] }()
	return x.visit(next)
}

// send has guest i send its next frame.
func (x *explorer) send(s *state, i int) string {
	g := &s.guests[i]
	if g.sent == len(x.guests[i].Sends) || g.stage == stopped || g.stage == pointed {
		return ""
	}
	f := frame{from: i, to: x.guests[i].Sends[g.sent], number: g.sent, newer: g.stage == after}
	g.sent++
	if from := x.guests[i].Node; x.guests[f.to].Node != from {
		s.links[from] = append(s.links[from], f)
	} else {
		x.enqueue(s, f)
	}
	return fmt.Sprintf("guest %d sends %d to guest %d", i, f.number, f.to)
}

// enqueue brings a frame to its receiver's port.
func (x *explorer) enqueue(s *state, f frame) {
	g := &s.guests[f.to]
	if g.stage >= pointed && !s.ended[x.guests[f.to].Node] {
		x.record(g, f)
	}
	g.queue = append(g.queue, f)
}

func (x *explorer) record(g *guestState, f frame) {
	if x.rules.Record && !f.newer {
		g.recorded = append(g.recorded, f)
	}
}

// arrive takes what comes next off the link from node n.
func (x *explorer) arrive(s *state, n int) string {
	if len(s.links[n]) == 0 {
		return ""
	}
	f := s.links[n][0]
	s.links[n] = s.links[n][1:]
	if f == marker {
		s.heard[1-n] = true
		return fmt.Sprintf("marker of node %d arrives", n)
	}
	x.enqueue(s, f)
	return fmt.Sprintf("frame %d of guest %d arrives at guest %d", f.number, f.from, f.to)
}

// deliver gives guest i the frame that has waited longest for it.
func (x *explorer) deliver(s *state, i int) string {
	g := &s.guests[i]
	if len(g.queue) == 0 || g.stage != before && g.stage != after || x.early(g) && x.rules.HoldEarly {
		return ""
	}
	f := g.queue[0]
	g.queue = g.queue[1:]
	if g.stage == before {
		g.received = append(g.received, f)
	}
	return fmt.Sprintf("guest %d receives %d of guest %d", i, f.number, f.from)
}

// early says that the first frame that waits for a guest is from behind the cut, and
// the guest still before it.
func (x *explorer) early(g *guestState) bool {
	return len(g.queue) > 0 && g.stage < pointed && g.queue[0].newer
}

func (x *explorer) anyEarly(s state) bool {
	for i := range s.guests {
		if x.early(&s.guests[i]) {
			return true
		}
	}
	return false
}

// cut takes guest i one stage on.
func (x *explorer) cut(s *state, i int) string {
	g := &s.guests[i]
	if g.stage == after {
		return ""
	}
	g.stage++
	if g.stage == pointed {
		g.sentCut = g.sent
		for _, f := range g.queue {
			x.record(g, f)
		}
	}
	return fmt.Sprintf("guest %d: %s", i, []string{"", "gated", "stopped", "has its point", "runs"}[g.stage])
}

// mark has node n send its marker.
func (x *explorer) mark(s *state, n int) string {
	if s.marked[n] {
		return ""
	}
	for i, g := range s.guests {
		if x.guests[i].Node == n && g.stage < pointed && x.rules.MarkLast {
			return ""
		}
	}
	s.marked[n] = true
	s.links[n] = append(s.links[n], marker)
	return fmt.Sprintf("node %d sends its marker", n)
}

// end has node n end its record.
func (x *explorer) end(s *state, n int) string {
	if s.ended[n] || !s.marked[n] || !s.heard[n] && x.rules.AwaitMarker {
		return ""
	}
	for i, g := range s.guests {
		if x.guests[i].Node == n && g.stage < pointed {
			return "" // has no image yet
		}
	}
	s.ended[n] = true
	return fmt.Sprintf("node %d ends its record", n)
}

// check holds a cut against invariant I11.
func (x *explorer) check(s state) error {
	recorded := false
	for dst, d := range s.guests {
		recorded = recorded || len(d.recorded) > 0
		for src := range s.guests {
			var due, got []int
			for number, to := range x.guests[src].Sends[:s.guests[src].sentCut] {
				if to == dst {
					due = append(due, number)
				}
			}
			for _, f := range append(append([]frame(nil), d.received...), d.recorded...) {
				if f.from == src {
					got = append(got, f.number)
				}
			}
			if fmt.Sprint(due) != fmt.Sprint(got) {
				return fmt.Errorf("guest %d had sent %v to guest %d at its point, where there are %v:\n%s", src, due, dst, got, strings.Join(x.path, "\n"))
			}
		}
	}
	if recorded {
		x.report.InCut++
	}
	return nil
}
