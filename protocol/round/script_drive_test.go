package round_test

import (
	"slices"
	"strings"

	"fermata/protocol/round"
)

// pumpLead does what the Lead's Ready says.
func (e *env) pumpLead() {
	for e.lead != nil && e.lead.HasReady() {
		l, r := e.lead, e.lead.Ready()
		if r.Persist != nil {
			e.stored = r.Persist
			e.logf("lead: store %s", r.Persist.Phase)
		}
		if r.Decide != round.OutcomeNone {
			e.logf("lead: ask repository for %s", r.Decide)
			id := e.stored.Round
			e.post(func() { e.decide(l, r.Decide, id) })
		}
		for _, req := range r.Send {
			e.post(func() { e.request(l, req) })
		}
		if len(r.Send) > 0 {
			e.logf("lead: send %s", sends(r.Send))
		}
		for _, ev := range r.Events {
			if ev.Text != "" {
				e.logf("lead: event %s: %s", ev.Step, ev.Text)
			}
		}
		if r.Done != nil {
			line := "lead: done, " + r.Done.Outcome.String()
			if r.Done.Reason != "" {
				line += ": " + r.Done.Reason
			}
			e.logf("%s", line)
		}
	}
}

func sends(reqs []round.Request) string {
	var to []string
	for _, r := range reqs {
		to = append(to, string(r.To))
	}
	what := reqs[0].Call.String()
	if reqs[0].Call == round.CallFinish {
		what += "(" + reqs[0].Outcome.String() + ")"
	}
	return what + " to " + strings.Join(to, " ")
}

func (e *env) decide(l *round.Lead, want round.Outcome, id round.ID) {
	switch {
	case l != e.lead && e.repository != "up":
		return
	case e.repository == "silent":
		l.DecideFailed("no answer")
		e.pumpLead()
		return
	case e.repository == "full" && want == round.Committed:
		l.DecideRefused("repository is full")
		e.pumpLead()
		return
	}
	have, ok := e.outcomes[id.Epoch]
	if !ok {
		have = want
		e.outcomes[id.Epoch] = want
	}
	e.logf("repository: epoch %d is %s", id.Epoch, have)
	if l != e.lead {
		return
	}
	if e.repository == "deaf" {
		l.DecideFailed("answer lost")
	} else {
		l.Decided(have)
	}
	e.pumpLead()
}

// request carries a call to a node and its result back.
func (e *env) request(l *round.Lead, req round.Request) {
	n := e.nodes[req.To]
	if n.member == nil || n.lost == "requests" {
		e.result(l, round.Reply{Call: req.Call, Round: req.Round, From: req.To, Result: round.ResultUnanswered})
		return
	}
	if err := n.member.Step(req); err != nil {
		e.result(l, refusal(req, err))
	} else {
		n.open = append(n.open, req)
	}
	e.pump(n)
}

func (e *env) result(l *round.Lead, r round.Reply) {
	if l != e.lead || l == nil {
		return
	}
	if r.Result != round.ResultDone {
		e.logf("lead: %s", r)
	}
	e.must(l.Step(r))
	e.pumpLead()
}

// pump does what the Member's Ready says.
func (e *env) pump(n *scriptNode) {
	for n.member != nil && n.member.HasReady() {
		r := n.member.Ready()
		if r.Journal != nil {
			if n.badDisk {
				e.logf("%s: journal cannot be written", n.name)
				n.member.JournalFailed()
				continue
			}
			n.journal = r.Journal
			e.logf("%s: journal %s", n.name, r.Journal.Phase)
		}
		e.act(n, r.Actions)
		for _, reply := range r.Replies {
			before := len(n.open)
			n.open = slices.DeleteFunc(n.open, func(req round.Request) bool { return req.Call == reply.Call && req.Round == reply.Round })
			if before == len(n.open) {
				continue
			}
			e.logf("%s: answer %s %s", n.name, reply.Call, reply.Result)
			l := e.lead
			if n.lost == "answers" {
				reply.Result, reply.Payload, reply.Reason = round.ResultUnanswered, nil, ""
			}
			e.post(func() {
				if l != nil && l.Phase() != round.PhaseOver && reply.Round == e.stored.Round {
					e.result(l, reply)
				}
			})
		}
	}
}

// act carries out actions in order, until one hangs.
func (e *env) act(n *scriptNode, actions []round.Action) {
	for _, a := range actions {
		if a.Kind == round.Abandon {
			e.logf("%s: %s", n.name, a.Kind)
			n.actions = slices.DeleteFunc(n.actions, func(w round.Action) bool { return w.Round == a.Round })
			continue
		}
		n.actions = append(n.actions, a)
	}
	for len(n.actions) > 0 {
		a := n.actions[0]
		fails, mishap := n.mishaps[a.Kind]
		if mishap && !fails {
			e.logf("%s: %s hangs", n.name, a.Kind)
			return
		}
		n.actions = n.actions[1:]
		if fails {
			e.logf("%s: %s fails", n.name, a.Kind)
			if a.Kind != round.ResumeGuests {
				n.actions = nil
			}
			m := n.member
			e.post(func() { m.StepFailed(a.Round.Epoch, a.Kind.Step(), "injected"); e.pump(n) })
			continue
		}
		e.logf("%s: %s", n.name, a.Kind)
		e.carryOut(n, a)
	}
}

func (e *env) carryOut(n *scriptNode, a round.Action) {
	m, epoch := n.member, a.Round.Epoch
	then := func(event func()) {
		e.post(func() {
			if n.member == m {
				event()
				e.pump(n)
			}
		})
	}
	switch a.Kind {
	case round.PrepareGuests:
		then(func() { m.GuestsPrepared(epoch, nil) })
	case round.StopGuests:
		n.guest = "stopped"
		then(func() { m.GuestsStopped(epoch) })
	case round.CutGuests:
		then(func() { m.GuestsCut(epoch) })
	case round.SendMarkers:
		for _, id := range a.Members {
			to := e.nodes[id]
			e.post(func() {
				if n.lost != "markers" && to.lost != "markers" && to.member != nil {
					to.member.MarkerFrom(epoch, n.name)
					e.pump(to)
				}
			})
		}
	case round.SaveState:
		then(func() { m.StateSaved(epoch) })
	case round.ResumeGuests:
		n.guest = "runs"
		then(func() { m.GuestsResumed(epoch, nil) })
	case round.StartPersist:
		then(func() { m.PersistDone(epoch, []byte("image of "+n.name)) })
	}
}
