package round_test

import (
	"fmt"
	"time"

	"fermata/protocol/round"
)

// A driver in its simplest form: every call is answered, and at once.
func Example() {
	l, err := round.NewLead(round.LeadConfig{
		Round:   round.ID{Cluster: "c", Epoch: 7},
		Token:   1,
		Members: []round.NodeID{"n1", "n2"},
		Options: round.Options{PauseBudget: time.Second},
		Budgets: round.Budgets{Prepare: 50, Cut: 50, Persist: 6000, Decide: 100, Finish: 50},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	l.Begin()
	for !l.Over() || l.HasReady() {
		r := l.Ready()
		if r.Persist != nil {
			fmt.Println("store", r.Persist.Phase)
		}
		if r.Decide != round.OutcomeNone {
			fmt.Println("decide", r.Decide)
			l.Decided(r.Decide)
		}
		for _, req := range r.Send {
			fmt.Println("send", req)
			reply := round.Reply{Call: req.Call, Round: req.Round, From: req.To, Result: round.ResultDone}
			if err := l.Step(reply); err != nil {
				fmt.Println(err)
			}
		}
		if r.Done != nil {
			fmt.Println("done", r.Done.Outcome)
		}
	}
	// Output:
	// store prepare
	// send Prepare(c@7) token 1 to n1
	// send Prepare(c@7) token 1 to n2
	// store cut
	// send Cut(c@7) token 1 to n1
	// send Cut(c@7) token 1 to n2
	// store persist
	// send Persist(c@7) token 1 to n1
	// send Persist(c@7) token 1 to n2
	// store commit
	// decide committed
	// store finish
	// send Finish(c@7, committed) token 1 to n1
	// send Finish(c@7, committed) token 1 to n2
	// done committed
	// store over
}
