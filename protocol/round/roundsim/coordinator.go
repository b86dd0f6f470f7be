package roundsim

import (
	"errors"
	"fmt"
	"slices"

	"fermata/protocol/round"
)

// coordinator is a process that drives round.Lead while it believes to lead.
type coordinator struct {
	w     *world
	name  string
	up    bool
	gen   int // grows with every crash and loss of leadership
	token round.Token

	lead     *round.Lead
	id       round.ID
	fenced   bool
	busy     bool // the owner waits for etcd
	inputs   []func()
	deciding bool
	wanted   []round.Outcome
}

// crash ends the process; what it has asked of others may still take effect.
func (c *coordinator) crash() {
	if !c.up {
		return
	}
	c.w.stats.LeadCrashes++
	c.w.logf("%s crashes", c.name)
	c.up = false
	c.stop()
	c.w.after(c.w.some(restartAfter), func() {
		c.up = true
		if c.w.etcd.leader == c {
			c.w.elect()
		}
	})
}

func (c *coordinator) stop() {
	c.gen++
	c.lead, c.busy, c.inputs, c.deciding, c.wanted = nil, false, nil, false, nil
}

// notice is how a coordinator hears at last that it was replaced.
func (c *coordinator) notice(gen int) {
	if c.gen == gen && c.up && c.w.etcd.leader != c {
		c.fence()
	}
}

// fence tells the Lead; answers and ticks still reach one that goes on.
func (c *coordinator) fence() {
	if c.lead == nil {
		c.stop()
		return
	}
	c.w.stats.Fenced++
	c.w.logf("%s learns that it was replaced", c.name)
	c.fenced, c.busy = true, false
	c.lead.Fenced()
	c.pump()
}

// startLeading takes over what is in flight, and then begins rounds.
func (c *coordinator) startLeading(token round.Token) {
	c.stop()
	if token != c.token {
		c.token = token
		c.settle(token)
	}
	c.fenced = false
	if rec := c.w.etcd.inFlight; rec != nil {
		l, err := c.w.cfg.RecoverLead(*rec, token, budgets)
		if errors.Is(err, round.ErrFenced) {
			return // a successor has taken the round over already
		}
		if err != nil {
			c.w.fail(err)
			return
		}
		c.w.stats.Recovered++
		c.w.logf("%s recovers %s, stored in phase %s", c.name, rec.Round, rec.Phase)
		c.drive(l, rec.Round)
		return
	}
	c.nextRound()
}

func (c *coordinator) nextRound() {
	gen := c.gen
	c.w.after(c.w.some(100), func() {
		if gen != c.gen || !c.up {
			return
		}
		if c.w.calm || int(c.w.etcd.epoch) >= c.w.cfg.Rounds {
			return
		}
		id := round.ID{Cluster: "c", Epoch: c.w.etcd.epoch + 1}
		members := c.members()
		l, err := round.NewLead(round.LeadConfig{
			Round: id, Token: c.token, Members: members,
			Options: round.Options{PauseBudget: pauseTicks, SkewBudget: skewTicks, Cut: round.Cut(c.w.rng.IntN(2))}, Budgets: budgets,
		})
		if err != nil {
			c.w.fail(err)
			return
		}
		c.drive(l, id)
		c.input(l.Begin)
	})
}

// members are most often all nodes, and now and then fewer.
func (c *coordinator) members() []round.NodeID {
	members := slices.Clone(c.w.names)
	if len(members) > 1 && c.w.rng.IntN(5) == 0 {
		i := c.w.rng.IntN(len(members))
		members = slices.Delete(members, i, i+1)
	}
	return members
}

func (c *coordinator) drive(l *round.Lead, id round.ID) {
	if c.w.cfg.OnLead != nil {
		c.w.cfg.OnLead(l)
	}
	c.lead, c.id, c.deciding, c.wanted = l, id, false, nil
	gen := c.gen
	var ticking func()
	ticking = func() {
		if gen == c.gen && c.lead == l {
			c.input(l.Tick)
			c.w.after(tick-2+c.w.some(3), ticking)
		}
	}
	c.w.after(tick, ticking)
	c.pump()
}

func (c *coordinator) cancel() {
	if l := c.lead; l != nil {
		c.input(func() { l.Cancel("cancelled by the operator") })
	}
}

// input hands something to the owner of the Lead.
func (c *coordinator) input(do func()) {
	if c.busy {
		c.inputs = append(c.inputs, do)
		return
	}
	do()
	c.pump()
}

func (c *coordinator) pump() {
	for c.lead != nil && !c.busy && c.w.err == nil {
		switch {
		case c.lead.HasReady():
			c.follow(c.lead.Ready())
		case c.lead.Over():
			c.w.logf("%s is through with %s", c.name, c.id)
			c.stop()
			if !c.fenced {
				c.startLeading(c.token)
			}
			return
		case len(c.inputs) > 0:
			do := c.inputs[0]
			c.inputs = c.inputs[1:]
			do()
		default:
			return
		}
	}
}

