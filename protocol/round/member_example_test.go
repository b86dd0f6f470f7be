package round_test

import (
	"fmt"
	"time"

	"fermata/protocol/round"
)

// A node alone in its cluster, whose actions all succeed at once. A real driver
// hands the actions to a worker, and goes on to tick meanwhile.
func ExampleMember() {
	m, err := round.NewMember(round.MemberConfig{Cluster: "c", Node: "n1", Tick: 10 * time.Millisecond})
	if err != nil {
		fmt.Println(err)
		return
	}
	carryOut := func(a round.Action) {
		e := a.Round.Epoch
		switch a.Kind {
		case round.PrepareGuests:
			m.GuestsPrepared(e, nil)
		case round.CutGuests:
			m.GuestsCut(e)
		case round.ResumeGuests:
			m.GuestsResumed(e, nil)
		case round.StartPersist:
			m.PersistDone(e, []byte("image"))
		}
	}
	for _, call := range []round.Call{round.CallPrepare, round.CallCut, round.CallPersist, round.CallFinish} {
		err := m.Step(round.Request{
			Call: call, Round: round.ID{Cluster: "c", Epoch: 7}, Token: 1, To: "n1",
			Members: []round.NodeID{"n1"}, Options: round.Options{PauseBudget: time.Second}, Outcome: round.Committed,
		})
		if err != nil {
			fmt.Println(err) // the answer
			continue
		}
		for m.HasReady() {
			r := m.Ready()
			if r.Journal != nil {
				fmt.Println("journal", r.Journal.Phase) // or m.JournalFailed() and continue
			}
			for _, a := range r.Actions {
				fmt.Println("do", a.Kind)
				carryOut(a)
			}
			for _, reply := range r.Replies {
				fmt.Println("answer", reply)
			}
		}
	}
	// Output:
	// journal preparing
	// do PrepareGuests
	// answer Prepare(c@7) done from n1
	// do CutGuests
	// do SendMarkers
	// do RecordChannels
	// do ResumeGuests
	// answer Cut(c@7) done from n1
	// do StartPersist
	// journal persisted
	// answer Persist(c@7) done from n1
	// journal finished
	// do KeepImage
	// answer Finish(c@7) done from n1
}
