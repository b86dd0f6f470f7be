package roundsim

import (
	"fmt"
	"slices"

	"fermata/protocol/round"
)

// etcd holds what coordinators share: who leads, the round in flight, the rounds
// that are over and about which the repository has to be asked, and the last
// epoch begun.
type etcd struct {
	w        *world
	token    round.Token
	leader   *coordinator
	epoch    round.Epoch
	inFlight *round.Record
	aside    []round.Record
}

// store writes a record in one transaction guarded by the fencing token.
func (e *etcd) store(token round.Token, r round.Record) bool {
	if token != e.token {
		return false
	}
	if r.Outcome == round.Aborted && !r.Recorded && r.Phase == round.PhaseFinish {
		e.w.check.AbortStored(r.Round.Epoch)
		e.w.stats.AbortsStored++
	}
	if r.Phase == round.PhaseOver {
		e.inFlight = nil
		if r.Unsettled() {
			e.aside = append(e.aside, r)
		}
		return true
	}
	e.inFlight = &r
	e.epoch = max(e.epoch, r.Round.Epoch)
	return true
}

// settled forgets a round that was set aside.
func (e *etcd) settled(token round.Token, epoch round.Epoch) {
	if token == e.token {
		e.aside = slices.DeleteFunc(e.aside, func(r round.Record) bool { return r.Round.Epoch == epoch })
	}
}

// repository holds the outcome records, created exclusively.
type repository struct {
	outcomes map[round.Epoch]round.Outcome
}

func (w *world) leader() *coordinator { return w.etcd.leader }

// elect makes some living coordinator the leader. The one before learns of it
// later, or when etcd or a member refuses it.
func (w *world) elect() {
	var up []*coordinator
	for _, c := range w.leads {
		if c.up {
			up = append(up, c)
		}
	}
	if len(up) == 0 {
		return
	}
	old := w.etcd.leader
	c := up[w.rng.IntN(len(up))]
	w.etcd.token++
	w.etcd.leader = c
	w.logf("%s leads with token %d", c.name, w.etcd.token)
	if old != nil && old != c {
		gen := old.gen
		w.after(w.some(400), func() { old.notice(gen) })
	}
	c.startLeading(w.etcd.token)
}

// decide is the exclusive creation of an outcome record, at the moment it
// takes effect.
func (w *world) decide(by string, id round.ID, want round.Outcome) round.Outcome {
	if have, ok := w.repo.outcomes[id.Epoch]; ok {
		if have != want {
			w.stats.Contended++
			if have == round.Committed {
				w.stats.CommitsFollowed++
			}
		}
		return have
	}
	w.repo.outcomes[id.Epoch] = want
	w.logf("repository: %s is %s, by %s", id, want, by)
	w.check.OutcomeRecorded(id.Epoch, want)
	if want == round.Committed {
		w.stats.Committed++
		w.fail(w.checkImages(id.Epoch))
	} else {
		w.stats.Aborted++
	}
	return want
}

// checkImages is I7 and I11 for what a commit makes visible.
func (w *world) checkImages(e round.Epoch) error {
	members := w.check.members[e]
	for _, id := range members {
		if w.nodes[id].durable[e] == nil {
			return fmt.Errorf("I7: epoch %d committed without an image of %s", e, id)
		}
	}
	for _, from := range members {
		for _, to := range members {
			if from == to {
				continue
			}
			if err := w.checkChannel(e, from, to); err != nil {
				return err
			}
		}
	}
	return nil
}
