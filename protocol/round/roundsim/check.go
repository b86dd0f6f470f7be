package roundsim

import (
	"fmt"

	"fermata/protocol/round"
)

// Checker compares what happens in a cluster with the invariants of
// PROTOCOL.md. It is told of events as they happen, by the simulator or by a
// test that watches real processes, and remembers the first breach.
//
// Concurrency: one goroutine at a time.
type Checker struct {
	err      error
	epoch    round.Epoch
	began    map[round.Epoch]round.Token
	members  map[round.Epoch][]round.NodeID
	kinds    map[round.Epoch]round.Cut
	outcomes map[round.Epoch]round.Outcome
	firstCut map[round.Epoch]Time
	at       map[round.NodeID]round.Epoch
	cuts     map[cut]*cutState
}

type cut struct {
	node  round.NodeID
	epoch round.Epoch
}

type cutState struct {
	stopped, saved, complete, early, persisted bool
}

// NewChecker returns a Checker of an untouched cluster.
func NewChecker() *Checker {
	return &Checker{
		began:    make(map[round.Epoch]round.Token),
		members:  make(map[round.Epoch][]round.NodeID),
		kinds:    make(map[round.Epoch]round.Cut),
		outcomes: make(map[round.Epoch]round.Outcome),
		firstCut: make(map[round.Epoch]Time),
		at:       make(map[round.NodeID]round.Epoch),
		cuts:     make(map[cut]*cutState),
	}
}

// Err returns the first breach.
func (c *Checker) Err() error { return c.err }

func (c *Checker) breach(format string, args ...any) {
	if c.err == nil {
		c.err = fmt.Errorf(format, args...)
	}
}

func (c *Checker) cut(n round.NodeID, e round.Epoch) *cutState {
	s := c.cuts[cut{n, e}]
	if s == nil {
		s = &cutState{}
		c.cuts[cut{n, e}] = s
	}
	return s
}

// Begins tells that a round with these members and this kind of cut was stored.
func (c *Checker) Begins(e round.Epoch, token round.Token, members []round.NodeID, kind round.Cut) {
	if e <= c.epoch {
		c.breach("I4: round %d begins after %d", e, c.epoch)
	}
	c.epoch = e
	c.members[e], c.began[e], c.kinds[e] = members, token, kind
}

// Accepted tells that a member has taken a request.
func (c *Checker) Accepted(r round.Request) {
	if began := c.began[r.Round.Epoch]; r.Call != round.CallFinish && r.Token != began {
		c.breach("I13: %s accepts %s of a round that token %d began", r.To, r, began)
	}
}

// MemberAt tells which epoch a member is in.
func (c *Checker) MemberAt(n round.NodeID, e round.Epoch) {
	if e < c.at[n] {
		c.breach("I4: %s goes back from epoch %d to %d", n, c.at[n], e)
	}
	c.at[n] = e
}

// Gated tells that a guest stands still for the round from now on.
func (c *Checker) Gated(e round.Epoch, now Time) {
	if _, ok := c.firstCut[e]; !ok {
		c.firstCut[e] = now
	}
}

// Stopped tells that every guest of the node has stopped: has its point on the cut.
func (c *Checker) Stopped(n round.NodeID, e round.Epoch) { c.cut(n, e).stopped = true }

// Saved tells that the node's state is saved.
func (c *Checker) Saved(n round.NodeID, e round.Epoch) { c.cut(n, e).saved = true }

// Marks tells that the node sends its markers, and whether what its guests send
// belongs to the epoch.
func (c *Checker) Marks(n round.NodeID, e round.Epoch, passed bool) error {
	if !passed || !c.cut(n, e).stopped {
		c.breach("I8: %s sends markers of epoch %d before its guests have stopped", n, e)
	}
	return c.err
}

