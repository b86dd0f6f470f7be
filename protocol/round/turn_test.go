package round_test

import (
	"testing"
	"time"

	"fermata/protocol/round"
)

// resumedMember is a member of two whose guests run again, and which waits for its turn to
// write.
func resumedMember(t *testing.T, tick time.Duration) (m *round.Member, step func(round.Call) error, replies func() []round.Reply) {
	t.Helper()
	m, err := round.NewMember(round.MemberConfig{Cluster: "c", Node: "b", Tick: tick, SilenceTicks: int(round.SilenceBudget / tick)})
	if err != nil {
		t.Fatal(err)
	}
	replies = func() (all []round.Reply) {
		for m.HasReady() {
			all = append(all, m.Ready().Replies...)
		}
		return all
	}
	step = func(c round.Call) error {
		return m.Step(round.Request{Call: c, Round: round.ID{Cluster: "c", Epoch: 2}, Token: 1, To: "b", Members: []round.NodeID{"a", "b"}, Options: round.Options{PauseBudget: 5 * time.Second}})
	}
	if err := step(round.CallPrepare); err != nil {
		t.Fatal(err)
	}
	replies()
	m.GuestsPrepared(2, nil)
	replies()
	if err := step(round.CallCut); err != nil {
		t.Fatal(err)
	}
	replies()
	m.MarkerFrom(2, "a")
	m.GuestsCut(2)
	replies()
	m.GuestsResumed(2, nil)
	replies()
	if m.Phase() != round.MemberResumed {
		t.Fatalf("phase %s", m.Phase())
	}
	return m, step, replies
}

// TestMember_WaitsForItsTurnAsLongAsItHearsOfIt: others may write for hours before it.
func TestMember_WaitsForItsTurnAsLongAsItHearsOfIt(t *testing.T) {
	const tick = 50 * time.Millisecond
	m, step, replies := resumedMember(t, tick)
	for waited := time.Duration(0); waited < 3*round.SilenceBudget; waited += tick {
		// Four calls of five are lost.
		if waited%(5*round.KeepAlive) == 4*round.KeepAlive {
			if err := step(round.CallCut); err != nil {
				t.Fatalf("after %s: %v", waited, err)
			}
			if r := replies(); len(r) != 1 || r[0].Call != round.CallCut || r[0].Result != round.ResultDone {
				t.Fatalf("after %s it answers %v", waited, r)
			}
		}
		m.Tick()
	}
	if m.Phase() != round.MemberResumed {
		t.Fatalf("%s: %s", m.Phase(), m.Reason())
	}
	if err := step(round.CallPersist); err != nil || m.Phase() != round.MemberPersisting {
		t.Fatalf("its turn: %v, %s", err, m.Phase())
	}
}

// TestMember_GivesUpInSilence: a coordinator that is lost must not have guests' memory
// kept for ever.
func TestMember_GivesUpInSilence(t *testing.T) {
	const tick = time.Second
	m, step, replies := resumedMember(t, tick)
	for range int(round.SilenceBudget / tick) {
		m.Tick()
	}
	if m.Phase() != round.MemberFailed {
		t.Fatalf("phase %s", m.Phase())
	}
	replies()
	// Who asks whether it still takes part hears that it does not.
	if err := step(round.CallCut); err != nil {
		t.Fatal(err)
	}
	if r := replies(); len(r) != 1 || r[0].Result != round.ResultFailed {
		t.Fatalf("it answers %v", r)
	}
}
