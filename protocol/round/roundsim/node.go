package roundsim

import (
	"errors"
	"fmt"
	"slices"

	"fermata/protocol/round"
)

// node is an agent and its guest. The agent drives a round.Member as the
// documentation of package round demands, and may crash between any two steps.
type node struct {
	w    *world
	name round.NodeID
	up   bool
	gen  int // grows with every crash; what an older life began has no effect

	member  *round.Member
	busy    bool     // the owner waits for its journal
	inputs  []func() // that came meanwhile
	open    []openRequest
	worker  worker
	journal *round.Journal // durable
	maxSeen round.Token    // of accepted requests, in this life or journaled

	guest    guest
	cutOpen  round.Epoch            // frames of this epoch wait for the guest's own cut; 0: none
	recorded map[round.NodeID][]int // since the guest's cut; nil: nothing is recorded
	saving   *image                 // of the cut in progress
	durable  map[round.Epoch]*image // in the repository
	gatedAt  Time                   // when the present agent first owed the guest a resume
}

type openRequest struct {
	req    round.Request
	answer func(round.Reply)
}

// worker carries out actions in order.
type worker struct {
	queue   []round.Action
	current *round.Action
	gen     int // grows when the current action is cancelled
}

func newNode(w *world, name round.NodeID) *node {
	return &node{
		w: w, name: name,
		guest:   guest{received: make(map[round.NodeID][]int)},
		durable: make(map[round.Epoch]*image),
	}
}

func (n *node) memberConfig() round.MemberConfig {
	return round.MemberConfig{Cluster: "c", Node: n.name, Tick: 1, SilenceTicks: silenceTicks}
}

// boot starts the agent from its journal.
func (n *node) boot() {
	if n.up {
		return
	}
	n.up, n.busy, n.inputs, n.open, n.worker = true, false, nil, nil, worker{}
	var err error
	if n.journal == nil {
		n.member, err = round.NewMember(n.memberConfig())
		n.maxSeen = 0
	} else {
		n.member, err = n.w.cfg.RecoverMember(n.memberConfig(), *n.journal)
		n.maxSeen = n.journal.Token
	}
	if err != nil {
		n.w.fail(err)
		return
	}
	if n.w.cfg.OnMember != nil {
		n.w.cfg.OnMember(n.member)
	}
	n.gatedAt = n.w.now
	n.w.logf("%s is up, %s in epoch %d", n.name, n.member.Phase(), n.member.Epoch())
	gen := n.gen
	var ticking func()
	ticking = func() {
		if gen == n.gen {
			n.input(n.member.Tick)
			n.w.after(tick-2+n.w.some(3), ticking)
		}
	}
	n.w.after(n.w.some(tick), ticking)
	n.pump()
}

// crash ends the agent. The guest stays as it is, running or stopped.
func (n *node) crash() {
	if !n.up {
		return
	}
	n.w.stats.MemberCrashes++
	n.w.logf("%s crashes, %s in epoch %d", n.name, n.member.Phase(), n.member.Epoch())
	n.up = false
	n.gen++
	n.w.check.Dies(n.name, n.member.Epoch(), n.journal)
	for _, h := range n.guest.held {
		l := n.w.links[linkID{h.from, n.name}]
		if l.lost == nil {
			l.lost = make(map[int]Time)
		}
		l.lost[h.number] = n.w.now
	}
	n.guest.held, n.saving = nil, nil
	n.guest.epoch, n.guest.newest, n.guest.early = 0, 0, 0 // colours are the fabric's, which dies with the agent
	n.cutOpen, n.recorded = 0, nil
	for _, other := range n.w.names {
		if other != n.name {
			n.w.breakLink(n.name, other)
			n.w.breakLink(other, n.name)
		}
	}
	n.w.after(n.w.some(restartAfter), n.boot)
}

// input hands something to the owner of the member.
func (n *node) input(do func()) {
	if !n.up {
		return
	}
	if n.busy {
		n.inputs = append(n.inputs, do)
		return
	}
	do()
	n.pump()
}

// serve takes a request from the network.
func (n *node) serve(req round.Request, answer func(round.Reply)) {
	n.input(func() {
		err := n.member.Step(req)
		switch {
		case err == nil:
			if req.Token < n.maxSeen {
				n.w.fail(fmt.Errorf("I5: %s accepts %s after token %d", n.name, req, n.maxSeen))
			}
			n.maxSeen = max(n.maxSeen, req.Token)
			n.w.check.Accepted(req)
			n.open = append(n.open, openRequest{req, answer})
		case errors.Is(err, round.ErrBusy):
			n.w.stats.Refused++
			answer(round.Reply{Call: req.Call, Round: req.Round, From: n.name, Result: round.ResultUnanswered})
		default:
			n.w.stats.Refused++
			answer(round.Reply{Call: req.Call, Round: req.Round, From: n.name, Result: round.ResultFailed, Reason: err.Error()})
		}
		n.w.check.MemberAt(n.name, n.member.Epoch())
	})
}