func (c *coordinator) follow(r round.LeadReady) {
	if c.fenced && (r.Persist != nil || r.Decide != round.OutcomeNone || len(r.Send) > 0) {
		c.w.fail(fmt.Errorf("I5: %s, fenced, is to do %+v", c.name, r))
		return
	}
	if r.Persist == nil {
		c.act(r)
		return
	}
	c.busy = true
	gen := c.gen
	c.w.after(c.w.some(10), func() {
		if gen != c.gen {
			return
		}
		stored := c.w.etcd.store(c.token, *r.Persist)
		if stored && r.Persist.Phase == round.PhasePrepare {
			cut := r.Persist.Options.Cut
			c.w.check.Begins(r.Persist.Round.Epoch, r.Persist.Token, r.Persist.Members, cut)
			c.w.logf("%s begins %s with %v, %s cut", c.name, r.Persist.Round, r.Persist.Members, cut)
		}
		c.w.after(c.w.some(5), func() {
			if gen != c.gen {
				return
			}
			c.busy = false
			if !stored {
				c.fence()
				return
			}
			c.act(r)
			c.pump()
		})
	})
}

func (c *coordinator) act(r round.LeadReady) {
	if r.Decide != round.OutcomeNone {
		c.wanted = append(c.wanted, r.Decide)
		c.decideNext()
	}
	for _, req := range r.Send {
		c.call(req)
	}
	if r.Done != nil {
		c.w.logf("%s: %s done, %s %s", c.name, c.id, r.Done.Outcome, r.Done.Reason)
		if r.Done.Outcome == round.OutcomeNone {
			c.w.stats.Undecided++
		} else {
			c.w.fail(c.w.check.Knows("operator", c.id.Epoch, r.Done.Outcome))
		}
	}
}

// decideNext asks the repository. The record may be created long after, also
// when the coordinator is gone, and the answer may be lost.
func (c *coordinator) decideNext() {
	if c.deciding || len(c.wanted) == 0 {
		return
	}
	want := c.wanted[0]
	c.wanted = c.wanted[1:]
	c.deciding = true
	gen, l, id := c.gen, c.lead, c.id
	answer := func(do func()) {
		if gen == c.gen && c.lead == l {
			c.deciding = false
			c.input(do)
			if gen == c.gen && c.lead == l {
				c.decideNext()
			}
		}
	}
	if c.w.chance(c.w.cfg.StoreLoss) {
		applied := c.w.rng.IntN(3)
		if applied > 0 {
			c.w.after(c.w.some(Time(applied)*60), func() { c.w.decide(c.name+" (unheard)", id, want) })
		}
		c.w.after(c.w.some(60), func() { answer(func() { l.DecideFailed("no answer") }) })
		return
	}
	if want == round.Committed && c.w.chance(c.w.cfg.StepFailure) {
		c.w.after(c.w.some(30), func() { answer(func() { l.DecideRefused("full") }) })
		return
	}
	c.w.after(c.w.some(30), func() {
		o := c.w.decide(c.name, id, want)
		c.w.after(c.w.some(10), func() {
			answer(func() { l.Decided(o) })
		})
	})
}

// call carries a request to a member and its answer back, over a network that
// loses, doubles and delays both. In the end the Lead gets a result; an answer
// that comes later still reaches it, too.
func (c *coordinator) call(req round.Request) {
	w := c.w
	if w.etcd.token == c.token && (w.etcd.inFlight == nil || w.etcd.inFlight.Round != req.Round) {
		w.fail(fmt.Errorf("I2: %s sends %s before the round is stored", c.name, req))
	}
	gen, l := c.gen, c.lead
	answered := false
	result := func(r round.Reply) {
		if gen == c.gen && c.lead == l {
			answered = true
			c.input(func() { w.fail(l.Step(r)) })
		}
	}
	back := func(r round.Reply) {
		for range w.copies() {
			w.after(w.delay(), func() { result(r) })
		}
	}
	n := w.nodes[req.To]
	for range w.copies() {
		w.after(w.delay(), func() { n.serve(req, back) })
	}
	w.after(callTimeout, func() {
		if !answered {
			result(round.Reply{Call: req.Call, Round: req.Round, From: req.To, Result: round.ResultUnanswered})
		}
	})
}

func (w *world) copies() int {
	switch {
	case w.chance(w.cfg.CallLoss):
		return 0
	case w.chance(w.cfg.CallDouble):
		return 2
	default:
		return 1
	}
}

// delay is short most often, and sometimes longer than a whole round.
func (w *world) delay() Time {
	if w.chance(w.cfg.CallDouble / 2) {
		return w.some(1500)
	}
	return w.some(10)
}