// ResumesComplete tells that the node lets its guests run as its image is whole.
func (c *Checker) ResumesComplete(n round.NodeID, e round.Epoch) {
	s := c.cut(n, e)
	for _, other := range c.members[e] {
		if c.kinds[e] == round.CutBarrier && !c.cut(other, e).stopped {
			c.breach("I9: %s resumes in epoch %d before %s has stopped", n, e, other)
		}
	}
	if !s.saved || s.early {
		c.breach("I10: %s calls its image of epoch %d whole: %+v", n, e, *s)
	}
	s.complete = true
}

// ResumesEarly tells that the node lets its guests run as the round failed.
func (c *Checker) ResumesEarly(n round.NodeID, e round.Epoch) { c.cut(n, e).early = true }

// Dies tells that the node's agent ended in epoch e, with j as its durable
// journal (nil: none). It may go back to what is journaled. If the guests were
// cut and the image was not durable, the cut is lost.
func (c *Checker) Dies(n round.NodeID, e round.Epoch, j *round.Journal) {
	c.at[n] = 0
	if j != nil {
		c.at[n] = j.Epoch
		if j.Epoch == e && (j.Phase == round.MemberPersisted || j.Phase == round.MemberFinished) {
			return
		}
	}
	if s := c.cut(n, e); s.stopped {
		s.early = true
	}
}

// CutDone tells that the node reports its cut as done.
func (c *Checker) CutDone(n round.NodeID, e round.Epoch) {
	if s := c.cut(n, e); !s.complete || s.early {
		c.breach("I10: %s reports the cut of epoch %d: %+v", n, e, *s)
	}
}

// Persisted tells that the node's image is durable.
func (c *Checker) Persisted(n round.NodeID, e round.Epoch) { c.cut(n, e).persisted = true }

// AbortStored tells that etcd holds the abort of a round for which nobody has
// asked the repository to record a commit. That decides it.
func (c *Checker) AbortStored(e round.Epoch) {
	if c.outcomes[e] == round.Committed {
		c.breach("I1: epoch %d is committed, now also aborted", e)
		return
	}
	c.outcomes[e] = round.Aborted
}

// OutcomeRecorded tells that the repository's record was created. An abort may
// have been decided before.
func (c *Checker) OutcomeRecorded(e round.Epoch, o round.Outcome) {
	if have, ok := c.outcomes[e]; ok && have != o {
		c.breach("I1: epoch %d is %s, now also %s", e, have, o)
		return
	}
	c.outcomes[e] = o
	if o != round.Committed {
		return
	}
	for _, n := range c.members[e] {
		if !c.cut(n, e).persisted {
			c.breach("I7: epoch %d is committed without the image of %s", e, n)
		}
	}
}

// Knows tells that somebody reports this as the outcome.
func (c *Checker) Knows(who string, e round.Epoch, o round.Outcome) error {
	if have := c.outcomes[e]; have != o {
		c.breach("I1: %s holds epoch %d for %s, the record says %s", who, e, o, have)
	}
	return c.err
}

// MemberKnows tells that a member has journaled an epoch, and its outcome.
func (c *Checker) MemberKnows(n round.NodeID, e round.Epoch, o round.Outcome) {
	c.MemberAt(n, e)
	if have := c.outcomes[e]; o != round.OutcomeNone && have != o {
		c.breach("I1: %s holds epoch %d for %s, the record says %s", n, e, o, have)
	}
}

// Keeps tells that a node counts on a checkpoint.
func (c *Checker) Keeps(n round.NodeID, e round.Epoch) {
	if c.outcomes[e] != round.Committed {
		c.breach("I3: %s keeps the image of epoch %d, which is %s", n, e, c.outcomes[e])
	}
}

// Discards tells that a node removed what it holds of an image.
func (c *Checker) Discards(n round.NodeID, e round.Epoch) {
	c.cut(n, e).persisted = false
	if c.outcomes[e] == round.Committed {
		c.breach("I3: %s discards its image of epoch %d, which is committed", n, e)
	}
}