// pump does what Ready says, until there is nothing to do or the journal is
// being written.
func (n *node) pump() {
	for !n.busy && n.w.err == nil {
		if !n.member.HasReady() {
			if len(n.inputs) == 0 {
				return
			}
			do := n.inputs[0]
			n.inputs = n.inputs[1:]
			do()
			continue
		}
		r := n.member.Ready()
		if r.Journal == nil {
			n.follow(r)
			continue
		}
		if n.guest.gated || n.guest.stopped || slices.ContainsFunc(r.Actions, func(a round.Action) bool { return a.Kind == round.ResumeGuests }) {
			n.w.fail(fmt.Errorf("I12: %s is to write a journal before its guests run", n.name))
		}
		n.write(r)
	}
}

// write makes the journal durable, which takes time, may fail, and may be cut
// off by a crash before or after it took effect.
func (n *node) write(r round.MemberReady) {
	n.busy = true
	gen, broken := n.gen, n.w.chance(n.w.cfg.JournalBreak)
	n.w.after(n.w.some(10), func() {
		if gen != n.gen {
			return
		}
		if !broken {
			n.journal = r.Journal
		}
		n.w.after(n.w.some(5), func() {
			if gen != n.gen {
				return
			}
			n.busy = false
			if broken {
				n.w.stats.JournalBreaks++
				n.member.JournalFailed()
			} else {
				n.w.check.MemberKnows(n.name, r.Journal.Epoch, r.Journal.Outcome)
				n.follow(r)
			}
			n.pump()
		})
	})
}

// follow does what stands behind the journal in a Ready.
func (n *node) follow(r round.MemberReady) {
	for _, a := range r.Actions {
		n.enqueue(a, r)
	}
	n.work()
	for _, reply := range r.Replies {
		n.w.logf("%s answers %s", n.name, reply)
		n.checkReply(reply)
		n.open = slices.DeleteFunc(n.open, func(o openRequest) bool {
			if o.req.Call != reply.Call || o.req.Round != reply.Round {
				return false
			}
			o.answer(reply)
			return true
		})
	}
}

func (n *node) enqueue(a round.Action, r round.MemberReady) {
	switch a.Kind {
	case round.Abandon:
		if c := n.worker.current; c != nil && c.Round == a.Round {
			n.worker.gen++
			n.worker.current = nil
		}
		n.worker.queue = slices.DeleteFunc(n.worker.queue, func(q round.Action) bool { return q.Round == a.Round })
		return
	case round.GateAndDrain, round.CutGuests:
		n.gatedAt = n.w.now
	case round.ResumeGuests:
		completes := slices.ContainsFunc(r.Actions, func(a round.Action) bool { return a.Kind == round.RecordChannels })
		if completes {
			n.w.check.ResumesComplete(n.name, a.Round.Epoch)
		} else if n.guest.stopped || n.guest.gated {
			n.w.stats.SelfResumed++
			n.w.check.ResumesEarly(n.name, a.Round.Epoch)
		}
	}
	n.worker.queue = append(n.worker.queue, a)
}

// checkReply is invariant I2 for a member: what it says it knows after a
// restart.
func (n *node) checkReply(r round.Reply) {
	if r.Result != round.ResultDone {
		return
	}
	j := n.journal
	ok := j != nil && j.Epoch >= r.Round.Epoch
	if ok && j.Epoch == r.Round.Epoch {
		switch r.Call {
		case round.CallPersist:
			ok = j.Phase == round.MemberPersisted || j.Phase == round.MemberFinished
		case round.CallFinish:
			ok = j.Phase == round.MemberFinished
		}
	}
	if !ok {
		n.w.fail(fmt.Errorf("I2: %s answers %s but has journaled %+v", n.name, r, j))
	}
	if r.Call == round.CallCut {
		n.w.check.CutDone(n.name, r.Round.Epoch)
	}
}

// checkPauses is invariant I6: nobody but the member and its clock decides
// when a guest that was gated runs again. A resume itself takes up to 8 units.
func (w *world) checkPauses() error {
	const most = (pauseTicks+1)*(tick+1) + 20
	for _, id := range w.names {
		n := w.nodes[id]
		if n.up && (n.guest.gated || n.guest.stopped) && w.now-n.gatedAt > most {
			return fmt.Errorf("I6: the guest of %s has stood still for %d, its agent up and %s", id, w.now-n.gatedAt, n.member.Phase())
		}
	}
	return nil
}
