package roundsim

import "fermata/protocol/round"

// settleEvery is the pause between two attempts to settle what was set aside.
const settleEvery Time = 120

// settle asks the repository about the rounds that were set aside, beside
// whatever else happens, for as long as the coordinator leads with token.
func (c *coordinator) settle(token round.Token) {
	c.w.after(c.w.some(settleEvery), func() {
		if c.w.etcd.token != token || c.token != token {
			return
		}
		if c.up {
			for _, r := range c.w.etcd.aside {
				c.settleRound(token, r)
			}
		}
		c.settle(token)
	})
}

// settleRound asks for an abort, and tells the members once what the repository
// says. A member that does not hear it frees what it holds with its next round.
func (c *coordinator) settleRound(token round.Token, r round.Record) {
	w := c.w
	if w.chance(w.cfg.StoreLoss) {
		if w.rng.IntN(2) == 0 {
			w.after(w.some(120), func() { w.decide(c.name+" (unheard)", r.Round, round.Aborted) })
		}
		return
	}
	w.after(w.some(30), func() {
		o := w.decide(c.name, r.Round, round.Aborted)
		w.fail(w.check.Knows("settler", r.Round.Epoch, o))
		if o == round.Committed {
			w.stats.SettledCommits++
		} else {
			w.stats.SettledAborts++
		}
		for _, id := range r.Members {
			req := round.Request{Call: round.CallFinish, Round: r.Round, Token: token, To: id, Outcome: o}
			n := w.nodes[id]
			for range w.copies() {
				w.after(w.delay(), func() { n.serve(req, func(round.Reply) {}) })
			}
		}
		w.etcd.settled(token, r.Round.Epoch)
	})
}
